"""Tables and pictures of what `metrics` measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import DISEASED
from ..files import write
from .cases import Domain, SliceCase
from .metrics import METRICS, MIN_LESION_PIXELS, dice

FOUND: dict[str, Any] = {"color": "#ffb000", "linestyle": "solid", "label": "found by the method"}


TRUTH: dict[str, Any] = {"color": "#4cc9f0", "linestyle": "dashed", "label": "radiologist's outline"}


def table(
    results: Mapping[str, tuple[Mapping[str, float], Mapping[str, tuple[float, float]]]],
    path: str | Path,
    domain: Domain,
    note: str = "",
) -> tuple[Path, Path]:
    """Write a row a method and a column a metric, such as ``0.812 (0.74-0.87)``, as CSV and as Markdown.

    Args:
        results: for each method, what `metrics` and `bootstrap` gave; an empty dictionary for no intervals.
        path: of either file; the other has the same name and its own suffix.
        domain: of the results; both files state it.
        note: a sentence below the Markdown table.

    Returns:
        The paths of the CSV and of the Markdown file. Each is replaced as a whole.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("there are no results to write.")
    where = "pixels inside the foreground" if domain == "foreground" else "pixels of the whole image"
    rows = [[f"method ({where})", *METRICS.values()]]
    rows += [[method, *(_cell(m, *values) for m in METRICS)] for method, values in results.items()]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    about = "In brackets: 95 % patient bootstrap interval. Oracle: its threshold is chosen on these very slices."
    lines = [lines[0], "|---" * len(rows[0]) + "|", *lines[1:], "", f"{about} {note}".strip(), ""]
    paths = Path(path).with_suffix(".csv"), Path(path).with_suffix(".md")
    for target, content in zip(paths, (text.getvalue(), "\n".join(lines)), strict=True):
        write(target, content.encode())
    return paths


def _cell(name: str, values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str:
    digits, fewer = (1, 1) if name == "healthy_area" else (3, 2)
    if not np.isfinite(values[name]):
        return "n/a"
    if name not in intervals:
        return f"{values[name]:.{digits}f}"
    low, high = intervals[name]
    interval = f"{low:.{fewer}f}-{high:.{fewer}f}" if np.isfinite(low) else "n/a"
    return f"{values[name]:.{digits}f} ({interval})"


def figure(
    cases: Sequence[SliceCase], method: str, threshold: float, path: str | Path, domain: Domain = "foreground"
) -> None:
    """Draw the best, the median and the worst slice by Dice at `threshold` among diseased slices with lesion enough.

    A row holds the image, the counterfactual where there is one, the anomaly map over the image, and the contours of
    what was found and of the radiologist's lesion. The patient's right is on the left, anterior is up.

    Raises:
        ValueError: as for `metrics`, or no diseased slice has more than `MIN_LESION_PIXELS` lesion pixels.
    """
    ranked = []
    for case in cases:
        values, truth = case.pixels(method, domain)
        if case.diseased == DISEASED and truth.sum() > MIN_LESION_PIXELS:
            ranked.append((dice(values > threshold, truth), case))
    if not ranked:
        raise ValueError(f"no diseased slice has more than {MIN_LESION_PIXELS} lesion pixels, so none can be shown.")
    ranked.sort(key=lambda r: -r[0])
    places = {len(ranked) - 1: "Worst", (len(ranked) - 1) // 2: "Median", 0: "Best"}
    shown = [(places[i], *ranked[i]) for i in sorted(places)]
    columns = ["FLAIR", "Computed healthy counterpart", "Anomaly map", "Contours"]
    if all(case.counterfactual is None for _, _, case in shown):
        columns.pop(1)
    height = 2.6 * shown[0][2].image.shape[1] / shown[0][2].image.shape[0]
    drawing = Figure(figsize=(2.6 * len(columns) + 1.6, height * len(shown) + 1.4), layout="constrained")
    axes = drawing.subplots(len(shown), len(columns), squeeze=False)
    inside = np.concatenate([case.maps[method][case.foreground] for _, _, case in shown])
    low = min(0.0, float(inside.min()))
    high = max(float(inside.max()), threshold, low + 1e-6)
    for row, (place, overlap, case) in zip(axes, shown, strict=True):
        for ax, column in zip(row, columns, strict=True):
            background = case.counterfactual if column == columns[1] and len(columns) == 4 else case.image
            if background is not None:
                ax.imshow(background.T, cmap="gray", vmin=case.image.min(), vmax=case.image.max())
            ax.set(xticks=[], yticks=[])
        for ax, column in zip(axes[0], columns, strict=True):
            ax.set_title(column)
        row[0].set_ylabel(f"{place}: Dice {overlap:.2f}\n{case}")
        row[0].text(0.03, 0.95, "R", transform=row[0].transAxes, color="white", va="center")
        a = case.maps[method].T
        alpha = np.clip((a - low) / (high - low), 0, 1) * case.foreground.T
        overlay = row[-2].imshow(a, cmap="inferno", vmin=low, vmax=high, alpha=alpha)
        found = (case.maps[method] > threshold) & case.inside(domain)
        for mask, style in ((found, FOUND), (case.truth, TRUTH)):
            if mask.any() and not mask.all():
                row[-1].contour(mask.T, [0.5], colors=style["color"], linestyles=style["linestyle"], linewidths=1.6)
    bar = drawing.colorbar(overlay, ax=axes, shrink=0.6, label=f"Anomaly (green line: threshold {threshold:.3g})")
    bar.ax.axhline(threshold, color="#00ff88", linewidth=2)
    drawing.legend(handles=[Line2D([], [], **FOUND), Line2D([], [], **TRUTH)], loc="outside lower left", ncols=2)
    drawing.suptitle(f"{method}\n{', '.join(s[0].lower() for s in shown)} of {len(ranked)} slices with a lesion")
    drawing.supxlabel("Not for clinical use", x=0.99, ha="right", fontsize=8)
    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=150, format=Path(path).suffix.lstrip(".") or "png")
    write(Path(path), buffer.getvalue())
