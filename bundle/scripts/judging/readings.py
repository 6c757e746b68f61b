"""What the networks gave, read in every way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..method.maps import anomaly_map, combined_map, gate, slice_score
from ..method.slices import Findings, with_neighbours
from .baselines import Baseline
from .cases import SliceCase

OURS = "counterfactual and student, gated by p(diseased)"


COUNTERFACTUAL = "counterfactual alone, gated by p(diseased)"


STUDENT = "student alone, gated by p(diseased)"


PAPER = "counterfactual, sum |x - x_healthy| (the paper's map)"


AVERAGES = (OURS, STUDENT)
"""Means of several maps."""


P_DISEASED = "p(diseased)"


Maps = dict[str, torch.Tensor]


def shipped(methods: Sequence[str] | Mapping[str, object]) -> str:
    """The method that the bundle gives as its map: the first of these that is there."""
    return next(method for method in (OURS, COUNTERFACTUAL, STUDENT) if method in methods)


def readings(
    x: torch.Tensor, found: Findings, foreground: torch.Tensor, polarity: str | Sequence[str], median_size: int
) -> tuple[Maps, Maps]:
    """Counterfactuals and students read in every way: maps ``(N, 1, H, W)`` and image-level scores ``(N,)``.

    Args:
        x: slices, ``(N, C, H, W)``.
        found: ``probability``, and ``counterfactual``, the student's ``student`` and ``counterpart``, or all, for `OURS`, see
            `method.maps.combined_map`.
        foreground: bool ``(N, 1, H, W)``.
        polarity: see `method.maps.anomaly_map`; `PAPER` has its own.
        median_size: likewise.
    """
    probability = found["probability"]
    maps = {}
    if "student" in found and "counterfactual" in found:
        maps[OURS] = combined_map(x, found, foreground, polarity, median_size)
    if "counterfactual" in found:
        alone: Findings = {"counterfactual": found["counterfactual"], "probability": probability}
        maps[COUNTERFACTUAL] = combined_map(x, alone, foreground, polarity, median_size)
        maps[PAPER] = anomaly_map(x, found["counterfactual"], foreground, "both", 1)
    if "student" in found:
        alone = {"student": found["student"], "counterpart": found["counterpart"], "probability": probability}
        maps[STUDENT] = combined_map(x, alone, foreground, polarity, median_size)
    weights = {name: torch.ones_like(probability) if name == PAPER else probability for name in maps}
    return maps, {name: slice_score(a, foreground, weights[name]) for name, a in maps.items()}


def baseline_readings(x: torch.Tensor, foreground: torch.Tensor, baselines: Sequence[Baseline]) -> tuple[Maps, Maps]:
    """Maps and scores, as of `readings`, of the baselines that take slices as the networks see them."""
    volume, inside = x.movedim(0, -1).numpy(), foreground[:, 0].movedim(0, -1).numpy()
    maps = {
        baseline.name: torch.from_numpy(baseline(volume, inside)).movedim(-1, 0)[:, None]
        for baseline in baselines
        if baseline.on_networks_grid
    }
    return maps, {name: slice_score(a, foreground, torch.ones(len(a))) for name, a in maps.items()}


def probabilities(logits: torch.Tensor, temperature: float, counted: torch.Tensor | None = None) -> torch.Tensor:
    """p(diseased) of a volume's slices, as the inferer gives it.

    Args:
        logits: of diseased minus that of healthy, ``(D,)``, NaN where not assessed.
        temperature: see `method.slices.SliceInferer`.
        counted: see `method.slices.with_neighbours`.
    """
    return with_neighbours((logits / temperature).sigmoid(), counted)


def gated(case: SliceCase, probability: float) -> SliceCase:
    """A case whose maps and scores are `readings` at p(diseased) = 1, as they are at another."""
    kept = float(gate(torch.tensor([probability])))
    for method in (OURS, COUNTERFACTUAL, STUDENT):
        if method in case.maps:
            case.maps[method] = case.maps[method] * kept
            case.scores[method] *= kept * probability
    case.scores[P_DISEASED] = probability
    return case
