"""How well maps find lesions where few false pixels are allowed: AUPRO and AUPIMO, as anomalib and their papers define them.

Every pixel has a share of what it belongs to, so that both come from histograms as `ranking.ranks` does: a share of its lesion,
of all lesion in its slice, and of its slice if that is healthy.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

from .. import HEALTHY
from .cases import Array, Domain, SliceCase

FPR_LIMIT = 0.3
"""Of AUPRO: up to which share of false pixels its curve is integrated (Bergmann et al. 2021)."""
FPR_RANGE = 1e-4, 1e-2
"""Of AUPIMO: between which shares of false pixels in a healthy slice. Photographs take 1e-5 to 1e-4, which in a slice of 6,000
pixels is less than one."""
LESION, SLICE, HEALTHY_SLICE = range(3)
"""The columns of shares."""
EIGHT = np.ones((3, 3), bool)


def shares_of(case: SliceCase, domain: Domain) -> Array:
    """The shares ``(P, 3)`` of a slice's pixels within the domain; all of one lesion, or of one slice, add up to 1.

    Args:
        case: its lesion is known. Lesions are what touches within the slice, also at corners.
        domain: of the pixels.
    """
    inside = case.inside(domain)
    result = np.zeros((int(inside.sum()), 3))
    if case.diseased == HEALTHY:
        result[:, HEALTHY_SLICE] = 1 / len(result)
    elif case.truth is not None:
        regions = label(case.truth & inside, EIGHT)[0][inside]
        sizes = np.bincount(regions)
        result[:, LESION] = np.where(regions > 0, 1 / sizes[regions], 0)
        result[:, SLICE] = (regions > 0) / max(int(sizes[1:].sum()), 1)
    return result


def limited(negative: Array, shares: Array) -> dict[str, Array]:
    """Both scores ``(R,)`` of `R` histograms whose bins fall; NaN where one is undefined.

    ``aupro``: the mean share of a lesion that is marked, over the share of all healthy pixels that are, from 0 to `FPR_LIMIT`.
    ``aupimo``: the mean share of a slice's lesion that is marked, over the logarithm of the mean share of a healthy slice that
    is, within `FPR_RANGE` (Bertoldo et al. 2024). Both are from 0 to 1.

    Args:
        negative: counts of healthy pixels, ``(R, bins)``.
        shares: sums of shares, ``(R, bins, 3)``.
    """
    false = _rising(negative)
    lesion, of_slice, healthy = (_rising(shares[..., n]) for n in (LESION, SLICE, HEALTHY_SLICE))
    low, high = FPR_RANGE
    return {
        "aupro": _area(false, lesion, 0.0, FPR_LIMIT) / FPR_LIMIT,
        "aupimo": _area(healthy, of_slice, low, high, logarithmic=True) / np.log(high / low),
    }


def _rising(histograms: Array) -> Array:
    """What is above each bin's end as a share of all, from 0 to 1, ``(R, bins + 1)``; NaN where there is nothing."""
    total = np.pad(histograms.cumsum(axis=1, dtype=float), ((0, 0), (1, 0)))
    with np.errstate(invalid="ignore"):
        share: Array = total / total[:, -1:]
    return share


def _area(x: Array, y: Array, low: float, high: float, logarithmic: bool = False) -> Array:
    """The integral ``(R,)`` of y over x, or over the logarithm of x, from `low` to `high`; lines between the points."""
    begin, end = (np.clip(part, low, high) for part in (x[:, :-1], x[:, 1:]))
    width = np.diff(x, axis=1)
    slope = np.divide(np.diff(y, axis=1), width, out=np.zeros_like(width), where=width > 0)
    at_zero = y[:, :-1] - slope * x[:, :-1]
    first = np.log(end / begin) if logarithmic else end - begin
    second = end - begin if logarithmic else (end**2 - begin**2) / 2
    area: Array = (at_zero * first + slope * second).sum(axis=1)
    return area
