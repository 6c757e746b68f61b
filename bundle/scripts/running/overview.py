"""A picture of a result for people who would rather look than read."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from monai.data import MetaTensor

from ..images.geometry import axial, axial_index
from ..images.masks import load_mask
from ..images.registering import shown_channel
from ..images.restoring import LESION, NOT_ASSESSED

AMBER, BLUE = "#ffb000", "#5b9bff"


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
    image = _axial(result["input_image"], channel)
    healthy = _axial(result["counterfactual"], channel) if "counterfactual" in result else None
    a, pred = _axial(result["anomaly_map"]), _axial(result["pred"])
    lesion = None
    if truth is not None:
        lesion = _axial(load_mask(truth, result["input_image"])) > 0
    affine = torch.as_tensor(result["input_image"].affine)
    spacing = axial(result["input_image"][:1]).pixdim.tolist()
    chosen = sorted((s for s in result["slices"] if s["assessed"]), key=lambda s: -s["score"])[:num_slices]
    rows = [(axial_index(s["slice"], affine, image.shape[2]), s) for s in chosen]
    rows.sort(key=lambda row: row[0])

    titles = ["Input", *(["Healthy counterpart"] if healthy is not None else []), "Anomaly map", "Marked lesion"]
    titles += ["Radiologist's mask"] if truth else []
    at = {title: column for column, title in enumerate(titles)}
    # a spike or a padding value must not hide what is seen
    levels = np.clip(image, *np.percentile(image, [0.5, 99.5])) - np.percentile(image, 0.5)
    bright = levels > levels.mean() * 0.5
    x, y = (np.flatnonzero(bright.any(axis=other)) for other in ((1, 2), (0, 2)))
    box = (slice(x[0], x[-1] + 1), slice(y[0], y[-1] + 1))
    width, height = (float(n) * s for n, s in zip((x[-1] - x[0] + 1, y[-1] - y[0] + 1), spacing[:2], strict=True))
    # one line has room for 13 letters an inch
    warned = [
        line
        for warning in result.get("warnings", ())
        for line in textwrap.wrap(f"WARNING: {warning}", round(13 * 2.2 * len(titles)))
    ]
    top = 0.3 + 0.19 * len(warned)
    size = (2.2 * len(titles), 2.2 * height / width * max(len(rows), 1) + 0.8 + top)
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - top / size[1]))
    figure = Figure(size, facecolor="black", layout=layout)
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.3 / size[1], "\n".join(warned), color=AMBER, fontsize=9, va="top", linespacing=1.3)
    axes = figure.subplots(max(len(rows), 1), len(titles), squeeze=False)
    low, high = np.percentile(image[bright], [1, 97])
    limit = max(float(np.nanmax(a, initial=0)), 1e-3)
    drawn, unseen = None, False
    for panels, (z, scores) in zip(axes, rows, strict=False):
        base, heat, marked = (v[..., z][box].T for v in (image, np.nan_to_num(a), pred))
        for ax, title in zip(panels, titles, strict=True):
            shown = healthy[..., z][box].T if healthy is not None and title == "Healthy counterpart" else base
            ax.imshow(shown, cmap="gray", vmin=low, vmax=high, aspect=spacing[1] / spacing[0])
        alpha = np.clip(2 * heat / limit, 0, 0.85)
        drawn = panels[at["Anomaly map"]].imshow(
            heat, cmap="inferno", vmin=0, vmax=limit, alpha=alpha, aspect=spacing[1] / spacing[0]
        )
        outlines = [
            (panels[at["Marked lesion"]], marked == NOT_ASSESSED, BLUE),
            (panels[at["Marked lesion"]], marked == LESION, "#ff4040"),
        ]
        unseen = unseen or bool((marked == NOT_ASSESSED).any())
        if lesion is not None:
            outlines.append((panels[-1], lesion[..., z][box].T, "#40ff80"))
        for ax, mask, color in outlines:
            if mask.any():
                ax.contour(mask, levels=[0.5], colors=color, linewidths=1)
        text = f"p(diseased) {scores['p_diseased']:.2f}   score {scores['score']:.3f}"
        text = text if image.shape[2] == 1 else f"slice {scores['slice']}   {text}"
        panels[0].text(0.02, -0.01, text, transform=panels[0].transAxes, color="white", fontsize=6, va="top")
    for ax in axes.ravel():
        ax.axis("off")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, color="white", fontsize=9)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes.ravel().tolist(), fraction=0.015, pad=0.005)
        bar.ax.tick_params(colors="white", labelsize=6)
        bar.set_label("anomaly", color="white", fontsize=6)
    # where a picture has the patient's right is not for us to say
    is_picture = result["input_image"].meta.get("unit", "ml") != "ml"
    title = name if is_picture else f"{name}   (the patient's right is on the left)"
    figure.text(0.5, 1 - 0.05 / size[1], title, color="white", fontsize=9, ha="center", va="top")
    legend = "Blue outline: not assessed.  " if unseen else ""
    figure.supxlabel(f"{legend}Research software, not for clinical use", color="#aaaaaa", fontsize=7)
    figure.savefig(path, dpi=110, facecolor="black")
