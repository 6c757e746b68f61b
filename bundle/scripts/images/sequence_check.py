"""Which MR sequence the intensities within a brain are of."""

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

MODEL: dict[str, Any] = json.loads(Path(__file__).with_name("sequence_check.json").read_text())
"""A logistic regression on `sequence_features`: ``sequences``, ``mean`` and ``scale`` of the features, ``coefficients``,
``intercept`` and the least probability at which a sequence is believed, ``threshold``. ``benchmarks/sequence_check.py``
chose it and measured its errors."""


QUANTILES = (1, 2, 5, 10, 25, 40, 60, 75, 90, 95, 98, 99)


DEPTHS = (0.0, 5.0, 10.0, 20.0, 30.0, np.inf)


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

    In five-fold cross-validation over patients of TCGA-LGG, BraTS and others it warned of 2 of 148 FLAIR volumes,
    and of 281 of 285 of T1, T1 with contrast and T2: see ``benchmarks/sequence_check.json``.

    Args:
        keys: one image with a channel a sequence, on the networks' grid.
        sequences: of the channels, such as ["FLAIR"]; one that `MODEL` doesn't know is not looked at.
        mask_key: the brain's coverage in [0, 1].
    """

    def __init__(self, keys: KeysCollection, sequences: Sequence[str], mask_key: str = "foreground") -> None:
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
