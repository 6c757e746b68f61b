"""Intensities as a scanner would have given them: no holes in the air, a zero where no signal is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..errors import InvalidImageError
from .air import in_plane_border, stripped_foreground


def _padding(x: np.ndarray) -> np.ndarray:
    """Where a channel has a padding value: the lowest or highest of many voxels, far from all others."""
    padding = np.zeros(x.shape, bool)
    finite = np.isfinite(x)
    for sign in (1, -1):
        values = sign * x[finite & ~padding]
        lowest = values.min()
        rest = values[values > lowest]
        if rest.size < 2 or values.size - rest.size < 0.01 * x.size:
            continue
        nearest, high = rest.min(), np.percentile(rest, 99)
        # a value below 0 under an image that begins at 0, or one that is further off than the image is wide
        if (sign == 1 and lowest < 0 <= nearest) or (high > nearest and nearest - lowest > 2 * (high - nearest)):
            padding |= x == sign * lowest
    return padding


def _missing(x: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Where a channel holds no measurement: not finite, or a spike."""
    values = np.abs(x[np.isfinite(x) & ~padding])
    # one of a thousand voxels lies in the brightest vessels; none is twenty times as bright as that
    limit = 20 * np.percentile(values, 99.9)
    return ~(np.abs(x) <= limit) & ~padding if limit > 0 else ~np.isfinite(x)


def without_spikes(x: torch.Tensor) -> torch.Tensor:
    """An image ``(C, X, Y, Z)`` with NaN in place of what is finite and no measurement, before it is interpolated."""
    array = x.numpy().copy()
    for channel in array:
        channel[_missing(channel, _padding(channel)) & np.isfinite(channel)] = np.nan
    return torch.from_numpy(array)


class RepairIntensitiesd(MapTransform):
    """Make an image finite and put its zero where no signal is; tell a skull-stripped image from a whole head.

    NaN, infinity, padding values and spikes become background. Where air is not at 0, as after an offset or a z-score, its
    level is taken off; that of each channel is kept in the image's meta as ``intensity_level``. Adds ``missing``, bool ``(1, X,
    Y, Z)``, what was not finite or a spike, and ``stripped``, likewise, where the image was stripped before, see
    `stripped_foreground`.

    Args:
        keys: images, axial.

    Raises:
        InvalidImageError: the image is CT, a mask or a label map, unless the item allows any image.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        warnings: list[str] = d.setdefault("warnings", [])
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            name = image.meta["filename_or_obj"]
            array = image.as_tensor().numpy().copy()
            padding = np.stack([_padding(x) for x in array])
            missing = np.stack([_missing(x, p) for x, p in zip(array, padding, strict=True)])
            for x, absent in zip(array, padding | missing, strict=True):
                finite = x[np.isfinite(x)]
                what = "a mask or a label map" if is_label_map(finite) else "a CT image" if is_ct(x) else None
                if what:
                    if not d.get("allow_any_image"):
                        raise InvalidImageError(f"{name}: is {what}; allowed is an MR image of a head.")
                    warnings.append(f"This is {what}, not an MR image: the result means nothing.")
                if np.isinf(x).any():
                    warnings.append(f"{int(np.isinf(x).sum())} voxels are infinite. They were taken as background.")
                x[absent] = min(0.0, float(x[~absent].min(initial=0)))
            pixdim = image.pixdim.tolist()
            foreground = stripped_foreground(array[0], pixdim)
            levels = []
            for x in array:
                level = _zero(x, foreground, warnings)
                levels.append(level)
                if foreground is not None:
                    x[~foreground] = level
                x -= level
            d[key] = MetaTensor(torch.from_numpy(array), meta=image.meta)
            d[key].meta["intensity_level"] = torch.tensor(levels)
            d["missing"] = torch.from_numpy(missing.any(axis=0))[None]
            if foreground is not None:
                d["stripped"] = torch.from_numpy(foreground)[None]
        d["warnings"] = list(dict.fromkeys(warnings))
        return d


def is_label_map(values: np.ndarray) -> bool:
    """Whether voxels hold labels: two values, or few small whole numbers."""
    some = np.unique(values[:: max(1, values.size // 100_000)])
    if len(some) > 64:
        return False
    distinct = np.unique(values)
    small = len(distinct) <= 64 and distinct[0] >= 0 and distinct[-1] < 100
    return len(distinct) <= 2 or (small and bool((distinct % 1 == 0).all()))


def is_ct(x: np.ndarray) -> bool:
    """Whether ``(X, Y, Z)`` is CT, where by definition water is 1000 above air; soft tissue is a little more, all alike."""
    above = x[np.isfinite(x)] - np.median(in_plane_border(np.nan_to_num(x)))
    body = above[above > 200]
    if body.size < 0.01 * x.size:
        return False
    low, median, high = np.percentile(body, [30, 50, 70])
    return bool(990 < median < 1090 and high - low < 100)


def _zero(x: np.ndarray, foreground: np.ndarray | None, warnings: list[str]) -> float:
    """The value at which a channel has no signal, with a warning where that is not 0 or not known."""
    air = in_plane_border(x)
    if foreground is not None:
        inside = x[foreground]
        level = float(np.median(air))
        if (inside < level).mean() < 0.01:
            moved = abs(level) > 0.05 * (np.median(inside) - level)
        else:
            level, moved = float(np.percentile(inside, 0.1)), True
            warnings.append(
                "The intensities lie around 0, as after a z-score within the brain, so where no signal is can't be known. "
                "The darkest of the brain was taken for it: scores and volumes are approximate."
            )
            return level
    else:
        level = float(np.median(air))
        tissue = float(np.percentile(x, 90))
        spread = float(np.subtract(*np.percentile(air, [75, 25])))
        moved = level < tissue and (
            level < -0.05 * (tissue - level) or (level > 0.3 * tissue and spread < 0.1 * (tissue - level))
        )
    if not moved:
        return 0.0
    warnings.append(
        f"Air has the value {level:.4g} instead of 0, as after an offset or a z-score. It was taken off before the analysis."
    )
    return level
