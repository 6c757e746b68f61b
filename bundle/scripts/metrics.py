"""How well anomaly maps find lesions: metrics, patient bootstrap, and the baselines to beat.

Lesion masks are read for this alone. A lesion is segmented where the map is *above* a threshold, as in
`postprocessing`. Pixels are those of the maps' grid, and every result states its domain: "brain", the pixels inside the
brain only, or "image", all pixels (the paper's). Dice over all pixels of all slices is *pooled*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from . import DISEASED, HEALTHY

Array = NDArray[Any]
Domain = Literal["brain", "image"]

MIN_LESION_PIXELS = 20
"""A Dice of a single slice counts slices with more lesion pixels than this in the domain (the paper's protocol)."""
NUM_BINS = 1024
"""Quantile bins for each of lesion and other pixels in the bootstrap."""

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


@dataclass(eq=False)
class SliceCase:
    """One evaluated slice. Arrays are ``(H, W)``, axes to the left and to posterior, as preprocessing leaves them.

    Args:
        subject: the patient; the unit of the bootstrap.
        slice: its number in the input file.
        image: the normalised image, for display.
        brain: bool.
        truth: bool, the radiologist's lesion mask.
        diseased: the image-level label, 0 or 1.
        maps: an anomaly map for each method, finite float32, higher is more anomalous.
        scores: an image-level score for each method, higher is more anomalous.
        counterfactual: on the image's intensity scale, for display.

    Raises:
        ValueError: shapes differ, the brain is empty, the label is neither 0 nor 1, or is 0 though there is a lesion.
    """

    subject: str
    slice: int
    image: Array
    brain: Array
    truth: Array
    diseased: int
    maps: dict[str, Array] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    counterfactual: Array | None = None

    def __post_init__(self) -> None:
        self.brain, self.truth = np.asarray(self.brain, bool), np.asarray(self.truth, bool)
        arrays = {"brain": self.brain, "truth": self.truth, "counterfactual": self.counterfactual, **self.maps}
        for name, array in arrays.items():
            if array is not None and np.shape(array) != np.shape(self.image):
                raise ValueError(f"{self}: {name} has shape {np.shape(array)}, the image {np.shape(self.image)}.")
        if not self.brain.any():
            raise ValueError(f"{self}: its brain is empty; leave such slices out.")
        if self.diseased not in (HEALTHY, DISEASED):
            raise ValueError(f"{self}: diseased must be {HEALTHY} or {DISEASED}, got {self.diseased!r}.")
        if self.diseased == HEALTHY and self.truth.any():
            raise ValueError(f"{self}: is labelled healthy but has {self.truth.sum()} lesion pixels.")

    def __str__(self) -> str:
        return f"{self.subject}, slice {self.slice}"

    def inside(self, domain: Domain) -> Array:
        """Bool ``(H, W)``: the pixels of the domain."""
        if domain not in ("brain", "image"):
            raise ValueError(f"domain must be 'brain' or 'image', got {domain!r}.")
        return self.brain if domain == "brain" else np.ones_like(self.brain)

    def pixels(self, method: str, domain: Domain) -> tuple[Array, Array]:
        """The map's values, float32 ``(P,)``, and the truth, bool ``(P,)``, within the domain."""
        if method not in self.maps:
            raise ValueError(f"{self}: has no map of method {method!r}; it has {', '.join(self.maps) or 'none'}.")
        inside = self.inside(domain)
        values = np.asarray(self.maps[method], np.float32)[inside]
        if not np.isfinite(values).all():
            raise ValueError(f"{self}: the map of {method!r} holds NaN or infinity within the {domain}.")
        return values, self.truth[inside]


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


def baselines(image: Array, brain: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """What needs no training: thresholding FLAIR.

    Args:
        image: a normalised FLAIR volume, ``(H, W, D)``.
        brain: bool, same shape.

    Returns:
        Maps, float32 ``(H, W, D)``, by the baseline's name: the intensity itself; the part above the median of the
        slice's brain, 0 outside the brain; and that with a 3 x 3 median filter in each slice. And image-level scores
        ``(D,)``: the map's mean over the slice's brain, NaN without brain.

    Raises:
        ValueError: shapes differ, or the brain is empty.
    """
    image, brain = np.asarray(image, np.float32), np.asarray(brain, bool)
    if image.ndim != 3 or image.shape != brain.shape:
        raise ValueError(f"image and brain must both be (H, W, D), got {image.shape} and {brain.shape}.")
    if not brain.any():
        raise ValueError("the brain is empty.")
    above = np.zeros_like(image)
    for z in np.flatnonzero(brain.any(axis=(0, 1))):
        above[..., z] = np.clip(image[..., z] - np.median(image[..., z][brain[..., z]]), 0, None) * brain[..., z]
    maps = {
        "FLAIR intensity": image,
        "FLAIR minus slice median": above,
        "FLAIR minus slice median, 3x3 median": median_filter(above, size=(3, 3, 1), mode="constant") * brain,
    }
    area = brain.sum(axis=(0, 1))
    return maps, {name: _quotient((a * brain).sum(axis=(0, 1), dtype=float), area) for name, a in maps.items()}
