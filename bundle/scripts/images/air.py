"""What the air around a head or a stripped brain tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def in_plane_border(volume: np.ndarray) -> np.ndarray:
    """The values on the four sides of ``(X, Y, Z)``, axial: air, unless the head is cut off."""
    return np.concatenate([volume[[0, -1]].ravel(), volume[:, [0, -1]].ravel()])


def stripped_foreground(volume: np.ndarray, pixdim: Sequence[float], max_area: float = 250.0) -> np.ndarray | None:
    """The brain of an image whose skull was removed, or None if it is a whole head.

    Around a brain that was cut out the image is exactly constant, and what is not constant has at most a brain's area. Whole
    heads may have such air too, but the largest slice of a head takes 320 cm2 and more, that of a brain 160 to 200. Of
    whole heads in TCGA-LGG and of other people none was taken for stripped, of BraTS none for a whole head: see
    ``benchmarks/sequence_check.json``.

    Args:
        volume: finite, ``(X, Y, Z)``, axial.
        pixdim: voxel size in mm.
        max_area: of the largest slice, in cm2.

    Returns:
        bool ``(X, Y, Z)``: the largest part that is not constant, its holes filled.
    """
    border = in_plane_border(volume)
    values, counts = np.unique(border, return_counts=True)
    background = values[counts.argmax()]
    if counts.max() < 0.8 * border.size:
        return None
    parts, number = ndimage.label(volume != background)
    if not number:
        return None
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    filled = ndimage.binary_fill_holes(largest)
    area = filled.sum(axis=(0, 1)).max() * pixdim[0] * pixdim[1] / 100
    return filled if area <= max_area else None
