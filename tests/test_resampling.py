"""Resampling in the plane of the slices."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.images.resampling import ResampleInPlaned


def test_downsampling_takes_the_mean_over_each_new_pixel() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    out = ResampleInPlaned("image", 2.0)({"image": MetaTensor(x, affine=torch.eye(4))})["image"]
    np.testing.assert_allclose(out[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(out.affine, [[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("spacing", [(1.8, 1.8), (0.43, 0.43), (0.9, 0.9), (2.4, 1.8), (3.1, 0.9), (4.0, 4.0)])
@pytest.mark.parametrize("size", [(128, 128), (97, 141)])
def test_nothing_moves_where_the_pixel_size_changes(spacing: tuple[float, float], size: tuple[int, int]) -> None:
    """In mm, on any grid: a ramp of position stays position, and a blob's centre of mass where it is."""
    affine = torch.diag(torch.tensor([*spacing, 5.0, 1.0], dtype=torch.float64))
    affine[:2, 3] = torch.tensor([-70.0, 33.0])
    x, y = (a + spacing[n] * np.arange(size[n]) for n, a in enumerate((-70.0, 33.0)))
    at = np.stack(np.meshgrid(x, y, indexing="ij"))
    centre = at.mean(axis=(1, 2)) + (1.234, -2.345)
    blob = np.exp(-((at - centre[:, None, None]) ** 2).sum(axis=0) / (2 * 6.0**2))
    image = MetaTensor(torch.tensor(np.stack([*at, blob]), dtype=torch.float32)[..., None], affine=affine)
    out = ResampleInPlaned("image", 2.4)({"image": image})["image"]
    np.testing.assert_allclose(out.pixdim[:2], 2.4, rtol=0.03)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in out.shape[1:3]), indexing="ij"), axis=-1)
    index = np.concatenate([index, np.zeros_like(index[..., :1])], axis=-1)
    place = np.moveaxis(nib.affines.apply_affine(out.affine.numpy(), index), -1, 0)[:2]
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(out[:2, ..., 0].numpy()[inside], place[inside], atol=0.05)
    weight = out[2, ..., 0].numpy()
    np.testing.assert_allclose((place * weight).sum(axis=(1, 2)) / weight.sum(), centre, atol=0.05)


@pytest.mark.parametrize("size", [0, -2.4, float("nan"), float("inf"), "2.4", True, 1e-9])
def test_refuses_pixel_size(size: Any) -> None:
    with pytest.raises(ValueError, match=r"pixel_size must be .*from 0.1 to 100, got"):
        ResampleInPlaned("image", size)
