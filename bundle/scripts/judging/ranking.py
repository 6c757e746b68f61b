"""Ranks of very many map values, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .cases import Array, Domain, SliceCase

NUM_KEYS = 2**16
"""So many values float16 has."""


def quotient(numerator: Array, denominator: Array) -> Array:
    """Their quotient, NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.true_divide(numerator, denominator))


def keys(values: Array) -> Array:
    """The place of each value among all of float16, uint16: a larger value never has a smaller key."""
    limit = np.finfo(np.float16).max
    bits = (np.clip(values, -limit, limit).astype(np.float16) + np.float16(0)).view(np.uint16)  # -0 is 0
    return np.where(bits & 0x8000, ~bits, bits | 0x8000)


def above(key: int) -> float:
    """The lowest threshold that leaves out all values of a key: the middle between its value and the next."""
    bits = np.array([key, key + 1], np.uint16)
    low, high = np.where(bits & 0x8000, bits & 0x7FFF, ~bits).view(np.float16).astype(float)
    return float((low + high) / 2)


@dataclass
class PixelCounts:
    """How many healthy pixels and how many of lesions have each value of a map, of slices whose lesion is known.

    Values are told apart by float16 of their distance from the first slice's lowest: two that lie less than 0.1 % of that from
    one another count as equal.
    """

    counts: Array = field(default_factory=lambda: np.zeros((NUM_KEYS, 2), np.int64))
    lowest: np.float32 | None = None

    def keys(self, values: Array) -> Array:
        """Of values ``(P,)``, see `keys`."""
        if self.lowest is None:
            self.lowest = np.float32(values.min(initial=np.inf)) if values.size else np.float32(0)
        return keys(values - self.lowest)

    def add(self, values: Array, truth: Array) -> None:
        """A slice's values ``(P,)`` with their truth, bool."""
        places = 2 * self.keys(values).astype(np.int64) + truth
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)

    @property
    def lesion(self) -> bool:
        """Whether any pixel is of a lesion."""
        return bool(self.counts[:, 1].any())

    def ranks(self) -> dict[str, float]:
        """See `ranks`, and ``threshold``: the lowest that gives the best Dice, -inf if that is everything."""
        used = np.flatnonzero(self.counts.sum(axis=1))[::-1]
        negative, positive = self.counts[used].T.astype(float)
        result = {name: float(value[0]) for name, value in ranks(negative[None], positive[None]).items()}
        tp = positive.cumsum()
        best = int(quotient(2 * tp, tp + negative.cumsum() + tp[-1]).argmax())
        lowest = float(self.lowest or 0)
        return result | {"threshold": lowest + above(int(used[best + 1])) if best + 1 < len(used) else -np.inf}

    def bins(self, number: int) -> Array:
        """A bin for each key, int ``(NUM_KEYS,)``, the first for the highest values: up to 2 `number`, by quantiles.

        Args:
            number: quantiles of each class.
        """
        lowest = int(np.flatnonzero(self.counts.sum(axis=1))[0])
        begins = [[lowest, lowest + 1]]  # the lowest value is often that of most pixels, so it has a bin of its own
        for of_class in self.counts.T:
            if of_class.any():
                wanted = np.maximum(np.ceil(np.linspace(0, 1, number) * of_class.sum()), 1)
                begins.append(np.searchsorted(of_class.cumsum(), wanted))
        edges = np.unique(np.concatenate(begins))
        rising = np.maximum(np.searchsorted(edges, np.arange(NUM_KEYS), side="right") - 1, 0)
        return len(edges) - 1 - rising


def pixel_counts(cases: Iterable[SliceCase], method: str, domain: Domain) -> PixelCounts:
    """Of a method's map within the domain."""
    found = PixelCounts()
    for case in cases:
        truth = case.lesion(domain)
        if truth is not None:
            found.add(case.values(method, domain), truth)
    return found


def ranks(negative: Array, positive: Array) -> dict[str, Array]:
    """AUROC, AP and best Dice ``(R,)`` of `R` histograms whose bins fall, with scikit-learn's definitions; one bin's are ties.

    Args:
        negative: counts of healthy pixels or images, or sums of their weights, ``(R, bins)``.
        positive: likewise of the others.
    """
    fp, tp = negative.cumsum(axis=1), positive.cumsum(axis=1)
    num_negative, num_positive = fp[:, -1], tp[:, -1]
    before = (negative * (tp - positive / 2)).sum(axis=1)
    precision = tp / np.maximum(tp + fp, 1)
    overlap = quotient(2 * tp, tp + fp + num_positive[:, None])
    return {
        "auroc": quotient(before, num_negative * num_positive),
        "ap": quotient((positive * precision).sum(axis=1), num_positive),
        "dice": np.where(num_positive > 0, overlap.max(axis=1), np.nan),
    }
