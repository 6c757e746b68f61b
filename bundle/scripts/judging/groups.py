"""Results by what a datalist says of its images, such as sex, age, hospital or view: where a model works worse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import DISEASED, HEALTHY
from .bootstrap import INTERVALS, Measured, measured, measured_scores
from .cases import Domain
from .kept import KeptCases
from .metrics import METRICS
from .readings import P_DISEASED
from .scored import Scored
from .tables import table

OF_GROUP = ("pixel_ap", "dice_threshold", "lesions_found", "false_lesions", "image_auroc")
COLUMNS = {
    "patients": "patients",
    "slices": "slices",
    "diseased_slices": "diseased slices",
    "p_auroc": "image AUROC of p(diseased)",
    "p_healthy": "mean p(diseased) of healthy slices",
    "p_diseased": "mean p(diseased) of diseased slices",
    **{name: METRICS[name][0] for name in OF_GROUP},
} | {"image_auroc": "image AUROC of the map's score"}


def by_group(cases: KeptCases, method: str, threshold: float, domain: Domain) -> dict[str, Measured]:
    """What a method reaches in each group: `COLUMNS`, with intervals where they rest on `bootstrap.LEAST_PATIENTS` or more.

    Args:
        cases: with the ``groups`` of their volumes; those without have no part in it.
        method: of the maps.
        threshold: marked is what is above.
        domain: of the pixels.

    Returns:
        By the group's name, such as "sex: F". A group whose volumes all failed is left out.
    """
    paths: defaultdict[str, set[Path]] = defaultdict(set)
    for path, of_volume in zip(cases.paths, cases.groups, strict=True):
        for name, value in of_volume.items():
            paths[f"{name}: {value}"].add(path)
    found = {}
    for group in sorted(paths):
        of_group = cases.of(paths[group])
        scored = Scored(P_DISEASED)
        for case in of_group:
            scored.add(case)
        if scored.slices.score:
            found[group] = _reached(measured(of_group, method, threshold, domain), scored)
    return found


def _reached(maps: Measured, scored: Scored) -> Measured:
    p, diseased = np.array(scored.slices.score), np.array(scored.slices.diseased)
    of_scores = measured_scores(scored)
    values = {name: maps.values[name] for name in OF_GROUP if name in maps.values}
    resampled = {name: maps.resampled[name] for name in values if name in maps.resampled}
    if "image_auroc" in of_scores.values:
        values["p_auroc"] = of_scores.values["image_auroc"]
        if "image_auroc" in of_scores.resampled:
            resampled["p_auroc"] = of_scores.resampled["image_auroc"]
    for name, label in (("p_healthy", HEALTHY), ("p_diseased", DISEASED)):
        if (diseased == label).any():
            values[name] = float(p[diseased == label].mean())
    numbers = {
        "patients": len(set(scored.slices.subject)),
        "slices": len(p),
        "diseased_slices": int((diseased == DISEASED).sum()),
    }
    return Measured(numbers | values, resampled)


def write_groups(found: Mapping[str, Measured], method: str, threshold: float, domain: str, path: Path) -> None:
    """A table of `by_group`, a row a group."""
    note = f"Groups are the datalist's. Maps and their score: {method}, above {threshold:.4g}. {INTERVALS}"
    rows = {group: (reached.values, reached.intervals) for group, reached in found.items()}
    table(rows, path, f"group ({domain})", COLUMNS, note)
