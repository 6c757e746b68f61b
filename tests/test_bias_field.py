"""Shading."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.images.bias_field import CorrectFieldd
from whole_head import BRAIN, HEAD, SHAPE


@pytest.mark.parametrize("axis", [0, 1])
def test_strong_shading_is_corrected_and_slight_is_left(axis: int) -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0]))
    ramp = np.linspace(0.4, 1.8, SHAPE[axis]).reshape([-1 if a == axis else 1 for a in range(3)])

    def corrected(array: np.ndarray) -> dict[str, Any]:
        x = torch.from_numpy(array.astype(np.float32))[None]
        brain = MetaTensor(torch.from_numpy(BRAIN.astype(np.float32))[None], affine=affine)
        return CorrectFieldd("image")({"image": MetaTensor(x, affine=affine), "foreground": brain, "warnings": []})

    plain, shaded = corrected(HEAD), corrected(HEAD * ramp)
    assert plain["warnings"] == [] and bool((plain["bias_field"] == 1).all())
    assert "shaded" in shaded["warnings"][0]
    torch.testing.assert_close(
        (shaded["image"] * shaded["bias_field"])[0].as_tensor().numpy(), (HEAD * ramp).astype(np.float32)
    )
    # even tissue becomes even again: before, its darkest and brightest tenth differ twofold
    even = BRAIN & (HEAD > 90) & (HEAD < 110)
    low, high = np.percentile(shaded["image"][0].as_tensor().numpy()[even], [10, 90])
    assert high / low < 1.25 < 1.6 < np.divide(*np.percentile((HEAD * ramp)[even], [90, 10]))
