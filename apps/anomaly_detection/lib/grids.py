"""Volumes on disk: voxels, grids, and one in the order of another's axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The array ``(X, Y, Z)`` of a volume's file and its affine ``(4, 4)``, RAS in mm, as the bundle reads them.

    Raises:
        Exception: it can't be read, see the bundle's `read_volume`.
    """
    from scripts.images.volume_files import read_volume as read

    loaded = read(str(path))
    return loaded.voxels.numpy(), loaded.affine.numpy()


def grid_of(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape ``(X, Y, Z)`` and the affine ``(4, 4)``, RAS in mm, of an image file; of a NIfTI, its voxels are not read.

    Raises:
        InvalidImageError: it can't be read, see the bundle's `image_grid`.
    """
    from scripts.images.grids import image_grid

    grid = image_grid(path)
    return tuple(grid.shape[1:]), grid.affine.numpy()


def reordered(array: np.ndarray, affine: np.ndarray, target: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """The bundle's `reordered` of an array ``(X, Y, Z)``: in the order of another affine's axes, None on another grid."""
    from scripts.images.masks import reordered as reordered_tensor

    if not np.isfinite([affine, target]).all():
        return None
    array = np.ascontiguousarray(array)
    voxels = reordered_tensor(torch.from_numpy(array)[None], torch.tensor(affine), torch.tensor(target), shape)
    return None if voxels is None else voxels[0].numpy()
