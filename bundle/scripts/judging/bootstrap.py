"""Intervals over patients.

The percentile interval of a bootstrap (Efron and Tibshirani 1993) is too narrow where patients are few. For the mean of a
normal distribution it holds the truth in 84 of 100 cases with five patients, in 87 with seven. Expanded by Student's t and the
bias of the resamples' variance it does so in 91 and 95 (Hesterberg 2015, "What teachers should know about the bootstrap"). With
fewer patients there is none. Those that a metric rests on are counted, not all: one lesion in six patients says nothing of how
much lesions differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit

from .. import DISEASED, HEALTHY
from .cases import Array, Domain, SliceCase
from .limited import HEALTHY_SLICE, limited, shares_of
from .metrics import METRICS, of_sums
from .ranking import quotient, ranks
from .scored import Scored, Scores
from .sums import Part, Sums, sums

NUM_BINS = 1024
"""Quantile bins for each of lesion and other pixels."""
AT_ONCE = 100
"""Resamples that are ranked together, as that takes memory for each bin and image."""
NUM_RESAMPLES = 1000
LEAST_PATIENTS = 5
"""A metric that rests on fewer has no interval."""
INTERVALS = f"In brackets: 95 % patient bootstrap interval, where a value rests on {LEAST_PATIENTS} patients or more."


class Resampled(NamedTuple):
    """A metric in each resample of the patients."""

    values: Array
    """``(R,)``, NaN in resamples where it is undefined."""
    patients: int
    """That it rests on: those with a lesion, a healthy slice, a box or what else it asks for; of ranks, of the rarer class."""


@dataclass
class Measured:
    """What a method reached, and in each resample of the patients."""

    values: dict[str, float]
    """See `metrics.metrics`."""
    resampled: dict[str, Resampled]
    """The metrics that rest on `LEAST_PATIENTS` or more."""

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals, see the module."""
        return {
            name: interval(*resampled)
            for name, resampled in self.resampled.items()
            if np.isfinite(resampled.values).any()
        }

    def minus(self, other: Measured, metric: str) -> tuple[float, float, float] | None:
        """The difference to another method in a metric, and its 95 % interval (low, high), on the same resampled patients.

        None where one of them has no such metric, or it rests on fewer than `LEAST_PATIENTS`.

        Raises:
            ValueError: unknown metric.
        """
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}.")
        if not (metric in self.resampled and metric in other.resampled):
            return None
        ours, others = self.resampled[metric], other.resampled[metric]
        difference = interval(ours.values - others.values, min(ours.patients, others.patients))
        return (self.values[metric] - other.values[metric], *difference)


def measured(
    cases: Iterable[SliceCase],
    method: str,
    threshold: float | None,
    domain: Domain,
    num_resamples: int | None = None,
    seed: int = 0,
) -> Measured:
    """`metrics` of a method, and the same of resamples of its patients with replacement.

    The oracle chooses its threshold anew in each resample. The map values behind ``pixel_auroc``, ``pixel_ap``,
    ``dice_oracle``, ``aupro`` and ``aupimo`` are rounded to 2.5 x `NUM_BINS` common bins in resamples, which changes these by
    about 0.001 at most; the others are exact. A patient takes 50 KiB.

    Args:
        cases: read twice.
        method: see `metrics`.
        threshold: likewise.
        domain: likewise.
        num_resamples: by default `NUM_RESAMPLES`.
        seed: of the resamples; methods of the same patients are resampled alike.

    Raises:
        ValueError: as for `metrics`.
    """
    found = sums(cases, method, threshold, domain)
    values = of_sums(found)
    index, weights = _resamples(found.scored, num_resamples, seed)
    if len(index) < LEAST_PATIENTS:
        return Measured(values, {})
    result = {name: _of_parts(parts, index, weights) for name, parts in found.parts.items()}
    if found.pixels.lesion:
        result |= _of_pixels(_histograms(cases, method, domain, found, index), weights)
        if "dice_threshold" in result:
            # what is marked in patients without a lesion counts too, but they have no Dice of their own
            result["dice_threshold"] = result["dice_threshold"]._replace(patients=result["dice_oracle"].patients)
    result |= _of_scores(found.scored, index, weights)
    return Measured(values, _enough({name: result[name] for name in values if name in result}))


def measured_scores(scored: Scored, num_resamples: int | None = None) -> Measured:
    """How well scores tell diseased slices and volumes, see `metrics`, resampled as `measured` does."""
    return Measured(scored.ranks(), _enough(_of_scores(scored, *_resamples(scored, num_resamples, seed=0))))


def measured_decisions(scored: Scored, threshold: float) -> Measured:
    """What comes of calling slices diseased whose score is above `threshold`, resampled as `measured` does.

    ``sensitivity``: the share of diseased slices that are called so; ``specificity``: the share of healthy ones that are not.
    """
    index, weights = _resamples(scored, None, 0)
    slices = scored.slices
    values, resampled = {}, {}
    for name, label in (("sensitivity", DISEASED), ("specificity", HEALTHY)):
        parts: list[Part] = [
            (subject, int((score > threshold) == (label == DISEASED)), 1)
            for subject, diseased, score in zip(slices.subject, slices.diseased, slices.score, strict=True)
            if diseased == label
        ]
        if parts:
            values[name] = sum(right for _, right, _ in parts) / len(parts)
            resampled[name] = _of_parts(parts, index, weights)
    return Measured(values, _enough(resampled))


def _resamples(scored: Scored, num_resamples: int | None, seed: int) -> tuple[dict[str, int], Array]:
    """The number of each patient, and how often each is in each resample, ``(R, patients)``."""
    names = sorted(set(scored.slices.subject))
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), num_resamples or NUM_RESAMPLES
    )
    return {name: n for n, name in enumerate(names)}, drawn


def _enough(resampled: dict[str, Resampled]) -> dict[str, Resampled]:
    return {name: metric for name, metric in resampled.items() if metric.patients >= LEAST_PATIENTS}


def _of_parts(parts: Iterable[Part], index: dict[str, int], weights: Array) -> Resampled:
    """A quotient of sums; it rests on the patients with a denominator."""
    of_subject = np.zeros((len(index), 2))
    for subject, *part in parts:
        of_subject[index[subject]] += part
    return Resampled(quotient(*(weights @ of_subject).T), np.count_nonzero(of_subject[:, 1]))


def _of_scores(scored: Scored, index: dict[str, int], weights: Array) -> dict[str, Resampled]:
    result: dict[str, Resampled] = {}
    for what, scores in (("image", scored.slices), ("volume", scored.volumes)):
        if len(set(scores.diseased)) > 1:
            of_class = set(zip(scores.diseased, scores.subject, strict=True))
            patients = min(sum(label == one for label, _ in of_class) for one in (HEALTHY, DISEASED))
            found = _of_images(scores, index, weights).items()
            result |= {f"{what}_{name}": Resampled(values, patients) for name, values in found}
    return result


def _histograms(cases: Iterable[SliceCase], method: str, domain: Domain, found: Sums, index: dict[str, int]) -> Array:
    """Of each subject, counts of pixels without and with lesion, and sums of shares, ``(subjects, bins, 5)``; the bins fall."""
    bins = found.pixels.bins(NUM_BINS)
    histograms = np.zeros((len(index), int(bins.max() + 1), 5), np.float32)
    for case in cases:
        truth = case.lesion(domain)
        if truth is not None:
            binned = bins[found.pixels.keys(case.values(method, domain))]
            columns = np.concatenate([np.stack([~truth, truth], 1), shares_of(case, domain)], 1)
            for column, values in enumerate(columns.T):
                histograms[index[case.subject], :, column] += np.bincount(binned, values, minlength=histograms.shape[1])
    return histograms


def _of_pixels(histograms: Array, weights: Array) -> dict[str, Resampled]:
    """What map values are ranked for, in each resample; it rests on the patients with a lesion."""
    with_lesion, with_healthy = (int(histograms[..., n].any(axis=1).sum()) for n in (1, 2 + HEALTHY_SLICE))
    rests_on = {"aupimo": min(with_lesion, with_healthy)}
    parts = []
    for some in np.split(weights, range(AT_ONCE, len(weights), AT_ONCE)):
        resampled = np.tensordot(some.astype(float), histograms, 1)
        negative, positive = resampled[..., 0], resampled[..., 1]
        ranked = ranks(negative, positive)
        found = {"dice_oracle": ranked["dice"], "pixel_auroc": ranked["auroc"], "pixel_ap": ranked["ap"]}
        parts.append(found | limited(negative, resampled[..., 2:]))
    return {
        name: Resampled(np.concatenate([part[name] for part in parts]), rests_on.get(name, with_lesion))
        for name in parts[0]
    }


def _of_images(scores: Scores, index: dict[str, int], weights: Array) -> dict[str, Array]:
    """AUROC and AP in each resample, exactly."""
    order = np.argsort(-np.array(scores.score), kind="stable")
    begins = np.flatnonzero(np.diff(np.array(scores.score)[order], prepend=np.inf))
    diseased = np.array(scores.diseased)[order]
    subject = np.array([index[s] for s in scores.subject])[order]
    parts = []
    for some in np.split(weights, range(AT_ONCE, len(weights), AT_ONCE)):
        of_image = some[:, subject].astype(float)
        found = ranks(*(np.add.reduceat(of_image * is_it, begins, axis=1) for is_it in (1 - diseased, diseased)))
        parts.append(found)
    return {name: np.concatenate([part[name] for part in parts]) for name in ("auroc", "ap")}


def interval(values: Array, patients: int) -> tuple[float, float]:
    """The 95 % interval of what is finite of resampled values ``(R,)``, see the module."""
    tail = 100 * float(ndtr(stdtrit(patients - 1, 0.025) * np.sqrt(patients / (patients - 1))))
    low, high = np.percentile(values[np.isfinite(values)], [tail, 100 - tail])
    return float(low), float(high)
