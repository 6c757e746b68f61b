"""Labels of slices, derived from a mask of the lesion. Training sees the labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import DISEASED, HEALTHY
from ..checks import check_number
from ..images.geometry import difference, same_grid, slice_axis
from ..images.grids import image_grid
from ..images.masks import load_values

NO_TUMOUR = "its mask marks nothing, and every patient of the set has a tumour."
"""Why a case is left out whose mask is empty: its slices would become healthy ones."""


class UnusableMaskError(ValueError):
    """A mask that can't be read, or lies on another grid than its image. Nothing is wrong with that."""


def lesion_voxels(mask: Path, images: Sequence[Path]) -> dict[str, Any]:
    """How many voxels of each slice are marked, as ``voxels`` in the image's order, and ``upwards``, whether that goes up.

    Args:
        mask: a file, which may hold the voxels in another order; what is above 0 is marked.
        images: whose grid it must have, one a channel; a fourth dimension of one is that of the channels. Slices lie along the
            axis nearest to superior-inferior.

    Raises:
        UnusableMaskError: the mask is damaged, or lies on another grid.
        ValueError: so it is with an image.
    """
    first, *others = [image_grid(path) for path in images]
    try:
        values = load_values(mask, first)
    except ValueError as error:
        raise UnusableMaskError(str(error)) from error
    for path, grid in zip(images[1:], others, strict=True):
        grids = grid.shape[1:], grid.affine, first.shape[1:], first.affine
        if not same_grid(*grids):
            how = difference(*grids)
            raise ValueError(f"{path}: lies on another grid than {images[0]} ({how}).")
    return _counted(values.numpy()[0] > 0, values.affine.numpy())


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
