"""What tells weights apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from scripts.weights import for_training, replace_weights, weights_digest


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


def test_a_network_begins_with_what_fits_of_anothers_weights(tmp_path: Path) -> None:
    """The first layer has two channels instead of one and stays as it was made, the second is taken."""
    given, made = (
        torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3), torch.nn.Conv2d(4, 4, 3)) for channels in (1, 2)
    )
    path = str(tmp_path / "given.pt")
    torch.save(given.state_dict(), path)
    before = made[0].weight.clone()
    begun = for_training(made, "cpu", path)
    assert begun[0].weight.equal(before) and begun[1].weight.equal(given[1].weight)
    with pytest.raises(ValueError, match="given.pt: none of its 4 weights has a name and shape of this Linear"):
        for_training(torch.nn.Linear(2, 2), "cpu", path)


def test_weights_that_are_replaced_twice_in_a_second_are_all_kept(tmp_path: Path) -> None:
    target, new = tmp_path / "model.pt", tmp_path / "new"
    target.write_text("0")
    kept = []
    for n in range(1, 6):
        new.write_text(str(n))
        kept.append(tmp_path / str(replace_weights(new, target)))
    assert [path.read_text() for path in kept] == ["0", "1", "2", "3", "4"] and target.read_text() == "5"
    assert sorted(tmp_path.iterdir()) == sorted([*kept, target])
