"""How well anomaly maps find lesions, and scores diseased images.

Pixels are those of the maps' grid, and every result states its domain: "foreground", the pixels inside the foreground only, or
"image", all pixels (the paper's). Dice over all pixels of all slices is *pooled*.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .cases import Domain, SliceCase
from .lesions import MIN_VOXELS
from .limited import FPR_LIMIT, FPR_RANGE
from .ranking import quotient
from .sums import Sums, sums

A_LESION = "no lesion is known by mask or boxes"
TWO_CLASSES = "all are of one class"
METRICS = {
    "dice_otsu_slice": ("Dice per slice, Otsu per slice", "no slice has a lesion of more than 20 pixels"),
    "dice_threshold": ("Dice pooled", A_LESION),
    "dice_threshold_slice": ("Dice per slice", "no slice has a lesion of more than 20 pixels"),
    "iou_threshold_slice": ("IoU per slice", "no slice has a lesion of more than 20 pixels"),
    "dice_threshold_volume": ("Dice per volume", "no volume of several slices has a known lesion"),
    "dice_oracle": ("oracle Dice pooled", A_LESION),
    "pixel_auroc": ("pixel AUROC", A_LESION),
    "pixel_ap": ("pixel AP", A_LESION),
    "aupro": (f"AUPRO, FPR to {FPR_LIMIT:g}", A_LESION),
    "aupimo": ("AUPIMO, FPR {:g} to {:g}".format(*FPR_RANGE), "no lesion is known, or no slice is healthy"),
    "healthy_area": ("false pixels per healthy slice", "no slice is healthy"),
    "lesions_found": ("lesions found", f"no lesion of {MIN_VOXELS} voxels is known"),
    "lesions_found_small": (
        "lesions found, under 1 ml",
        "no lesion under 1 ml is known in a volume whose lesions are judged whole",
    ),
    "lesions_found_medium": (
        "lesions found, 1 to 10 ml",
        "no lesion of 1 to 10 ml is known in a volume whose lesions are judged whole",
    ),
    "lesions_found_large": (
        "lesions found, 10 ml and more",
        "no lesion of 10 ml or more is known in a volume whose lesions are judged whole",
    ),
    "false_lesions": ("false lesions per volume", "no slice is known to be healthy or has a known lesion"),
    "pointing": ("pointing game", "there are no boxes"),
    "box_recall": ("boxes found", "there are no boxes"),
    "image_auroc": ("image AUROC", TWO_CLASSES),
    "image_ap": ("image AP", TWO_CLASSES),
    "volume_auroc": ("volume AUROC", f"{TWO_CLASSES}, or have one slice"),
    "volume_ap": ("volume AP", f"{TWO_CLASSES}, or have one slice"),
}
"""Every metric with its heading in a table, and why it may be left out; see `metrics`."""
OF_IMAGES = ("image_auroc", "image_ap", "volume_auroc", "volume_ap")
"""Those of scores; all others are of maps."""


def metrics(cases: Iterable[SliceCase], method: str, threshold: float | None, domain: Domain) -> dict[str, float]:
    """What one method reaches on `cases`, a volume's one after another; what is not defined is left out, see `METRICS`.

    Returns:
        ``dice_otsu_slice``: mean over slices of Dice at that slice's own Otsu threshold, the protocol of
        Wolleb et al. 2022; a constant map segments nothing.
        ``dice_threshold``: pooled, at `threshold`; ``dice_threshold_slice``, ``dice_threshold_volume``: mean over slices, and
        over volumes with a lesion. ``iou_threshold_slice``: the same of intersection over union.
        ``dice_oracle``: pooled, at the threshold that is best on these very cases: a bound, not a result.
        ``pixel_auroc``, ``pixel_ap``: over all pixels; these two and the oracle tell values apart as `ranking` does, to
        0.012 %, which changes them by about 0.0002; nearer than 1e-6 to the lowest value of the first slice, all are one.
        All else is exact.
        ``aupro``, ``aupimo``: see `limited.limited`; lesions are those of a slice.
        ``lesions_found``: the share of lesions, in three dimensions, of which a tenth is marked at `threshold`;
        ``lesions_found_small``, ``_medium``, ``_large``: the same of those under 1 ml, under 10 ml, and larger,
        of volumes between whose judged slices none is left out, and whose lesions go on into no other;
        ``false_lesions``: how many marks touch no lesion, a volume; see `lesions.counted`.
        ``healthy_area``: mean number of false pixels in a healthy slice at `threshold`.
        ``pointing``: the share of images with boxes whose map is highest in a box (a map with several highest pixels counts by
        their share in boxes, one that is the same everywhere points nowhere); ``box_recall``: the share of boxes of
        which at least `MIN_BOX_SHARE` is marked at `threshold`.
        ``image_auroc``, ``image_ap``: of the scores of slices; ``volume_auroc``, ``volume_ap``: of volumes, by their highest
        slice.

    Raises:
        ValueError: no cases, unknown method or domain, values that aren't finite.
    """
    return of_sums(sums(cases, method, threshold, domain))


def of_sums(found: Sums) -> dict[str, float]:
    """See `metrics`."""
    result = {}
    for name, parts in found.parts.items():
        numerator, denominator = np.array([part[1:] for part in parts]).reshape(-1, 2).sum(axis=0)
        if denominator:
            result[name] = float(quotient(numerator, denominator))
    if found.pixels.lesion:
        of_pixels = found.pixels.ranks()
        result |= {"dice_oracle": of_pixels["dice"], "pixel_ap": of_pixels["ap"]}
        if found.pixels.counts[:, 0].any():
            result["pixel_auroc"] = of_pixels["auroc"]
        result |= found.pixels.limited()
    result |= found.scored.ranks()
    return {name: result[name] for name in METRICS if name in result}
