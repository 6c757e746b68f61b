"""The picture: one page of five panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .. import DISEASED, HEALTHY
from . import panels, toys

INTRODUCTION = (
    "Nothing here is trained: the healthy and the diseased images are two Gaussians, so the noise model and the classifier "
    "are known exactly.\nEverything else is the code that runs on real images. Under each sentence: its equation, where that "
    "was published, and the code."
)
X = torch.tensor([[-0.24, -0.76], [0.2, -0.63], [-0.2, 0.55], [0.06, 0.73], [0.25, 0.5]])
"""The images of two pixels whose paths are drawn: two healthy, three diseased."""
LABELS = [HEALTHY] * 2 + [DISEASED] * 3


def draw(path: Path) -> None:
    """Draw all panels as a PNG."""
    figure = Figure((16, 12.6), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.045, 0.98, "How guided diffusion finds a lesion", fontsize=22, fontweight="bold", va="top")
    figure.text(0.045, 0.947, INTRODUCTION, fontsize=11.5, color=panels.GREY, va="top", linespacing=1.4)
    upper = figure.add_gridspec(
        1, 3, left=0.045, right=0.985, top=0.762, bottom=0.495, width_ratios=(1, 1, 1.75), wspace=0.17
    )
    lower = figure.add_gridspec(
        1, 2, left=0.045, right=0.96, top=0.298, bottom=0.055, width_ratios=(1, 2.85), wspace=0.12
    )
    data, plane, over_time = (figure.add_subplot(upper[k]) for k in range(3))
    # a gap, and the next pair of counterpart and map
    cells = lower[1].subgridspec(2, 10, wspace=0.05, hspace=0.06, width_ratios=(1, *(0.12, 1, 1) * 3))
    images = np.array([[figure.add_subplot(cells[row, column]) for column in range(10)] for row in range(2)])

    toy = toys.two_pixels()
    points = {label: toy.draw(label, 150, seed=label) for label in panels.NAMES}
    ways = toys.paths(toy, X, toys.RIGHT)
    panels.data(data, points)
    panels.plane(plane, points, ways, LABELS)
    panels.over_noise_levels(over_time, toy, ways, LABELS)
    few = {label: x[:40] for label, x in points.items()}
    ends = {s: {label: toys.ends(toy, x, s) for label, x in few.items()} for s in toys.SCALES}
    panels.scales(figure.add_subplot(lower[0]), few, ends)
    x = toys.example_images()
    panels.images(images, x, {s: toys.counterpart_and_map(toys.small_images(), x, s) for s in toys.SCALES})
    figure.savefig(path, dpi=110, format="png")
