"""Label maps, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.grids import grid_of, read_volume, reordered
from lib.studies.names import FORMATS


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
    try:
        shape, target = grid_of(image)
    except Exception as error:
        raise ValueError("has an image that can't be read, so that its grid is unknown.") from error
    result = reordered(array, affine, target, shape)
    if result is None:
        raise ValueError(
            f"lies on another grid than its image: its shape is {array.shape}, the image's {tuple(shape)}, "
            f"or their affines differ; save it on the image's grid."
        )
    return result.astype(np.uint8)
