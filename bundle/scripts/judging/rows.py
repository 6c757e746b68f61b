"""The rows of an evaluation's tables: methods with their thresholds, and what they reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import DISEASED
from .bootstrap import Measured, measured, measured_decisions, measured_scores
from .cases import Domain
from .kept import KeptCases
from .probabilities import calibration_error
from .readings import P_DISEASED, shipped
from .scored import Scored
from .thresholds import chosen_threshold

EVEN = 0.5
"""p(diseased) above which a slice is called diseased: it is calibrated, so more likely diseased than not."""
THE_BUNDLES = "the bundle's"
COMPARED = ("pixel_ap", "dice_threshold", "image_auroc")
"""The metrics whose difference to the best baseline is reported."""


class Threshold(NamedTuple):
    """Of a row: the method's name, the threshold, and how it was chosen; None and "none" where none was."""

    method: str
    value: float | None
    chosen_by: str


def counted(cases: KeptCases) -> dict[str, Any]:
    """What there is in a split; where no diseased slice has a mask, its boxes are the lesions from here on."""
    subjects, volumes = set(), set()
    names = ("slices", "diseased_slices", "diseased_slices_with_mask", "slices_with_boxes", "with_neither")
    numbers = dict.fromkeys(names, 0)
    for case in cases:
        subjects.add(case.subject)
        volumes.add(case.volume)
        diseased, has_mask = case.diseased == DISEASED, case.truth is not None
        has_boxes = case.boxes is not None and len(case.boxes) > 0
        numbers["slices"] += 1
        numbers["diseased_slices"] += diseased
        numbers["diseased_slices_with_mask"] += diseased and has_mask
        numbers["slices_with_boxes"] += has_boxes
        numbers["with_neither"] += diseased and not has_mask and not has_boxes
    with_mask, neither = numbers["diseased_slices_with_mask"], numbers.pop("with_neither")
    cases.boxes_are_lesions = not with_mask
    known = "masks" if with_mask else "boxes" if numbers["slices_with_boxes"] else None
    unknown = neither if known != "masks" else numbers["diseased_slices"] - with_mask
    of_lesions = {"lesions_known_by": known, "diseased_slices_with_unknown_lesion": unknown}
    left = cases.without_foreground
    numbers |= {"slices_without_foreground": len(left), "diseased_slices_without_foreground": left.count(DISEASED)}
    return {"patients": len(subjects), "volumes": len(volumes), **numbers, **of_lesions}


def scores(cases: KeptCases, methods: Sequence[str]) -> dict[str, Measured]:
    """How well p(diseased) and the methods' scores tell diseased slices and volumes; what p decides, and its calibration."""
    found = [Scored(method) for method in (P_DISEASED, *methods)]
    for case in cases:
        for scored in found:
            scored.add(case)
    reached = {scored.name: measured_scores(scored) for scored in found}
    p = found[0].slices
    called = measured_decisions(found[0], EVEN)
    reached[P_DISEASED].values |= called.values | {"calibration_error": calibration_error(p.score, p.diseased)}
    reached[P_DISEASED].resampled |= called.resampled
    return reached


def thresholds(
    validation: KeptCases | None, methods: Sequence[str], domain: Domain, of_bundle: float
) -> dict[str, Threshold]:
    """A row for each method with the threshold that validation chooses, and one for the bundle's own."""
    ours = shipped(methods)
    rows = {}
    for method in methods:
        chosen = None if validation is None else chosen_threshold(validation, method, domain)
        if chosen is not None or method != ours:
            rows[method] = Threshold(method, *(chosen or (None, "none")))
    return rows | {f"{ours}, at the bundle's threshold": Threshold(ours, of_bundle, THE_BUNDLES)}


def results(cases: KeptCases, rows: Mapping[str, Threshold], domain: Domain) -> dict[str, Measured]:
    """What each row reaches."""
    return {name: measured(cases, row.method, row.value, domain) for name, row in rows.items()}


def best_baseline(found: Mapping[str, Measured], baselines: Sequence[str]) -> str | None:
    """The one with the highest pixel AP, or image AUROC where no lesion is known; None where none has either."""
    for metric in ("pixel_ap", "image_auroc"):
        if baselines and all(metric in found[name].values for name in baselines):
            return max(baselines, key=lambda name: found[name].values[metric])
    return None


def differences(found: Mapping[str, Measured], ours: str, baseline: str) -> dict[str, Any]:
    """How much better a row is than a baseline, on the same resampled patients: the difference and its interval."""
    each = {metric: found[ours].minus(found[baseline], metric) for metric in COMPARED}
    return {"of": ours, "to": baseline, **{metric: list(d) for metric, d in each.items() if d is not None}}
