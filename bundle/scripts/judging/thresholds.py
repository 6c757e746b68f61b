"""Which threshold is taken: by masks where there are any, or by image-level labels alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from skimage.filters import threshold_multiotsu, threshold_otsu

from .. import DISEASED
from .cases import Domain, SliceCase
from .ranking import pixel_counts
from .readings import AVERAGES

NUM_BINS = 256
"""Of the histogram that Otsu's method divides."""
BY_MASKS = "best pooled Dice"
BY_LABELS = "Otsu's, without masks"


def best_threshold(cases: Iterable[SliceCase], method: str, domain: Domain) -> float:
    """The threshold with the highest pooled Dice on these cases, which must be validation cases.

    It lies just above the largest map value left out, so that ``map > threshold`` is the best segmentation; -inf if that is
    everything. Values are told apart as `ranking` does.

    Raises:
        ValueError: as for `metrics`, or there is no lesion pixel.
    """
    counts = pixel_counts(cases, method, domain)
    if not counts.lesion:
        raise ValueError(f"no lesion pixel is known in these cases (domain {domain!r}), so no threshold is best.")
    return counts.ranks()["threshold"]


def label_threshold(cases: Iterable[SliceCase], method: str, classes: int = 2) -> float:
    """Otsu's threshold of the foreground of slices labelled diseased: image-level labels alone choose it.

    Args:
        cases: read twice, for the range of the map and for its histogram.
        method: whose map.
        classes: into which Otsu's method divides the values (Liao et al. 2001); the lowest is left out. A mean of several
            maps has three: what none of them marks, what some do, and what all do.

    Raises:
        ValueError: no slice is diseased.
    """
    low, high = np.inf, -np.inf
    for case in cases:
        if case.diseased == DISEASED:
            values = case.values(method, "foreground")
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:
        raise ValueError("no slice is labelled diseased, so there is no threshold without masks.")
    if low == high:
        return low
    counts = np.zeros(NUM_BINS, np.int64)
    for case in cases:
        if case.diseased == DISEASED:
            counts += np.histogram(case.values(method, "foreground"), NUM_BINS, (low, high))[0]
    edges = np.linspace(low, high, NUM_BINS + 1)
    histogram = counts, (edges[1:] + edges[:-1]) / 2
    if classes == 2 or np.count_nonzero(counts) < classes:
        return float(threshold_otsu(hist=histogram))
    return float(threshold_multiotsu(classes=classes, hist=histogram)[0])


def chosen_threshold(
    cases: Iterable[SliceCase], method: str, domain: Domain, use_masks: bool = True
) -> tuple[float, str] | None:
    """A threshold and how it was chosen: `BY_MASKS` where a lesion is known and masks are used, `BY_LABELS` else.

    Of `readings.AVERAGES` labels divide into three classes, see `label_threshold`.

    None if no slice is diseased.
    """
    counts = pixel_counts(cases, method, domain) if use_masks else None
    if counts is not None and counts.lesion:
        return counts.ranks()["threshold"], BY_MASKS
    if any(case.diseased == DISEASED for case in cases):
        return label_threshold(cases, method, 3 if method in AVERAGES else 2), BY_LABELS
    return None
