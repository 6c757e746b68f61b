"""Tables of what `metrics` measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..files import write

EVERYTHING = "all"
"""Stands for a threshold of -inf, above which all is marked; where no threshold was chosen, there is nothing."""
Result = tuple[Mapping[str, float], Mapping[str, tuple[float, float]]]
"""Values and intervals, by the names of metrics."""


def table(
    results: Mapping[str, Result], path: str | Path, heading: str, columns: Mapping[str, str], note: str = ""
) -> tuple[Path, Path]:
    """Write a row a method and a column a metric, such as ``0.812 (0.74-0.87)``, as CSV and as Markdown.

    Args:
        results: for each row what `metrics` and `bootstrap` gave; an empty dictionary for no intervals.
        path: of either file; the other has the same name and its own suffix.
        heading: of the rows.
        columns: headings by the names of metrics; a column that no row has a value for is left out.
        note: sentences below the Markdown table.

    Returns:
        The paths of the CSV and of the Markdown file. Each is replaced as a whole.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("there are no results to write.")
    shown = [name for name in columns if any(name in values for values, _ in results.values())]
    rows = [[heading, *(columns[name] for name in shown)]]
    rows += [[method, *(_cell(m, *result) for m in shown)] for method, result in results.items()]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    lines = [lines[0], "|---" * len(rows[0]) + "|", *lines[1:], "", note.strip(), ""]
    paths = Path(path).with_suffix(".csv"), Path(path).with_suffix(".md")
    for target, content in zip(paths, (text.getvalue(), "\n".join(lines)), strict=True):
        write(target, content.encode())
    return paths


def left_out(measured: Iterable[str], columns: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Why metrics are not there: the reasons of `columns`, by their headings."""
    there = set(measured)
    return {heading: why for name, (heading, why) in columns.items() if name not in there}


def _cell(name: str, values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str:
    digits, fewer = (
        (1, 1)
        if name in ("healthy_area", "false_lesions")
        else (0, 0)
        if name in ("pixels", "patients", "slices", "diseased_slices")
        else (3, 2)
    )
    if name not in values:
        return ""
    value = f"{values[name]:.{digits}f}" if np.isfinite(values[name]) else "none"
    if name == "threshold" and values[name] == -np.inf:
        value = EVERYTHING
    if name not in intervals:
        return value
    low, high = intervals[name]
    return f"{value} ({low:.{fewer}f}-{high:.{fewer}f})"


def said(missing: Mapping[str, str]) -> str:
    """One sentence on what `left_out` gave; nothing where nothing is missing."""
    by_reason: dict[str, list[str]] = {}
    for heading, why in missing.items():
        by_reason.setdefault(why, []).append(heading)
    parts = [f"{', '.join(headings)} ({why})" for why, headings in by_reason.items()]
    return f"Left out: {'; '.join(parts)}." if parts else ""
