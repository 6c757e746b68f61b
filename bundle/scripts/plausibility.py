"""Whether an image can be what the networks were trained on: the size of the brain, its signal, its sequence."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from .geometry import slice_numbers
from .intensities import in_plane_border

MODEL: dict[str, Any] = json.loads(Path(__file__).with_name("sequence_check.json").read_text())
"""A logistic regression on `sequence_features`: ``sequences``, ``mean`` and ``scale`` of the features, ``coefficients``,
``intercept`` and the least probability at which a sequence is believed, ``threshold``. ``benchmarks/sequence_check.py``
chose it and measured its errors."""

QUANTILES = (1, 2, 5, 10, 25, 40, 60, 75, 90, 95, 98, 99)
DEPTHS = (0.0, 5.0, 10.0, 20.0, 30.0, np.inf)
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

    def __init__(self, keys: KeysCollection, mask_key: str = "brain") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        warnings: list[str] = d.setdefault("warnings", [])
        brain = d[self.mask_key].as_tensor()[0].numpy() > 0
        image: MetaTensor = d[self.keys[0]]
        warnings += _size(brain, image.pixdim.tolist())
        numbers = slice_numbers(image)
        for key in self.key_iterator(d):
            for x in d[key].as_tensor().numpy():
                warnings += _signal(x, brain, numbers)
        d["warnings"] = list(dict.fromkeys(warnings))
        return d


def _size(brain: np.ndarray, pixdim: Sequence[float]) -> list[str]:
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


def sequence_features(x: np.ndarray, coverage: np.ndarray, pixdim: Sequence[float]) -> np.ndarray:
    """What tells FLAIR, T1, T1 with contrast and T2 apart, whatever the scanner's scale.

    All are ratios to the brain's median: `QUANTILES` of the brain, medians at `DEPTHS` mm below its surface, correlation
    with the depth, skewness, and the 1st, 5th, 95th and 99th percentile more than 20 mm deep, where the ventricles lie.

    Args:
        x: ``(H, W, D)`` on the networks' grid, zero where no signal is.
        coverage: of the brain, in [0, 1]. Slices with less than half of its largest area are left out.
        pixdim: in mm.

    Returns:
        float64 ``(23,)``.
    """
    inside = coverage >= 0.5
    area = inside.sum(axis=(0, 1))
    slices = np.flatnonzero(area >= 0.5 * area.max())
    x, coverage, inside = (np.asarray(v)[:, :, slices] for v in (x, coverage, inside))
    depth = np.stack(
        [
            ndimage.distance_transform_edt(np.pad(inside[:, :, z], 1), sampling=pixdim[:2])[1:-1, 1:-1]
            for z in range(inside.shape[2])
        ],
        axis=2,
    )
    chosen = coverage > 0.95
    values, depths = x[chosen] / np.median(x[inside]), depth[chosen]
    rings = [values[(depths > a) & (depths <= b)] for a, b in zip(DEPTHS[:-1], DEPTHS[1:], strict=True)]
    clipped = values.clip(0, 3)
    deviation = float(clipped.std()) or 1.0
    correlation = np.mean((clipped - clipped.mean()) * (depths - depths.mean())) / (deviation * (depths.std() or 1.0))
    skewness = np.mean((clipped - clipped.mean()) ** 3) / deviation**3
    deep = values[depths > 20]
    return np.array(
        [
            *np.percentile(values, QUANTILES),
            *(np.median(ring) if ring.size else 1.0 for ring in rings),
            correlation,
            skewness,
            *(np.percentile(deep, (1, 5, 95, 99)) if deep.size > 50 else np.ones(4)),
        ]
    )


def sequence_probabilities(features: np.ndarray) -> dict[str, float]:
    """How probable each sequence of `MODEL` is, by `sequence_features`; they sum to 1."""
    z = ((features - MODEL["mean"]) / MODEL["scale"]).clip(-5, 5)
    logits = np.asarray(MODEL["coefficients"]) @ z + MODEL["intercept"]
    p = np.exp(logits - logits.max())
    return dict(zip(MODEL["sequences"], (p / p.sum()).tolist(), strict=True))


class CheckSequenced(MapTransform):
    """Add a warning where the intensities within the brain are not those of the model's sequences.

    By five-fold cross-validation over patients of TCGA-LGG, BraTS and others it warns of 1 to 2 % of FLAIR, and
    of 94 to 99 % of T1, T1 with contrast and T2: see ``benchmarks/sequence_check.json``.

    Args:
        keys: one image with a channel a sequence, on the networks' grid.
        sequences: of the channels, such as ["FLAIR"]; one that `MODEL` doesn't know is not looked at.
        mask_key: the brain's coverage in [0, 1].
    """

    def __init__(self, keys: KeysCollection, sequences: Sequence[str], mask_key: str = "brain") -> None:
        super().__init__(keys)
        self.sequences = tuple(sequences)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        coverage = d[self.mask_key].as_tensor()[0].numpy()
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            for x, wanted in zip(image.as_tensor().numpy(), self.sequences, strict=False):
                inside = x[coverage >= 0.5]
                if wanted not in MODEL["sequences"] or not inside.size or np.median(inside) <= 0:
                    continue
                p = sequence_probabilities(sequence_features(x, coverage, image.pixdim.tolist()))
                if p[wanted] < MODEL["threshold"]:
                    likely = max(p, key=lambda name: p[name])
                    d.setdefault("warnings", []).append(
                        f"This does not look like {wanted} but like {likely}. The result is probably wrong."
                    )
        return d
