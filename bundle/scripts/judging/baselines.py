"""What needs no training: the baselines to beat, which belong to a modality and so to a model's config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.ndimage import median_filter

from .cases import Array


class Baseline(Protocol):
    """What a baseline is: a map by its name."""

    name: str
    on_networks_grid: bool
    """Whether it takes the image as the networks see it, or on the input's own grid."""

    def __call__(self, image: Array, foreground: Array) -> Array:
        """A map, float32 ``(H, W, D)``, of a normalised image ``(C, H, W, D)`` and its foreground, bool ``(H, W, D)``."""


class Brightness:
    """The intensity of a channel itself.

    Args:
        channels: the names of the image's channels; with that of its own it is named in tables.
        channel: which of them, from 0.
    """

    on_networks_grid = False

    def __init__(self, channels: Sequence[str], channel: int = 0) -> None:
        self.name = f"{channels[channel]} intensity"
        self.channel = channel

    def __call__(self, image: Array, foreground: Array) -> Array:
        return _checked(image, foreground)[self.channel]


class BrighterThanMedian:
    """How much a channel is above the median of its slice's foreground, 0 where it isn't and outside.

    Args:
        channels: see `Brightness`.
        channel: likewise.
        median_size: side of a median filter over each slice afterwards, in pixels, odd; 1 is none.
    """

    on_networks_grid = False

    def __init__(self, channels: Sequence[str], channel: int = 0, median_size: int = 1) -> None:
        size = f", {median_size}x{median_size} median" if median_size > 1 else ""
        self.name = f"{channels[channel]} minus slice median{size}"
        self.channel = channel
        self.median_size = median_size

    def __call__(self, image: Array, foreground: Array) -> Array:
        x = _checked(image, foreground)[self.channel]
        above = np.zeros_like(x)
        for z in np.flatnonzero(foreground.any(axis=(0, 1))):
            above[..., z] = np.clip(x[..., z] - np.median(x[..., z][foreground[..., z]]), 0, None) * foreground[..., z]
        if self.median_size == 1:
            return above
        filtered: Array = median_filter(above, size=(self.median_size, self.median_size, 1), mode="constant")
        return filtered * foreground


def _checked(image: Array, foreground: Array) -> Array:
    if image.ndim != 4 or image.shape[1:] != foreground.shape:
        raise ValueError(
            f"image must be (C, H, W, D) and foreground (H, W, D), got {image.shape} and {foreground.shape}."
        )
    return np.asarray(image, np.float32)
