"""Tables and records of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bootstrap import INTERVALS, Measured
from .cases import Domain
from .kept import KeptCases
from .metrics import METRICS, OF_IMAGES
from .probabilities import Bin, of_cases, reliability
from .readings import P_DISEASED
from .rows import EVEN, THE_BUNDLES, Threshold, scores
from .tables import EVERYTHING, left_out, said, table

DOMAINS: dict[Domain, str] = {"foreground": "pixels inside the foreground", "image": "pixels of the whole image"}
OF_SCORES = {m: METRICS[m] for m in OF_IMAGES} | {
    "sensitivity": (f"sensitivity, p above {EVEN:g}", "no slice is diseased"),
    "specificity": (f"specificity, p above {EVEN:g}", "no slice is healthy"),
    "calibration_error": ("expected calibration error", ""),
}
OF_MAPS = {m: what for m, what in METRICS.items() if m not in OF_IMAGES}
ABOUT = f"{INTERVALS} Oracle: its threshold is chosen on these very slices."


def write_scores(cases: KeptCases, path: Path, record: dict[str, Any]) -> None:
    """A table of `rows.scores`, and the same in the record of a split."""
    found = scores(cases, list(next(iter(cases)).maps))
    record["scores"] = {name: reached.values for name, reached in found.items()}
    record["left_out"] = left_out(found[P_DISEASED].values, OF_SCORES)
    number = "{patients} patients, {volumes} volumes, {slices} slices, of these {diseased_slices} diseased."
    note = f"{number.format_map(record)} {INTERVALS} {said(record['left_out'])}"
    columns = {name: heading for name, (heading, _) in OF_SCORES.items()}
    table({m: (reached.values, reached.intervals) for m, reached in found.items()}, path, "score", columns, note)


def write_reliability(cases: KeptCases, path: Path, record: dict[str, Any]) -> list[Bin]:
    """A table of `probabilities.reliability`, and the same in the record of a split."""
    curve = reliability(*of_cases(cases))
    record["reliability"] = [b._asdict() for b in curve]
    columns = {"probability": "mean p(diseased)", "diseased": "share diseased", "slices": "slices"}
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {b.name: (b._asdict(), {}) for b in curve}
    table(
        rows,
        path,
        "bin of p(diseased)",
        columns,
        "Slices of nearly one p(diseased), and how many of them are diseased.",
    )
    return curve


def write_rows(
    rows: Mapping[str, Threshold], found: Mapping[str, Measured], domain: Domain, path: Path, record: dict[str, Any]
) -> None:
    """A table of what `rows.results` found, and the same in the record of a split."""
    given = {name: {} if row.value is None else {"threshold": row.value} for name, row in rows.items()}
    values: dict[str, dict[str, float]] = {name: {**given[name], **found[name].values} for name in rows}
    missing = left_out({metric for of_row in values.values() for metric in of_row}, OF_MAPS)
    record["left_out"] |= missing
    record[domain] = {
        name: {"threshold_by": rows[name].chosen_by}
        | {metric: value if math.isfinite(value) else None for metric, value in of_row.items()}
        | ({"threshold": EVERYTHING} if rows[name].value == -math.inf else {})
        for name, of_row in values.items()
    }
    ways = sorted({row.chosen_by for row in rows.values() if row.value is not None} - {THE_BUNDLES})
    notes = [f"Thresholds are chosen on validation: {', '.join(ways)}."] if ways else []
    if record["lesions_known_by"]:
        notes.append(f"Lesions are known by {record['lesions_known_by']}.")
    if record["diseased_slices_with_unknown_lesion"]:
        notes.append("Of {diseased_slices_with_unknown_lesion} diseased slices no lesion is known.".format_map(record))
    columns = {"threshold": "threshold", **{name: heading for name, (heading, _) in OF_MAPS.items()}}
    results = {name: (values[name], found[name].intervals) for name in rows}
    note = " ".join([*notes, ABOUT, said(missing)])
    table(results, path, f"method ({DOMAINS[domain]})", columns, note)
