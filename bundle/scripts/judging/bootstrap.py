"""Intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .cases import Array, Domain, SliceCase
from .metrics import METRICS, _image_scores, _parts, _pooled, _quotient, metrics

NUM_BINS = 1024
"""Quantile bins for each of lesion and other pixels in the bootstrap."""


def bootstrap(
    cases: Sequence[SliceCase],
    method: str,
    threshold: float,
    domain: Domain,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals (Efron and Tibshirani 1993) of `metrics`, resampling subjects with replacement.

    Resamples in which a metric is undefined are left out; with a single subject every interval is NaN. The oracle
    chooses its threshold anew in each resample. The map values behind ``pixel_auroc``, ``pixel_ap`` and ``dice_oracle``
    are rounded to 2 x `NUM_BINS` common bins, which changes these by about 0.001 at most; the others are exact.

    Raises:
        ValueError: as for `metrics`.
    """
    resampled = _resampled(cases, method, threshold, domain, num_resamples, seed)
    return {name: _interval(values) for name, values in resampled.items()}


def paired_bootstrap(
    cases: Sequence[SliceCase],
    method_a: str,
    method_b: str,
    metric: str,
    threshold_a: float,
    threshold_b: float,
    domain: Domain,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """`metric` of a minus that of b, and its 95 % interval (low, high), both methods on the same resampled subjects.

    Raises:
        ValueError: as for `metrics`, or unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}.")
    pairs = ((method_a, threshold_a), (method_b, threshold_b))
    point_a, point_b = (metrics(cases, m, t, domain)[metric] for m, t in pairs)
    a, b = (_resampled(cases, m, t, domain, num_resamples, seed)[metric] for m, t in pairs)
    return (point_a - point_b, *_interval(a - b))


def _histograms(values: Array, truth: Array, subject: Array, edges: Array) -> Array:
    """Counts ``(subjects, bins, 2)`` of values with truth 0 and 1; the bins fall, each begins at one of the edges."""
    bins = len(edges) - np.searchsorted(edges, values, side="right")
    shape = (int(subject.max()) + 1, len(edges), 2)
    index = np.ravel_multi_index((subject, bins, truth.astype(int)), shape)
    return np.bincount(index, minlength=np.prod(shape)).reshape(shape)


def _ranking(histograms: Array, weights: Array) -> dict[str, Array]:
    """AUROC, AP and best Dice of ``(R, subjects)`` weighted sums of the subjects' histograms, each ``(R,)``.

    The definitions are scikit-learn's, values of one bin being ties.
    """
    negative, positive = np.moveaxis(np.tensordot(weights.astype(float), histograms, axes=1), -1, 0)
    fp, tp = negative.cumsum(axis=1), positive.cumsum(axis=1)
    num_negative, num_positive = fp[:, -1], tp[:, -1]
    before = (negative * (tp - positive / 2)).sum(axis=1)
    precision = tp / np.maximum(tp + fp, 1)
    overlap = _quotient(2 * tp, tp + fp + num_positive[:, None])
    return {
        "auroc": _quotient(before, num_negative * num_positive),
        "ap": _quotient((positive * precision).sum(axis=1), num_positive),
        "dice": np.where(num_positive > 0, overlap.max(axis=1), np.nan),
    }


def _resampled(
    cases: Sequence[SliceCase], method: str, threshold: float, domain: Domain, num_resamples: int, seed: int
) -> dict[str, Array]:
    """Every metric in each resample, ``(num_resamples,)``, from sums and histograms that are taken once a subject."""
    values, truth = _pooled(cases, method, domain)
    scores, diseased = _image_scores(cases, method)
    names, subject = np.unique([c.subject for c in cases], return_inverse=True)
    if len(names) < 2:
        return {name: np.full(num_resamples, np.nan) for name in METRICS}
    weights = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), num_resamples)

    result = {}
    for name, parts in _parts(cases, method, threshold, domain).items():
        sums = np.zeros((len(names), 2))
        np.add.at(sums, subject, parts)
        result[name] = _quotient(*(weights @ sums).T)
    levels = np.linspace(0, 1, NUM_BINS)
    quantiles = [np.quantile(v, levels, method="inverted_cdf") for v in (values[truth], values[~truth]) if v.size]
    lowest = values.min()  # often that of most pixels, so it has a bin of its own
    edges = np.unique(np.concatenate([*quantiles, [np.nextafter(lowest, np.float32(np.inf))]]))
    of_pixel = np.repeat(subject, [int(c.inside(domain).sum()) for c in cases])
    pixels = _ranking(_histograms(values, truth, of_pixel, edges), weights)
    images = _ranking(_histograms(scores, diseased, subject, np.unique(scores)), weights)
    result |= {"dice_oracle": pixels["dice"], "pixel_auroc": pixels["auroc"], "pixel_ap": pixels["ap"]}
    result["image_auroc"] = images["auroc"]
    return {name: result[name] for name in METRICS}


def _interval(values: Array) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite.size else (np.nan, np.nan)
    return float(low), float(high)
