"""Labels of slices, derived from a mask of the lesion. Training sees the labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from .. import DISEASED, HEALTHY
from ..checks import check_number
from ..images.formats import NIFTI, VOLUMETRIC
from ..images.geometry import load_nifti, slice_axis
from ..images.loading import LoadVolumed
from ..images.masks import load_values
from ..images.volume_files import read_volume

NO_TUMOUR = "its mask marks nothing, and every patient of the set has a tumour."
"""Why a case is left out whose mask is empty: its slices would become healthy ones."""


def lesion_voxels(mask: Path, images: Sequence[Path]) -> dict[str, Any]:
    """How many voxels of each slice are marked, as ``voxels`` in the file's order, and ``upwards``, whether that goes up.

    Args:
        mask: a file of a volume; what is above 0 is marked. Slices lie along the axis nearest to superior-inferior.
        images: that must have its grid; a fourth dimension is that of the channels. Where not all are NIfTI, the mask may hold
            the voxels of the first one in another order.

    Raises:
        ValueError: a file is damaged, or lies on another grid.
    """
    if not all(path.name.lower().endswith(NIFTI) for path in (mask, *images)):
        values = [load_values(mask, _grid(path)) for path in images][0]
        return _counted(values.numpy()[0] > 0, values.affine.numpy())
    marked = _read(mask)
    for path in images:
        image = _read(path)
        if image.shape[:3] != marked.shape or not np.allclose(image.affine, marked.affine, atol=1e-3):
            raise ValueError(f"{path.name}: lies on another grid than {mask.name}, {image.shape} and {marked.shape}.")
    try:
        voxels = np.asarray(marked.dataobj) > 0
    except Exception as error:
        raise ValueError(f"{mask.name}: can't be read ({error}).") from error
    return _counted(voxels, marked.affine)


def _counted(voxels: NDArray[np.bool_], affine: NDArray[np.float64]) -> dict[str, Any]:
    axis, upwards = slice_axis(affine)
    counts = np.count_nonzero(voxels, axis=tuple(n for n in range(3) if n != axis))
    return {"voxels": [int(n) for n in counts], "upwards": upwards}


def labels_of(lesion: dict[str, Any], slices: tuple[int, int] | None, least_voxels: int, every: int = 1) -> list[int]:
    """0 (healthy), 1 (diseased) or -1 (leave out) for each slice, in the file's order.

    Args:
        lesion: see `lesion_voxels`.
        slices: first and last that are wanted, counted from 0 at the bottom of the head; the others are left out.
        least_voxels: that make a slice diseased; a slice with fewer, but some, is left out.
        every: 2 takes every second slice, and so on: those of 1 mm repeat their neighbours.
    """
    counts = lesion["voxels"] if lesion["upwards"] else lesion["voxels"][::-1]
    first, last = slices or (0, len(counts) - 1)
    labels = [
        -1 if not first <= n <= last or n % every or 0 < count < least_voxels else DISEASED if count else HEALTHY
        for n, count in enumerate(counts)
    ]
    return labels if lesion["upwards"] else labels[::-1]


def checked_slices(slices: Any) -> tuple[int, int] | None:
    """An option that is a range of slices, such as 80,128.

    Raises:
        ValueError: it is none.
    """
    if slices is None:
        return None
    if not isinstance(slices, (list, tuple)) or len(slices) != 2:
        raise ValueError(f"--slices must be the first and the last, such as 80,128, got {slices!r}.")
    for n in slices:
        check_number("slices", n, 0, 10_000, whole=True)
    if slices[0] > slices[1]:
        raise ValueError(f"--slices must be the first and the last, such as 80,128, got {slices[0]},{slices[1]}.")
    return int(slices[0]), int(slices[1])


def _grid(path: Path) -> MetaTensor:
    """An image of any format and number of channels, ``(C, X, Y, Z)``."""
    if path.is_dir():
        load = LoadVolumed("image", min_size=1, allow_any_image=True, modalities=VOLUMETRIC)
        series: MetaTensor = load({"image": str(path)})["image"]
        return series
    try:
        voxels, affine, *_ = read_volume(str(path))
    except Exception as error:
        raise ValueError(f"{path.name}: can't be read ({error}).") from error
    if voxels.ndim not in (3, 4):
        raise ValueError(f"{path.name}: has {voxels.ndim} dimensions, 3 or 4 are allowed.")
    return MetaTensor(voxels.reshape(*voxels.shape[:3], -1).movedim(-1, 0), affine=affine)


def _read(path: Path) -> nib.Nifti1Image:
    try:
        image = load_nifti(str(path))
    except Exception as error:
        raise ValueError(f"{path.name}: can't be read ({error}).") from error
    if image.ndim not in (3, 4):
        raise ValueError(f"{path.name}: has {image.ndim} dimensions, 3 or 4 are allowed.")
    return image
