"""Connected parts of a mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest part of ``(X, Y, Z)`` whose voxels touch by their faces, bool; of an empty mask none."""
    parts, number = ndimage.label(mask)
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if number else np.zeros(mask.shape, bool)
