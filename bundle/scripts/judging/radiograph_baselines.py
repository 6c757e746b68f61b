"""Baselines of radiographs, where brightness alone says little: on the networks' grid, see `baselines.Baseline`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .. import HEALTHY
from .cases import Array


class LabelledSlices(Protocol):
    """What `learning.datasets.SliceDataset` is."""

    labels: list[int]

    def __getitem__(self, drawn: int) -> dict[str, Any]:
        """With ``image`` ``(C, H, W)``."""


class AboveHealthyMean:
    """How much the first channel is above the mean of the healthy training slices, 0 where it isn't and outside.

    Args:
        training: slices of which those labelled healthy are averaged.

    Raises:
        ValueError: none of them is healthy.
    """

    name = "intensity above the healthy mean"
    on_networks_grid = True

    def __init__(self, training: LabelledSlices) -> None:
        healthy = [n for n, label in enumerate(training.labels) if label == HEALTHY]
        if not healthy:
            raise ValueError("no training slice is labelled healthy, so there is no healthy mean.")
        total = sum(training[n]["image"][0].double() for n in healthy)
        self.mean = (total / len(healthy)).float().numpy()

    def __call__(self, image: Array, foreground: Array) -> Array:
        a: Array = np.clip(image[0] - self.mean[..., None], 0, None).astype(np.float32) * foreground
        return a


class LowestThird:
    """A blind guess: 1 in the third of the foreground that is nearest to the feet, 0 elsewhere, whatever the image shows.

    Slices are ``(H, W)`` with the second axis to the feet, as of a radiograph.
    """

    name = "lowest third, a blind guess"
    on_networks_grid = True

    def __call__(self, image: Array, foreground: Array) -> Array:
        a = np.zeros(foreground.shape, np.float32)
        for z in np.flatnonzero(foreground.any(axis=(0, 1))):
            rows = np.flatnonzero(foreground[..., z].any(axis=0))
            begin = rows[0] + round((rows[-1] + 1 - rows[0]) * 2 / 3)
            a[:, begin:, z] = foreground[:, begin:, z]
        return a
