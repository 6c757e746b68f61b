"""Which patient is trained on and which is tested on: by a seed, or as a CSV says."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import check_number

SECTIONS = ("training", "validation", "test")

NAMES = {"train": "training", "val": "validation", "valid": "validation"}
"""How others call them."""


def section_of(split: str) -> str:
    """A split's name in a datalist."""
    return NAMES.get(split.strip().lower(), split.strip().lower())


def read_split(path: str) -> dict[str, str]:
    """The section of every subject, from a CSV with the columns ``subject`` and ``split``.

    Raises:
        ValueError: no such file, a column is missing, a field is empty, or a subject is in two splits.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: can't be read as a CSV ({error}).") from error
    sections: dict[str, str] = {}
    for n, row in enumerate(rows, start=2):
        subject, split = (str(row.get(column) or "").strip() for column in ("subject", "split"))
        if not subject or not split:
            raise ValueError(f"{path}, line {n}: needs a value in the columns 'subject' and 'split'.")
        if sections.setdefault(subject, section_of(split)) != section_of(split):
            raise ValueError(f"{path}, line {n}: {subject} is in {sections[subject]!r} already.")
    if not sections:
        raise ValueError(f"{path}: names no subject.")
    return sections


def checked_fractions(fractions: Any) -> list[float]:
    """The shares of training, validation and test.

    Raises:
        ValueError: other than three numbers from 0 to 1 that add up to 1.
    """
    if not isinstance(fractions, (list, tuple)) or len(fractions) != 3:
        raise ValueError(f"fractions must be three numbers, of training, validation and test, got {fractions!r}.")
    for fraction in fractions:
        check_number("fractions", fraction, 0, 1)
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must add up to 1, got {', '.join(map(str, fractions))}.")
    return [float(f) for f in fractions]


def split_subjects(
    classes: Mapping[str, Any], fractions: Sequence[float], seed: int, given: Mapping[str, str]
) -> dict[str, str]:
    """The section of every subject: the one given, or drawn by the seed, for each class with the same fractions.

    The draw sorts by a hash of seed and name, so that it does not depend on the order of files, and one patient more moves
    few others. Where some are given as "test", none else is drawn into it, and training and validation share the rest.

    Args:
        classes: what is known of each subject; those with the same are spread evenly.
        fractions: of training, validation and test.
        seed: of the draw.
        given: sections that are fixed.
    """
    free = [
        0.0 if name in set(given.values()) - {"training"} else f for name, f in zip(SECTIONS, fractions, strict=True)
    ]
    total = sum(free) or 1.0
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for subject, kind in classes.items():
        if subject not in given:
            groups[str(kind)].append(subject)
    result = {subject: given[subject] for subject in classes if subject in given}
    for subjects in groups.values():
        subjects.sort(key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).digest())
        ends = [round(len(subjects) * sum(free[: n + 1]) / total) for n in range(3)]
        for n, subject in enumerate(subjects):
            result[subject] = SECTIONS[next((i for i, end in enumerate(ends) if n < end), 0)]
    return result
