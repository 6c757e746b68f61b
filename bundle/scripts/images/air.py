"""What the air around a head or a stripped brain tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .connected import largest_part


def in_plane_border(volume: np.ndarray) -> np.ndarray:
    """The values on the four sides of ``(X, Y, Z)``, axial: air, unless the head is cut off."""
    return np.concatenate([volume[[0, -1]].ravel(), volume[:, [0, -1]].ravel()])


def background_of(volume: np.ndarray) -> tuple[float, float]:
    """The most frequent value on the in-plane border of ``(X, Y, Z)``, and which share of the border has it."""
    values, counts = np.unique(in_plane_border(volume), return_counts=True)
    most = counts.argmax()
    return values[most], counts[most] / counts.sum()


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
    background, share = background_of(volume)
    if share < 0.8:
        return None
    largest = largest_part(volume != background)
    if not largest.any():
        return None
    filled = ndimage.binary_fill_holes(largest)
    area = filled.sum(axis=(0, 1)).max() * pixdim[0] * pixdim[1] / 100
    return filled if area <= max_area else None
