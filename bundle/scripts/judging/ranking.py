"""Ranks of very many map values, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .cases import Array, Domain, SliceCase
from .limited import HEALTHY_SLICE, limited

MANTISSA = 13
"""Bits by which values are told apart: two that lie nearer than 0.012 % to one another count as equal."""
SMALLEST, OCTAVES = 2.0**-20, 28
"""Nearer to 0 than the one, values count as 0; so many doublings above it they count as infinite."""
NUM_KEYS = 2 * OCTAVES << MANTISSA
ZERO = NUM_KEYS // 2
"""The key of 0; those of negative values are lower."""


def quotient(numerator: Array, denominator: Array) -> Array:
    """Their quotient, NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.true_divide(numerator, denominator))


def keys(values: Array) -> Array:
    """The place of each value on a floating-point grid, int32 from 0 to `NUM_KEYS`: a larger value never has a smaller key.

    Args:
        values: float32.
    """
    sizes = (np.abs(values).view(np.int32) - np.float32(SMALLEST).view(np.int32)) >> (23 - MANTISSA)
    sizes = np.clip(sizes, 0, ZERO - 1)
    return np.where(values < 0, ZERO - 1 - sizes, ZERO + sizes)


def above(key: int) -> float:
    """The threshold that leaves out all values of a key, and no larger ones."""
    size = ZERO - 1 - key if key < ZERO else key - ZERO + 1  # the end of the key's values that is nearer to infinity
    bits = np.int32((size << (23 - MANTISSA)) + int(np.float32(SMALLEST).view(np.int32)))
    end = bits.view(np.float32) if size else np.float32(0)
    return -float(end) if key < ZERO and size else float(np.nextafter(end, np.float32(-np.inf)))


@dataclass
class PixelCounts:
    """How many healthy pixels and how many of lesions have each value of a map, of slices whose lesion is known.

    Values are told apart by `keys` of their distance from the first slice's lowest.
    """

    counts: Array = field(default_factory=lambda: np.zeros((NUM_KEYS, 2), np.int64))
    shares: Array = field(default_factory=lambda: np.zeros((NUM_KEYS, 3)))
    lowest: np.float32 | None = None

    def keys(self, values: Array) -> Array:
        """Of values ``(P,)``, see `keys`."""
        if self.lowest is None:
            self.lowest = np.float32(values.min(initial=np.inf)) if values.size else np.float32(0)
        return keys(values - self.lowest)

    def add(self, values: Array, truth: Array, shares: Array | None = None) -> None:
        """A slice's values ``(P,)`` with their truth, bool, and their shares ``(P, 3)``, see `limited.shares_of`."""
        found = self.keys(values)
        np.add.at(self.counts, (found, truth.astype(np.intp)), 1)
        if shares is not None:
            np.add.at(self.shares, found, shares)

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

    def limited(self) -> dict[str, float]:
        """See `limited.limited`; what is undefined is left out."""
        used = np.flatnonzero(self.counts.sum(axis=1))[::-1]
        found = limited(self.counts[None, used, 0], self.shares[None, used])
        return {name: float(value[0]) for name, value in found.items() if np.isfinite(value[0])}

    def bins(self, number: int) -> Array:
        """A bin for each key, int ``(NUM_KEYS,)``, the first for the highest values: up to 2.5 `number`, by quantiles.

        Args:
            number: quantiles of each class; half as many more are of the highest values in healthy slices.
        """
        lowest = int(np.flatnonzero(self.counts.sum(axis=1))[0])
        begins = [[lowest, lowest + 1]]  # the lowest value is often that of most pixels, so it has a bin of its own
        for of_class in self.counts.T:
            if of_class.any():
                wanted = np.maximum(np.ceil(np.linspace(0, 1, number) * of_class.sum()), 1)
                begins.append(np.searchsorted(of_class.cumsum(), wanted))
        healthy = self.shares[:, HEALTHY_SLICE].cumsum()
        if healthy[-1]:
            begins.append(np.searchsorted(healthy, healthy[-1] * (1 - np.geomspace(1e-6, 0.1, number // 2))))
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
