"""What tells weights apart."""

from __future__ import annotations

import hashlib

import torch

from scripts.weights import weights_digest


def test_the_digest_of_weights_is_theirs_alone() -> None:
    """Not that of their layout, and another weight or the same under another name gives another one."""
    layer = torch.nn.Conv2d(2, 2, 2)
    expected = hashlib.sha256()
    for name in ("weight", "bias"):
        expected.update(name.encode() + getattr(layer, name).detach().numpy().tobytes())
    digest = weights_digest(layer)
    assert digest == expected.hexdigest() == weights_digest(layer.to(memory_format=torch.channels_last))
    assert weights_digest(torch.nn.Sequential(layer)) != digest
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] += 1e-6
    assert weights_digest(layer) != digest
