"""A picture of a result for people who would rather look than read."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from monai.data import MetaTensor

from ..images.geometry import axial, axial_index
from ..images.masks import load_mask
from ..images.registering import shown_channel
from ..images.restoring import LESION, NOT_ASSESSED

AMBER, BLUE = "#ffb000", "#5b9bff"
INPUT, COUNTERPART, MAP, MARKED, TRUTH = (
    "Input",
    "Healthy counterpart",
    "Anomaly map",
    "Marked lesion",
    "Radiologist's mask",
)
"""The columns."""


def _axial(image: MetaTensor, channel: int = 0) -> np.ndarray:
    """``(X, Y, Z)`` of a channel, left, posterior, superior: as radiologists look at it once transposed."""
    return np.nan_to_num(axial(image[channel : channel + 1].float())[0].as_tensor().numpy(), posinf=0, neginf=0)


def draw_overview(result: Mapping[str, Any], truth: str | None, name: str, path: Path, num_slices: int = 5) -> None:
    """Draw the assessed slices with the highest scores: input, counterfactual if any, map, mask, truth if known.

    What was not assessed is outlined beside the mask.

    Args:
        result: of one volume, after `RestoreGridd`; its ``warnings`` stand at the top.
        truth: path of a lesion mask on the input's grid, see `images.masks.load_mask`, if there is one.
        name: for the title.
        path: of the PNG.
        num_slices: at most.
    """
    channel = shown_channel(result["input_image"])
    volumes = {INPUT: _axial(result["input_image"], channel)}
    if "counterfactual" in result:
        volumes[COUNTERPART] = _axial(result["counterfactual"], channel)
    volumes |= {MAP: _axial(result["anomaly_map"]), MARKED: _axial(result["pred"])}
    if truth is not None:
        volumes[TRUTH] = _axial(load_mask(truth, result["input_image"])) > 0
    image = volumes[INPUT]
    affine = torch.as_tensor(result["input_image"].affine)
    spacing = axial(result["input_image"][:1]).pixdim.tolist()
    chosen = sorted((s for s in result["slices"] if s["assessed"]), key=lambda s: -s["score"])[:num_slices]
    rows = [(axial_index(s["slice"], affine, image.shape[2]), s) for s in chosen]
    rows.sort(key=lambda row: row[0])

    bright, box = _content(image)
    sides = [(side.stop - side.start) * mm for side, mm in zip(box, spacing[:2], strict=True)]
    # where a picture has the patient's right is not for us to say
    is_picture = result["input_image"].meta.get("unit", "ml") != "ml"
    title = name if is_picture else f"{name}   (the patient's right is on the left)"
    figure, axes = _page(title, list(volumes), max(len(rows), 1), sides, result.get("warnings", ()))
    window = tuple(np.percentile(image[bright], [1, 97]))
    limit = max(float(volumes[MAP].max(initial=0)), 1e-3)
    drawn, unseen = None, False
    for panels, (z, scores) in zip(axes, rows, strict=False):
        planes = {column: volume[..., z][box].T for column, volume in volumes.items()}
        drawn = _draw_slice(dict(zip(volumes, panels, strict=True)), planes, window, limit, spacing[1] / spacing[0])
        unseen = unseen or bool((planes[MARKED] == NOT_ASSESSED).any())
        text = f"p(diseased) {scores['p_diseased']:.2f}   score {scores['score']:.3f}"
        text = text if image.shape[2] == 1 else f"slice {scores['slice']}   {text}"
        panels[0].text(0.02, -0.01, text, transform=panels[0].transAxes, color="white", fontsize=6, va="top")
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes.ravel().tolist(), fraction=0.015, pad=0.005)
        bar.ax.tick_params(colors="white", labelsize=6)
        bar.set_label("anomaly", color="white", fontsize=6)
    legend = "Blue outline: not assessed.  " if unseen else ""
    figure.supxlabel(f"{legend}Research software, not for clinical use", color="#aaaaaa", fontsize=7)
    figure.savefig(path, dpi=110, facecolor="black")


def _content(image: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
    """What of ``(X, Y, Z)`` is no background, and the part of the slices that holds it."""
    # a spike or a padding value must not hide what is seen
    levels = np.clip(image, *np.percentile(image, [0.5, 99.5])) - np.percentile(image, 0.5)
    bright = levels > levels.mean() * 0.5
    x, y = (np.flatnonzero(bright.any(axis=other)) for other in ((1, 2), (0, 2)))
    return bright, (slice(int(x[0]), int(x[-1]) + 1), slice(int(y[0]), int(y[-1]) + 1))


def _page(
    title: str, columns: Sequence[str], rows: int, sides: Sequence[float], warnings: Sequence[str]
) -> tuple[Figure, np.ndarray]:
    """An empty page with its titles and warnings, and its panels ``(rows, columns)``, which are `sides` mm wide and high."""
    # one line has room for 13 letters an inch
    warned = [
        line for warning in warnings for line in textwrap.wrap(f"WARNING: {warning}", round(13 * 2.2 * len(columns)))
    ]
    top = 0.3 + 0.19 * len(warned)
    size = (2.2 * len(columns), 2.2 * sides[1] / sides[0] * rows + 0.8 + top)
    figure = Figure(size, facecolor="black", layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - top / size[1])))
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.3 / size[1], "\n".join(warned), color=AMBER, fontsize=9, va="top", linespacing=1.3)
    figure.text(0.5, 1 - 0.05 / size[1], title, color="white", fontsize=9, ha="center", va="top")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for ax in axes.ravel():
        ax.axis("off")
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(column, color="white", fontsize=9)
    return figure, axes


def _draw_slice(
    panels: Mapping[str, Axes],
    planes: Mapping[str, np.ndarray],
    window: tuple[float, ...],
    limit: float,
    aspect: float,
) -> AxesImage:
    """Draw one slice into its panels; the map's picture is returned.

    Args:
        panels: by the names of the columns.
        planes: what they show, ``(Y, X)``.
        window: the lowest and the highest intensity that are told apart.
        limit: the highest value of the map.
        aspect: of a pixel, its height to its width.
    """
    for column, ax in panels.items():
        shown = planes[COUNTERPART if column == COUNTERPART else INPUT]
        ax.imshow(shown, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
    heat, marked = planes[MAP], planes[MARKED]
    alpha = np.clip(2 * heat / limit, 0, 0.85)
    drawn = panels[MAP].imshow(heat, cmap="inferno", vmin=0, vmax=limit, alpha=alpha, aspect=aspect)
    outlines = [(MARKED, marked == NOT_ASSESSED, BLUE), (MARKED, marked == LESION, "#ff4040")]
    if TRUTH in planes:
        outlines.append((TRUTH, planes[TRUTH], "#40ff80"))
    for column, mask, colour in outlines:
        if mask.any():
            panels[column].contour(mask, levels=[0.5], colors=colour, linewidths=1)
    return drawn
