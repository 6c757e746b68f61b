"""How well anomaly maps find lesions: metrics, patient bootstrap, and the baselines to beat.

Lesion masks are read for this alone. A lesion is segmented where the map is *above* a threshold, as in
`postprocessing`. Pixels are those of the maps' grid, and every result states its domain: "foreground", the pixels inside the
foreground only, or "image", all pixels (the paper's). Dice over all pixels of all slices is *pooled*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from skimage.filters import threshold_otsu
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from .. import HEALTHY
from .cases import Array, Domain, SliceCase

MIN_LESION_PIXELS = 20
"""A Dice of a single slice counts slices with more lesion pixels than this in the domain (the paper's protocol)."""


METRICS = {
    "dice_otsu_slice": "Dice per slice, Otsu per slice",
    "dice_threshold": "Dice pooled",
    "dice_threshold_slice": "Dice per slice",
    "dice_oracle": "oracle Dice pooled",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "image_auroc": "image AUROC",
    "healthy_area": "false pixels per healthy slice",
}
"""Every metric and its heading in a table; see `metrics`."""


def metrics(cases: Sequence[SliceCase], method: str, threshold: float, domain: Domain) -> dict[str, float]:
    """What one method reaches on `cases`; NaN where undefined (one class only, no slice that counts).

    Returns:
        ``dice_otsu_slice``: mean over slices of Dice at that slice's own Otsu threshold, the protocol of
        Wolleb et al. 2022; a constant map segments nothing.
        ``dice_threshold``: pooled, at `threshold`; ``dice_threshold_slice``: mean over slices.
        ``dice_oracle``: pooled, at the threshold that is best on these very cases: a bound, not a result.
        ``pixel_auroc``, ``pixel_ap``: over all pixels; ``image_auroc``: of the image-level scores.
        ``healthy_area``: mean number of false pixels in a healthy slice at `threshold`.

    Raises:
        ValueError: no cases, unknown method or domain, values that aren't finite.
    """
    values, truth = _pooled(cases, method, domain)
    scores, diseased = _image_scores(cases, method)
    parts = _parts(cases, method, threshold, domain)
    result = {name: float(_quotient(*part.sum(axis=0))) for name, part in parts.items()}
    result["dice_oracle"] = _oracle(values, truth)[0]
    result["pixel_auroc"] = float(roc_auc_score(truth, values)) if 0 < truth.sum() < truth.size else np.nan
    result["pixel_ap"] = float(average_precision_score(truth, values)) if truth.any() else np.nan
    result["image_auroc"] = float(roc_auc_score(diseased, scores)) if len(set(diseased)) > 1 else np.nan
    return {name: result[name] for name in METRICS}


def best_threshold(cases: Sequence[SliceCase], method: str, domain: Domain) -> float:
    """The threshold with the highest pooled Dice on these cases, which must be validation cases.

    It is the largest map value left out, so that ``map > threshold`` is exactly the best segmentation; -inf if that
    is everything.

    Raises:
        ValueError: as for `metrics`, or there is no lesion pixel.
    """
    values, truth = _pooled(cases, method, domain)
    if not truth.any():
        raise ValueError(f"no lesion pixel in the {len(cases)} cases (domain {domain!r}), so no threshold is best.")
    return _oracle(values, truth)[1]


def _pooled(cases: Sequence[SliceCase], method: str, domain: Domain) -> tuple[Array, Array]:
    if not cases:
        raise ValueError("there are no cases to evaluate.")
    values, truth = zip(*(c.pixels(method, domain) for c in cases), strict=True)
    return np.concatenate(values), np.concatenate(truth)


def _image_scores(cases: Sequence[SliceCase], method: str) -> tuple[Array, Array]:
    for case in cases:
        if not np.isfinite(case.scores.get(method, np.nan)):
            raise ValueError(f"{case}: has no finite image-level score of method {method!r}.")
    return np.array([c.scores[method] for c in cases]), np.array([c.diseased for c in cases])


def _quotient(numerator: Array, denominator: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.true_divide(numerator, denominator))


def _dice_parts(predicted: Array, truth: Array) -> tuple[int, int]:
    """2 TP and 2 TP + FP + FN, whose quotient is Dice and which may be added up."""
    return 2 * int((predicted & truth).sum()), int(predicted.sum()) + int(truth.sum())


def dice(predicted: Array, truth: Array) -> float:
    """Dice of two masks, bool, same shape, not both empty."""
    numerator, denominator = _dice_parts(predicted, truth)
    return numerator / denominator


def _parts(cases: Sequence[SliceCase], method: str, threshold: float, domain: Domain) -> dict[str, Array]:
    """Metrics that are quotients of sums: numerator and denominator of every case, ``(N, 2)``."""
    names = ("dice_otsu_slice", "dice_threshold", "dice_threshold_slice", "healthy_area")
    parts = {name: np.zeros((len(cases), 2)) for name in names}
    for i, case in enumerate(cases):
        values, truth = case.pixels(method, domain)
        predicted = values > threshold
        parts["dice_threshold"][i] = _dice_parts(predicted, truth)
        if truth.sum() > MIN_LESION_PIXELS:
            parts["dice_threshold_slice"][i] = dice(predicted, truth), 1
            parts["dice_otsu_slice"][i] = dice(values > threshold_otsu(values), truth), 1
        if case.diseased == HEALTHY:
            parts["healthy_area"][i] = predicted.sum(), 1
    return parts


def _oracle(values: Array, truth: Array) -> tuple[float, float]:
    """The best Dice of ``values > threshold`` over all thresholds, exactly, and the threshold."""
    if not truth.any():
        return np.nan, np.nan
    precision, recall, at_least = precision_recall_curve(truth, values)  # of values >= at_least, which rises
    f1 = np.nan_to_num(_quotient(2 * precision * recall, precision + recall))[:-1]
    best = int(f1.argmax())
    return float(f1[best]), float(at_least[best - 1]) if best else -np.inf
