"""What needs no training: the baselines to beat."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter

from .cases import Array
from .metrics import _quotient


def baselines(image: Array, foreground: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """What needs no training: thresholding FLAIR.

    Args:
        image: a normalised FLAIR volume, ``(H, W, D)``.
        foreground: bool, same shape.

    Returns:
        Maps, float32 ``(H, W, D)``, by the baseline's name: the intensity itself; the part above the median of the
        slice's foreground, 0 outside the foreground; and that with a 3 x 3 median filter in each slice. And image-level scores
        ``(D,)``: the map's mean over the slice's foreground, NaN without foreground.

    Raises:
        ValueError: shapes differ, or the foreground is empty.
    """
    image, foreground = np.asarray(image, np.float32), np.asarray(foreground, bool)
    if image.ndim != 3 or image.shape != foreground.shape:
        raise ValueError(f"image and foreground must both be (H, W, D), got {image.shape} and {foreground.shape}.")
    if not foreground.any():
        raise ValueError("the foreground is empty.")
    above = np.zeros_like(image)
    for z in np.flatnonzero(foreground.any(axis=(0, 1))):
        above[..., z] = (
            np.clip(image[..., z] - np.median(image[..., z][foreground[..., z]]), 0, None) * foreground[..., z]
        )
    maps = {
        "FLAIR intensity": image,
        "FLAIR minus slice median": above,
        "FLAIR minus slice median, 3x3 median": median_filter(above, size=(3, 3, 1), mode="constant") * foreground,
    }
    area = foreground.sum(axis=(0, 1))
    return maps, {name: _quotient((a * foreground).sum(axis=(0, 1), dtype=float), area) for name, a in maps.items()}
