"""The parts of lesions: of masks with several values, such as a tumour's core, oedema and enhancing part, how much is found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .bootstrap import INTERVALS, LEAST_PATIENTS, NUM_RESAMPLES, interval
from .cases import Array, Domain, SliceCase
from .ranking import quotient
from .tables import table

MOST_VALUES = 16
"""More values of a mask are no parts, but probabilities or the edges of a picture."""
A_LESION = {1, 255}
"""What masks hold that only say where a lesion is."""
COLUMNS = {"recall": "recall", "pixels": "pixels", "patients": "patients"}


def parts_of(values: Array) -> Array | None:
    """The parts of a lesion, uint8, 0 outside of it; None where a mask is empty, or its values are no parts.

    One value may be the part that a patient has of several; `recalls` decides that, as it sees all masks.

    Args:
        values: of a mask, of any shape.
    """
    above = np.unique(values[values > 0])
    if not 1 <= len(above) <= MOST_VALUES or (above % 1 != 0).any() or above[-1] > 255:
        return None
    parts: Array = np.where(values > 0, values, 0).astype(np.uint8)
    return parts


def recalls(cases: Iterable[SliceCase], method: str, threshold: float, domain: Domain) -> dict[str, dict[str, Any]]:
    """Of each value of the masks: which share of its pixels is marked, pooled; its pixels; the patients that have it.

    Nothing where all of them together have one value, or none but `A_LESION`. Slices without a mask have no part in it.
    ``interval`` is the 95 % patient bootstrap's, where there are at least `LEAST_PATIENTS`.

    Args:
        cases: see `SliceCase`.
        method: of the map.
        threshold: marked is what is above.
        domain: of the pixels.
    """
    counts: defaultdict[int, defaultdict[str, Array]] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for case in cases:
        if case.parts is None:
            continue
        marked, parts = case.values(method, domain) > threshold, case.parts[case.inside(domain)]
        for value in np.unique(parts[parts > 0]).tolist():
            of_value = parts == value
            counts[value][case.subject] += [int((marked & of_value).sum()), int(of_value.sum())]
    result: dict[str, dict[str, Any]] = {}
    if len(counts) < 2 or counts.keys() <= A_LESION:
        return result
    for value in sorted(counts):
        of_subject = np.stack(list(counts[value].values()))
        found, pixels = of_subject.sum(axis=0)
        result[str(value)] = {"recall": found / pixels, "pixels": int(pixels), "patients": len(of_subject)}
        if (n := len(of_subject)) >= LEAST_PATIENTS:
            weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), NUM_RESAMPLES)
            result[str(value)]["interval"] = list(interval(quotient(*(weights @ of_subject).T), n))
    return result


def write_parts(found: dict[str, dict[str, Any]], method: str, threshold: float, domain: str, path: Path) -> None:
    """A table of `recalls`, a row a value."""
    rows = {
        f"mask value {value}": (
            {name: of_value[name] for name in COLUMNS},
            {"recall": of_value["interval"]} if "interval" in of_value else {},
        )
        for value, of_value in found.items()
    }
    note = f"How much of each part of the lesions is marked by: {method}, above {threshold:.4g}, pooled."
    table(rows, path, f"part ({domain})", COLUMNS, f"{note} {INTERVALS}")
