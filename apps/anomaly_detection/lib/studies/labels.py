"""Label maps, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.grids import grid_of, read_volume, reordered
from lib.studies.names import FORMATS
from lib.studies.sizes import check_size, shape_of


def checked_label(path: str | Path, image: str | Path, allowed: Sequence[int] | None = None) -> np.ndarray:
    """A label map's voxels in the order of its image's.

    Args:
        path: of the label map; its file may hold the voxels in another order of the axes.
        image: path of the image.
        allowed: values; None is 0 to 255.

    Returns:
        uint8 ``(X, Y, Z)``.

    Raises:
        ValueError: it can't be read, is not 3D, holds other values or lies on another grid; the message has no path.
    """
    if not str(path).lower().endswith(FORMATS):
        raise ValueError(
            f"must be a file of {', '.join(FORMATS)}, got {''.join(Path(path).suffixes) or 'no ending'!r}."
        )
    if not os.path.getsize(path):
        raise ValueError("is empty: 0 bytes.")
    try:
        shape, target = grid_of(image)
    except Exception as error:
        raise ValueError("has an image that can't be read, so that its grid is unknown.") from error
    check_header(path, shape)
    try:
        array, affine = read_volume(path)
    except Exception as error:
        raise ValueError("can't be read as an image.") from error
    if array.ndim != 3:
        raise ValueError(f"must be one 3D volume, has the shape {array.shape}.")
    values = np.unique(array)
    others = [v for v in values.tolist() if not (v in allowed if allowed else 0 <= v <= 255 and v == int(v))]
    if others:
        what = ", ".join(map(str, allowed)) if allowed else "whole numbers from 0 to 255"
        raise ValueError(f"holds the value {others[0]:g}; allowed are {what}.")
    result = reordered(array, affine, target, shape)
    if result is None:
        raise _off_grid(array.shape, shape)
    return result.astype(np.uint8)


def check_header(path: str | Path, shape: Sequence[int], channels: int = 1) -> None:
    """See to it that a file holds as many voxels as its image, by its header: they may take more memory than there is.

    Args:
        path: of the file.
        shape: ``(X, Y, Z)`` of its image; the file may hold the voxels in another order of the axes.
        channels: so many volumes it may hold.

    Raises:
        ValueError: it doesn't.
    """
    claimed = shape_of(path)
    if claimed and (len(claimed) < 3 or math.prod(claimed[3:]) > channels):
        raise ValueError(f"must be one 3D volume, has the shape {claimed}.")
    if claimed and sorted(claimed[:3]) != sorted(shape):
        raise _off_grid(claimed, shape)
    check_size(path, math.prod(shape) * channels)


def _off_grid(label: Sequence[int], image: Sequence[int]) -> ValueError:
    return ValueError(
        f"lies on another grid than its image: its shape is {tuple(label)}, the image's {tuple(image)}, "
        "or their affines differ; save it on the image's grid."
    )
