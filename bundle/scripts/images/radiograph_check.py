"""Whether a picture looks like the radiographs that a model learned from."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.transforms import MapTransform

MODEL: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
"""The mean training radiograph, ``mean``, rows of whole numbers, and the least correlation with it that is not warned of,
``threshold``. ``benchmarks/radiograph_check.py`` chose both and measured their errors."""


def correlation(image: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of pictures with another one, after they are averaged to its size.

    Args:
        image: ``(N, H, W)``.
        mean: ``(h, w)``.

    Returns:
        ``(N,)``, in [-1, 1]; 0 of a picture that is the same everywhere.
    """
    small = F.adaptive_avg_pool2d(image[:, None].float(), (mean.shape[0], mean.shape[1]))[:, 0].flatten(1)
    a, b = small - small.mean(dim=1, keepdim=True), (mean - mean.mean()).flatten()
    return (a @ b) / (a.norm(dim=1) * b.norm()).clamp_min(1e-6)


class CheckRadiographd(MapTransform):
    """Add a warning where a picture does not look like an upright frontal radiograph of a chest that shows air dark.

    A negative, a picture in a bright frame, one that lies on its side, or one of something else gets a p(diseased) and a mask
    all the same. ``benchmarks/radiograph_check.json`` says how many of each are warned of.

    Args:
        keys: images ``(1, X, Y, 1)`` on the networks' grid, in the order left, posterior, superior.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        mean = torch.tensor(MODEL["mean"], dtype=torch.float32)
        for key in self.key_iterator(d):
            found = correlation(d[key].as_tensor()[0].movedim(-1, 0).mT, mean)
            if float(found.min()) < MODEL["threshold"]:
                d.setdefault("warnings", []).append(
                    "This does not look like a frontal radiograph of a chest, upright, unframed and with air dark. The result "
                    "is probably wrong."
                )
        return d
