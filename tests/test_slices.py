"""Which slices are assessed."""

from __future__ import annotations

import torch

from scripts.method.slices import assessed_slices


def test_assessed_slices_have_foreground_enough() -> None:
    x = torch.zeros(1, 1, 10, 10, 4)
    for z, width in enumerate((0, 4, 5, 10)):
        x[..., :width, :, z] = 0.5
    assert assessed_slices(x, 50).tolist() == [[False, False, True, True]]
    assert assessed_slices(x, 1).tolist() == [[False, True, True, True]]
