"""A volume on the grid of a series, or of a radiograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray

from ..images.dicom_planes import TOLERANCE, orientation, position
from ..images.masks import reordered
from ..images.radiographs import radiograph_affine
from ..images.volume_files import TO_RAS
from .series import is_radiograph


def on_images(
    images: Sequence[pydicom.Dataset], array: NDArray[np.generic], affine: NDArray[np.floating]
) -> NDArray[np.generic]:
    """As `on_series`; of a radiograph ``(X, Y, 1)`` as ``(1, rows, columns)`` of its file.

    Raises:
        ValueError: the grids don't coincide.
    """
    if not is_radiograph(images):
        return on_series(images, array, affine)
    rows, columns = int(images[0].Rows), int(images[0].Columns)
    voxels = torch.from_numpy(np.ascontiguousarray(array))[None]
    placed = None
    if array.ndim == 3:
        placed = reordered(voxels, torch.as_tensor(affine), radiograph_affine(images[0]), (columns, rows, 1))
    if placed is None:
        raise ValueError(
            f"the volume {array.shape} does not lie on the pixels of the radiograph ({rows} rows, {columns} columns)."
        )
    return placed[0].numpy().transpose(2, 1, 0)


def on_series(
    series: Sequence[pydicom.Dataset], array: NDArray[np.generic], affine: NDArray[np.floating]
) -> NDArray[np.generic]:
    """``(X, Y, Z)`` as ``(slices, rows, columns)`` of the series: axes permuted and reversed, no interpolation.

    Raises:
        ValueError: the grids don't coincide within `TOLERANCE`.
    """
    first = series[0]
    rows, columns = int(first.Rows), int(first.Columns)
    error = ValueError(
        f"the volume {array.shape} does not lie on the grid of the series ({len(series)} slices of {rows} rows and "
        f"{columns} columns); resample it onto the series' images first."
    )
    affine = np.asarray(affine, dtype=np.float64)
    if array.ndim != 3 or affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise error
    to_index = np.linalg.inv(affine) @ TO_RAS
    row, column = orientation(first)
    steps = np.stack([row * float(first.PixelSpacing[1]), column * float(first.PixelSpacing[0])]) @ to_index[:3, :3].T
    origins = np.stack([position(d) for d in series]) @ to_index[:3, :3].T + to_index[:3, 3]
    # the axes of the array that columns and rows are counted along; the third is that of the slices
    across, down = (int(np.abs(step).argmax()) for step in steps)
    if across == down:
        raise error
    along = 3 - across - down
    order = np.rint(origins[:, along]).astype(int)
    if array.shape[across] != columns or array.shape[down] != rows or sorted(order) != list(range(array.shape[along])):
        raise error
    forward = [bool(step[axis] > 0) for step, axis in zip(steps, (across, down), strict=True)]
    expected = np.zeros((len(series), 2, 2, 3))
    expected[..., along] = order[:, None, None]
    expected[..., across] = np.array([0, columns - 1])[:: 1 if forward[0] else -1]
    expected[..., down] = np.array([0, rows - 1])[:: 1 if forward[1] else -1][:, None]
    corners = (
        origins[:, None, None]
        + steps[0] * np.array([0, columns - 1])[:, None]
        + steps[1] * np.array([0, rows - 1])[:, None, None]
    )
    if np.abs(corners - expected).max() > TOLERANCE:
        raise error
    volume = array.transpose(along, down, across)[:, :: 1 if forward[1] else -1, :: 1 if forward[0] else -1]
    return volume[order]
