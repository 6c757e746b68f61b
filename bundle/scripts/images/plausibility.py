"""Whether an image can be what the networks were trained on: the size of the brain, and its signal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from .air import in_plane_border
from .geometry import slice_numbers

BRAIN_ML = (600.0, 2200.0)
"""Volumes of a brain that are believed. HD-BET and BraTS give adults 1000 to 1900 ml."""


BRAIN_CM2 = (60.0, 290.0)
"""Likewise of its largest axial slice, which tells where the image holds a part of the brain only."""


MAX_PARTIAL = 15
"""Slices of such an image. More that add up to less than a brain are thinner by their header than any protocol's."""


class CheckBraind(MapTransform):
    """Add warnings where a brain, on the image's own grid, is not as brains are.

    Looked at are its volume, slices without signal, saturation, and a background as bright as the brain.

    Args:
        keys: images, axial, with zero where no signal is.
        mask_key: the brain.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "foreground") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        warnings: list[str] = d.setdefault("warnings", [])
        brain = d[self.mask_key].as_tensor()[0].numpy() > 0
        image: MetaTensor = d[self.keys[0]]
        warnings += size_warnings(brain, image.pixdim.tolist())
        numbers = slice_numbers(image)
        for key in self.key_iterator(d):
            for x in d[key].as_tensor().numpy():
                warnings += _signal(x, brain, numbers)
        d["warnings"] = list(dict.fromkeys(warnings))
        return d


def size_warnings(brain: np.ndarray, pixdim: Sequence[float]) -> list[str]:
    """A sentence where a brain is too small or too large for an adult's.

    Args:
        brain: bool ``(X, Y, Z)``, axial, not all false.
        pixdim: voxel size in mm.
    """
    area = brain.sum(axis=(0, 1)) * pixdim[0] * pixdim[1] / 100
    ml = float(area.sum()) * pixdim[2] / 10
    # a stack of few slices that cuts the brain at an end may well hold a part of it only
    whole = max(area[0], area[-1]) < 0.5 * area.max() or (area > 0).sum() > MAX_PARTIAL
    large = ml > BRAIN_ML[1] or area.max() > BRAIN_CM2[1]
    if large or (ml < BRAIN_ML[0] if whole else area.max() < BRAIN_CM2[0]):
        return [
            f"The brain measures {ml:.0f} ml, its largest slice {area.max():.0f} cm2: too {'large' if large else 'small'} "
            "for an adult. Are the voxel sizes in the header right? The result is probably wrong."
        ]
    return []


def _signal(x: np.ndarray, brain: np.ndarray, numbers: Sequence[int]) -> list[str]:
    found = []
    inside = x[brain]
    median = float(np.median(inside))
    used = np.flatnonzero(brain.any(axis=(0, 1)))
    empty = [numbers[z] for z in range(used[0], used[-1] + 1) if x[:, :, z].min() == x[:, :, z].max()]
    if empty:
        found.append(f"Slices without any signal lie within the brain ({', '.join(map(str, sorted(empty)))}).")
    saturated = float((inside == inside.max()).mean())
    if saturated > 0.05 and inside.min() < inside.max():
        found.append(f"{saturated:.0%} of the brain has the highest value of all: the image is saturated.")
    air = in_plane_border(x)
    if not brain[0].any() and float(np.median(air)) > 0.6 * median:
        found.append(
            "The background is about as bright as the brain: the contrast is inverted, or an offset was added. "
            "The result is probably wrong."
        )
    return found
