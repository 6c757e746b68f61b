"""A picture of what was found and what was missed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import DISEASED
from ..files import write
from .cases import Domain, SliceCase
from .probabilities import Bin
from .sums import MIN_LESION_PIXELS, dice

FOUND: dict[str, Any] = {"color": "#ffb000", "linestyle": "solid", "label": "found by the method"}


TRUTH: dict[str, Any] = {"color": "#4cc9f0", "linestyle": "dashed", "label": "known lesion"}


def best_median_worst(
    cases: Iterable[SliceCase], method: str, threshold: float, domain: Domain
) -> tuple[list[tuple[str, float, SliceCase]], int]:
    """Three diseased slices with lesion enough, by Dice at `threshold`, and among how many; fewer where there are fewer.

    Raises:
        ValueError: as for `metrics`, or no diseased slice has more than `MIN_LESION_PIXELS` known lesion pixels.
    """
    ranked = []
    for number, case in enumerate(cases):
        values, truth = case.values(method, domain), case.lesion(domain)
        if case.diseased == DISEASED and truth is not None and truth.sum() > MIN_LESION_PIXELS:
            ranked.append((-dice(values > threshold, truth), number))
    if not ranked:
        raise ValueError(f"no diseased slice has more than {MIN_LESION_PIXELS} lesion pixels, so none can be shown.")
    ranked.sort()
    places = {len(ranked) - 1: "Worst", (len(ranked) - 1) // 2: "Median", 0: "Best"}
    chosen = {ranked[i][1]: i for i in places}
    found = {chosen[number]: case for number, case in enumerate(cases) if number in chosen}
    return [(places[i], -ranked[i][0], found[i]) for i in sorted(places)], len(ranked)


def figure(
    cases: Iterable[SliceCase], method: str, threshold: float, path: str | Path, domain: Domain = "foreground"
) -> None:
    """Draw the best, the median and the worst slice by Dice at `threshold`, see `best_median_worst`.

    A row holds the image, the counterfactual where there is one, the anomaly map over the image, and the contours of
    what was found and of the known lesion. The patient's right is on the left, anterior is up.

    Raises:
        ValueError: see `best_median_worst`.
    """
    shown, number = best_median_worst(cases, method, threshold, domain)
    columns = ["Image", "Computed healthy counterpart", "Anomaly map", "Contours"]
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
        row[0].set_ylabel(f"{place}: Dice {overlap:.2f}\n{str(case)[-40:]}")  # a subject may be a path
        row[0].text(0.03, 0.95, "R", transform=row[0].transAxes, color="white", va="center")
        a = case.maps[method].T
        alpha = np.clip((a - low) / (high - low), 0, 1) * case.foreground.T
        overlay = row[-2].imshow(a, cmap="inferno", vmin=low, vmax=high, alpha=alpha)
        found = (case.maps[method] > threshold) & case.inside(domain)
        for mask, style in ((found, FOUND), (case.truth, TRUTH)):
            if mask is not None and mask.any() and not mask.all():
                row[-1].contour(mask.T, [0.5], colors=style["color"], linestyles=style["linestyle"], linewidths=1.6)
    bar = drawing.colorbar(overlay, ax=axes, shrink=0.6, label=f"Anomaly (green line: threshold {threshold:.3g})")
    bar.ax.axhline(threshold, color="#00ff88", linewidth=2)
    drawing.legend(handles=[Line2D([], [], **FOUND), Line2D([], [], **TRUTH)], loc="outside lower left", ncols=2)
    drawing.suptitle(f"{method}\n{', '.join(s[0].lower() for s in shown)} of {number} slices with a lesion")
    drawing.supxlabel("Not for clinical use", x=0.99, ha="right", fontsize=8)
    _save(drawing, Path(path))


def reliability_figure(curves: Mapping[str, Sequence[Bin]], path: Path) -> None:
    """Draw how often slices are diseased by what p(diseased) says, a curve a split; a dot's area: how many its bin holds."""
    drawing = Figure((4.5, 4.5), layout="constrained")
    ax = drawing.subplots()
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="dashed")
    for name, curve in curves.items():
        x, y = [b.probability for b in curve], [b.diseased for b in curve]
        [line] = ax.plot(x, y, label=f"{name}, {sum(b.slices for b in curve)} slices")
        shares = np.array([b.slices for b in curve]) / sum(b.slices for b in curve)
        ax.scatter(x, y, 20 + 400 * shares, color=line.get_color(), alpha=0.6, linewidths=0)
    ax.set(xlabel="p(diseased)", ylabel="share of slices that are diseased", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    ax.legend(loc="upper left", frameon=False)
    _save(drawing, path)


def _save(drawing: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=150, format=path.suffix.lstrip(".") or "png")
    write(path, buffer.getvalue())
