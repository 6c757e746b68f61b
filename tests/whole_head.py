"""A whole head as FLAIR shows it, with everything around the brain, and the networks' input that is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from scipy import ndimage

from scripts.bundle import declared
from scripts.images.brain import ExtractBraind

SHAPE, AFFINE = (100, 120, 28), nib.affines.from_matvec(np.diag([-2.0, -2.0, 5.0]), (100.0, 120.0, -70.0))


IN_MM = np.stack(
    np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, (2, 2, 5), strict=True)], indexing="ij")
)


def ellipsoid(x: float, y: float, z: float) -> np.ndarray:
    """Half axes in mm."""
    return sum((g / a) ** 2 for g, a in zip(IN_MM, (x, y, z), strict=True)) < 1


BRAIN = ellipsoid(65, 82, 58)


def whole_head() -> np.ndarray:
    """A FLAIR-like head: brain 100 with texture, a lesion, dark ventricles and skull, bright skin, noise in air."""
    rng = np.random.default_rng(0)
    x = np.where(ellipsoid(88, 108, 69), 90.0, 2.0)
    x[ellipsoid(80, 98, 64)] = 15
    x[BRAIN] = 100
    x[ellipsoid(12, 30, 15)] = 20
    x[np.sum((IN_MM - np.array([30.0, 20, 10])[:, None, None, None]) ** 2, axis=0) < 14**2] = 170
    return ndimage.gaussian_filter(x, (0.6, 0.6, 0)) + rng.normal(0, 2, SHAPE).clip(-1.9) * (x > 0) + 2


HEAD = np.abs(whole_head()).round().astype(np.float32)


def write(
    folder: Path, array: np.ndarray, affine: np.ndarray = AFFINE, units: str = "mm", name: str = "a.nii.gz"
) -> str:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units(units)
    nib.save(image, folder / name)
    return str(folder / name)


def preprocessed(path: str, monkeypatch: pytest.MonkeyPatch, **item: Any) -> dict[str, Any]:
    """With the true brain in the place of HD-BET's."""

    def segment(self: ExtractBraind, image: MetaTensor) -> torch.Tensor:
        mask = MetaTensor(torch.from_numpy(BRAIN.copy())[None], affine=torch.from_numpy(AFFINE))
        return Orientation("LPS", labels=None)(mask).as_tensor()

    monkeypatch.setattr(ExtractBraind, "_segment", segment)
    try:
        return declared("preprocessing", brain_cache=None)({"image": path, **item})
    except RuntimeError as error:
        assert error.__cause__ is not None
        raise error.__cause__ from None


def head_with(where: Any, value: float) -> np.ndarray:
    array = HEAD.copy()
    array[where] = value
    return array
