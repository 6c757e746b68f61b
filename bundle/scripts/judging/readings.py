"""Counterfactuals read in every way, on labelled slices."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from ..images.geometry import axial, axial_index, slice_numbers, to_grid
from ..images.masks import load_mask
from ..images.normalization import BACKGROUND
from ..method.maps import anomaly_map, combined_map, slice_score
from ..method.slices import Findings
from .baselines import baselines
from .cases import SliceCase

logger = logging.getLogger(__name__)


OURS = "counterfactual and student, gated by p(diseased)"


COUNTERFACTUAL = "counterfactual alone, gated by p(diseased)"


PAPER = "counterfactual, sum |x - x_healthy| (the paper's map)"


BASELINE = "FLAIR minus slice median, 3x3 median"


Maps = dict[str, torch.Tensor]


def readings(
    x: torch.Tensor, found: Findings, foreground: torch.Tensor, polarity: str | Sequence[str], median_size: int
) -> tuple[Maps, Maps]:
    """Counterfactuals read in every way: maps ``(N, 1, H, W)`` and image-level scores ``(N,)``.

    Args:
        x: slices, ``(N, C, H, W)``.
        found: ``counterfactual`` and ``probability``, and ``student`` for `OURS`, see `method.maps.combined_map`.
        foreground: bool ``(N, 1, H, W)``.
        polarity: see `method.maps.anomaly_map`; `PAPER` has its own.
        median_size: likewise.
    """
    probability = found["probability"]
    alone: Findings = {"counterfactual": found["counterfactual"], "probability": probability}
    maps = {OURS: combined_map(x, found, foreground, polarity, median_size)} if "student" in found else {}
    maps[COUNTERFACTUAL] = combined_map(x, alone, foreground, polarity, median_size)
    maps[PAPER] = anomaly_map(x, found["counterfactual"], foreground, "both", 1)
    weights = {name: torch.ones_like(probability) if name == PAPER else probability for name in maps}
    return maps, {name: slice_score(a, foreground, weights[name]) for name, a in maps.items()}


def cases_of(
    item: Mapping[str, Any], volume: Mapping[Any, Any], maps: Maps, scores: Maps, healthy: torch.Tensor | None = None
) -> list[SliceCase]:
    """Every labelled slice of a volume, with its maps and scores and those of the baselines.

    Maps are compared on the input's own grid, in the order left, posterior, superior.

    Args:
        item: with ``mask``, ``subject`` and ``label``, one a slice, -1 for slices to leave out.
        volume: what the preprocessing gave for it.
        maps: for each method ``(D, 1, H, W)`` on the grid of the preprocessed image.
        scores: for each method or classifier ``(D,)``.
        healthy: the counterfactual ``(C, H, W, D)``, for display.
    """
    image: MetaTensor = volume["image"]
    parts = [volume["foreground"].as_tensor(), *(m.movedim(0, -1) for m in maps.values())]
    if healthy is not None:
        parts.append((image.as_tensor() - healthy)[:1])

    original: MetaTensor = volume["input_image"]
    affine = torch.as_tensor(original.affine)
    grid = to_grid(torch.cat(parts), image.affine, affine, original.shape[1:])
    on_input = axial(MetaTensor(grid, affine=affine)).as_tensor().numpy()
    inside = on_input[0] >= 0.5
    scale = float(image.meta["intensity_scale"][0])
    normalised = np.clip(axial(original).as_tensor().numpy()[0] / scale - 1, -1, 1)
    normalised[~inside] = BACKGROUND
    truth = axial(load_mask(item["mask"], original)).as_tensor().numpy()[0]

    above, above_scores = baselines(normalised, inside)
    on_grid = {name: on_input[1 + i] for i, name in enumerate(maps)} | above
    row = {n: i for i, n in enumerate(slice_numbers(image))}
    cases = []
    for n, label in enumerate(item["label"]):
        z = axial_index(n, affine, truth.shape[2])
        if label < 0 or not inside[..., z].any():
            if label >= 0:
                logger.warning("%s, slice %d: no foreground was found in it, left out.", item["subject"], n)
            continue
        case = SliceCase(item["subject"], n, normalised[..., z], inside[..., z], truth[..., z], label)
        case.maps = {name: m[..., z].astype(np.float32) for name, m in on_grid.items()}
        case.scores = {name: float(s[row[n]]) for name, s in scores.items()}
        case.scores |= {name: float(s[z]) for name, s in above_scores.items()}
        if healthy is not None:
            case.counterfactual = normalised[..., z] - on_input[-1][..., z]
        cases.append(case)
    return cases
