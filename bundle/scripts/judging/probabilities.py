"""Whether p(diseased) says how often a slice is diseased, and the temperature at which it does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from .cases import SliceCase
from .readings import P_DISEASED, probabilities

NUM_BINS = 15
"""Of p, equally wide (Guo et al. 2017)."""
TEMPERATURES = (0.2, 10.0)
"""The range in which a temperature is sought."""


class Bin(NamedTuple):
    """Slices whose p(diseased) lies in one of `NUM_BINS`: their number, their mean p, and the share that is diseased."""

    slices: int
    probability: float
    diseased: float

    @property
    def name(self) -> str:
        """From where to where p goes."""
        number = min(int(self.probability * NUM_BINS), NUM_BINS - 1)
        return f"{number / NUM_BINS:.2f}-{(number + 1) / NUM_BINS:.2f}"


def reliability(probability: Sequence[float], diseased: Sequence[int]) -> list[Bin]:
    """The reliability curve: the bins that hold a slice, from the lowest p on.

    Args:
        probability: p(diseased) of each slice.
        diseased: its label.
    """
    p, truth = np.asarray(probability, float), np.asarray(diseased, float)
    bins = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    return [Bin(int(n.sum()), float(p[n].mean()), float(truth[n].mean())) for n in (bins == b for b in np.unique(bins))]


def calibration_error(probability: Sequence[float], diseased: Sequence[int]) -> float:
    """The expected calibration error: how far the mean p of a bin is from the share of diseased slices in it, on average.

    From 0 to 1; the bins of `reliability` count by their slices.
    """
    curve = reliability(probability, diseased)
    return sum(b.slices * abs(b.probability - b.diseased) for b in curve) / sum(b.slices for b in curve)


def negative_log_likelihood(probability: torch.Tensor, diseased: torch.Tensor) -> float:
    """The mean of -log p(label), of probabilities not nearer to 0 and 1 than 1e-6, both ``(N,)``."""
    p = probability.double().clamp(1e-6, 1 - 1e-6)
    return float(torch.nn.functional.binary_cross_entropy(p, diseased.double()))


def fitted_temperature(
    cases: Iterable[SliceCase], logits: Sequence[tuple[torch.Tensor, torch.Tensor | None]]
) -> float | None:
    """The temperature at which p(diseased), as the inferer gives it, makes the labels likeliest.

    None where none does: all slices are of one class, or so few or easy that the likeliest lies beyond `TEMPERATURES`.

    Args:
        cases: slices, one volume after another.
        logits: of each of these volumes, and the slices that count for their neighbours, see `readings.probabilities`.
    """
    labels: dict[str, dict[int, int]] = {}
    for case in cases:
        labels.setdefault(case.volume, {})[case.slice] = case.diseased
    diseased = torch.tensor([label for of_volume in labels.values() for label in of_volume.values()])
    if len(diseased.unique()) < 2:
        return None

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        p = [
            probabilities(of_volume, temperature, counted)[list(labels_of)]
            for (of_volume, counted), labels_of in zip(logits, labels.values(), strict=True)
        ]
        return negative_log_likelihood(torch.cat(p), diseased)

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    near_end = min(abs(best.x - end) for end in np.log(TEMPERATURES)) < 0.01
    return None if near_end else float(np.exp(best.x))


def of_cases(cases: Iterable[SliceCase]) -> tuple[list[float], list[int]]:
    """p(diseased) and label of every slice."""
    pairs = [(case.scores[P_DISEASED], case.diseased) for case in cases]
    return [p for p, _ in pairs], [diseased for _, diseased in pairs]
