"""The panels of the picture, each from numbers that are given."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .. import DISEASED, HEALTHY
from .gaussians import TwoGaussians
from .toys import RIGHT, TOO_STRONG, Paths

NAMES = {HEALTHY: "healthy", DISEASED: "diseased"}
COLOURS = {HEALTHY: "#1f77b4", DISEASED: "#d1495b"}
SCALES = {0.0: "no guidance", RIGHT: "the right scale", TOO_STRONG: "too strong"}
GREY = "#555555"
MARKED = 125
"""Paths are marked every so many timesteps."""


def heading(ax: Axes, title: str, sentence: str, width: int, equation: str, source: str, code: str) -> None:
    """Above a panel: what is seen, in lines of `width` letters; the equation, where it was published, and the function."""
    for y, text, style in (
        (114, title, {"fontsize": 13, "fontweight": "bold"}),
        (108, textwrap.fill(sentence, width), {"fontsize": 10.5, "va": "top", "linespacing": 1.35}),
        (43, equation, {"fontsize": 11}),
        (24, source, {"fontsize": 9, "color": GREY}),
        (9, code, {"fontsize": 9, "color": GREY, "family": "monospace"}),
    ):
        ax.annotate(text, (0, 1), (0, y), "axes fraction", "offset points", **style)


def data(ax: Axes, points: Mapping[int, torch.Tensor]) -> None:
    """The images of two pixels, ``(N, 2)`` a class."""
    heading(
        ax,
        "1  An image is a point",
        "An image of two pixels is a point in the plane. Pixel 1 differs from patient to patient. Disease makes pixel 2 "
        "brighter.",
        44,
        r"$\frac{1}{2}\,N(\mu_\mathrm{healthy}, \sigma^2 I) + \frac{1}{2}\,N(\mu_\mathrm{diseased}, \sigma^2 I)$",
        "a mixture of two Gaussians",
        "explain.gaussians.TwoGaussians",
    )
    _pixels(ax, 1.2)
    for label, x in points.items():
        ax.scatter(x[:, 0], x[:, 1], s=12, color=COLOURS[label], alpha=0.6, linewidths=0)
        ax.text(0.55, float(x[:, 1].mean()), NAMES[label], color=COLOURS[label], fontsize=11, va="center")


def plane(ax: Axes, points: Mapping[int, torch.Tensor], paths: Paths, labels: Sequence[int]) -> None:
    """The paths in the plane."""
    heading(
        ax,
        "2  Up to noise, and down to healthy",
        "Each image is carried up to noise (dashed), then down guided to healthy (solid). Pixel 1 comes back, disease does "
        "not.",
        44,
        r"$x_{t'} = \sqrt{\bar\alpha_{t'}}\;\frac{x_t - \sqrt{1 - \bar\alpha_t}\,\epsilon}{\sqrt{\bar\alpha_t}}"
        r" + \sqrt{1 - \bar\alpha_{t'}}\,\epsilon$",
        "Song et al. 2021, eq. 12; upwards Wolleb et al. 2022, eq. 6",
        "method.sampler.encode, .decode",
    )
    _pixels(ax, 2.2)
    for label, x in points.items():
        ax.scatter(x[:, 0], x[:, 1], s=4, color=COLOURS[label], alpha=0.25, linewidths=0)
    for n, label in enumerate(labels):
        up, down = paths.up[:, n].numpy(), paths.down[:, n].flip(0).numpy()
        _path(ax, up[:, 0], up[:, 1], "--", COLOURS[label])
        _path(ax, down[:, 0], down[:, 1], "-", COLOURS[label])
        _ends(ax, up[0], down[-1], COLOURS[label])


def over_noise_levels(ax: Axes, toy: TwoGaussians, paths: Paths, labels: Sequence[int]) -> None:
    """The second pixel on its way, before the density of all images at each noise level."""
    heading(
        ax,
        "3  The classifier's gradient bends the way down",
        "The same paths over the noise level. On the way down the diseased cross over to the healthy images, and the healthy "
        "stay among them. The darker the grey, the more noised images lie there. A dot is drawn every 125 timesteps.",
        80,
        r"$\hat\epsilon = \epsilon - s\,\sqrt{1 - \bar\alpha_t}\;\nabla_{x_t} \log p(\mathrm{healthy}\,|\,x_t, t)$",
        "Dhariwal and Nichol 2021, algorithm 2",
        f"method.guidance.ClassifierGuidance, with s = guidance_scale = {RIGHT:g}",
    )
    times, last, limit = np.array(paths.timesteps), paths.timesteps[-1], 2.6
    t, y = torch.from_numpy(times), torch.linspace(-limit, limit, 301)
    a, std = toy.get_buffer("alphas")[t].sqrt()[:, None], toy.variance(t).sqrt()[:, None]
    density = sum(torch.exp(-(((y - a * mu) / std) ** 2) / 2) for mu in toy.weight.detach()[:, 1])
    assert isinstance(density, torch.Tensor)
    density = density / density.amax(1, keepdim=True)
    both = torch.cat([density, density.flip(0)]).T.numpy()
    ax.imshow(both, cmap="Greys", vmax=2, extent=(0, 2 * last, -limit, limit), aspect="auto", origin="lower")
    for n, label in enumerate(labels):
        up, down = paths.up[:, n, 1].numpy(), paths.down[:, n, 1].flip(0).numpy()
        _path(ax, times, up, "--", COLOURS[label])
        _path(ax, last + times, down, "-", COLOURS[label])
        _ends(ax, (0, up[0]), (2 * last, down[-1]), COLOURS[label])
    for label in NAMES:
        above = 1.2 if label == DISEASED else -1.35
        ax.text(10, above, NAMES[label], color=COLOURS[label], fontsize=11)
    ax.axvline(last, color=GREY, linewidth=1)
    ticks = range(0, 2 * last + 1, MARKED)
    ax.set_xticks(ticks, [str(last - abs(last - tick)) for tick in ticks])
    ax.set(xlim=(-15, 2 * last + 15), ylim=(-limit, limit), xlabel="noise level t")
    ax.set_ylabel("pixel 2", labelpad=0)
    for x, text in ((last / 2, "up: encode, not guided"), (1.5 * last, "down: decode, guided to healthy")):
        ax.text(x, limit * 0.95, text, ha="center", va="top", fontsize=11)
    keys = [
        Line2D([], [], marker="o", markerfacecolor="white", color=GREY, linestyle="", label="start"),
        Line2D([], [], marker="*", markersize=11, color=GREY, linestyle="", label="end"),
    ]
    ax.legend(handles=keys, loc="lower right", ncols=2, frameon=False, fontsize=10)


def scales(ax: Axes, points: Mapping[int, torch.Tensor], ends: Mapping[float, Mapping[int, torch.Tensor]]) -> None:
    """Where the second pixel ends at each guidance scale: ``ends[scale][label]``, shaped like the points."""
    heading(
        ax,
        "4  How strongly to guide",
        "Without guidance all images come back as they were. At the right scale they end among healthy images. Guided too "
        "strongly they end where no image is.",
        52,
        r"the same, at three scales $s$",
        "the right scale depends on the classifier: the paper's is 100",
        "method.guidance.ClassifierGuidance",
    )
    for label, x in points.items():
        middle, spread = float(x[:, 1].mean()), 2 * float(x[:, 1].std())
        ax.axhspan(middle - spread, middle + spread, color=COLOURS[label], alpha=0.12, linewidth=0)
        ax.text(len(ends) - 0.5, middle, NAMES[label], color=COLOURS[label], fontsize=10, ha="right", va="center")
    for at, by_label in enumerate(ends.values()):
        for label, x in by_label.items():
            across = at + np.linspace(0.02, 0.3, len(x)) * (1 if label == HEALTHY else -1)
            ax.scatter(across, x[:, 1], s=11, color=COLOURS[label], alpha=0.8, linewidths=0)
    ax.set_xticks(range(len(ends)), [f"s = {scale:g}\n{SCALES[scale]}" for scale in ends])
    ax.set(xlim=(-0.5, len(ends) - 0.45), ylim=(-2.1, 1.3))
    ax.set_ylabel("pixel 2 at the end", labelpad=0)
    ax.spines[["top", "right"]].set_visible(False)


def images(axes: np.ndarray, x: torch.Tensor, results: Mapping[float, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """A row an image of ``x`` ``(N, 1, H, W)``: itself, then at each scale its counterpart and map, alike.

    Args:
        axes: the first column for the images, then three for each scale, of which the first stays empty.
        x: diseased, and healthy.
        results: of each guidance scale.
    """
    heading(
        axes[0, 0],
        "5  What changed is the map",
        "The same on images of an organ, in which disease makes twelve pixels brighter. The counterpart at the right scale is "
        "the same image without its lesion, and the map shows the lesion alone. Without guidance nothing changes. Guided too "
        "strongly, healthy tissue changes too.",
        132,
        r"$a = \Sigma_\mathrm{channels}\,|x - \hat x|$",
        "Wolleb et al. 2022, the anomaly map",
        "method.inferer.CounterfactualInferer, method.maps.anomaly_map",
    )
    drawn = None
    for row, name in enumerate(("diseased", "healthy")):
        axes[row, 0].imshow(x[row, 0], cmap="gray", vmin=-1, vmax=0.6)
        label = DISEASED if name == "diseased" else HEALTHY
        axes[row, 0].set_ylabel(name, color=COLOURS[label], fontsize=11)
        for group, (healthy, a) in enumerate(results.values()):
            _, left, right = axes[row, 1 + 3 * group : 4 + 3 * group]
            left.imshow(healthy[row, 0], cmap="gray", vmin=-1, vmax=0.6)
            drawn = right.imshow(a[row, 0], cmap="inferno", vmin=0, vmax=0.6)
    for ax, anchor in zip(axes.ravel(), np.repeat(["N", "S"], axes.shape[1]), strict=True):
        ax.set(xticks=[], yticks=[], anchor=anchor)
        ax.spines[:].set_visible(False)
    axes[-1, 0].set_xlabel("input", fontsize=10)
    for group, scale in enumerate(results):
        _, left, right = axes[-1, 1 + 3 * group : 4 + 3 * group]
        left.set_xlabel("counterpart", fontsize=10)
        right.set_xlabel("map", fontsize=10)
        left.annotate(
            f"s = {scale:g}, {SCALES[scale]}",
            (1, 0),
            (0, -27),
            "axes fraction",
            "offset points",
            ha="center",
            fontsize=10,
        )
    last = axes[0, -1]
    bar = last.figure.colorbar(drawn, cax=last.inset_axes((1.06, -1.31, 0.06, 2.31)), ticks=[0, 0.2, 0.4, 0.6])
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _pixels(ax: Axes, limit: float) -> None:
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="pixel 1: the patient's own", aspect="equal")
    ax.set_ylabel("pixel 2: where disease shows", labelpad=0)
    ax.spines[["top", "right"]].set_visible(False)


def _path(ax: Axes, x: np.ndarray, y: np.ndarray, style: str, colour: str) -> None:
    """One way, with an arrow at its middle and its noise levels marked."""
    ax.plot(x, y, style, color=colour, linewidth=1.4)
    k, marked = len(x) // 2, slice(0, None, (len(x) - 1) // 4)
    ax.plot(x[marked], y[marked], "o", color=colour, markersize=3.5)
    arrow = {"arrowstyle": "-|>", "color": colour, "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (x[k - 4], y[k - 4]), (x[k - 5], y[k - 5]), arrowprops=arrow)


def _ends(ax: Axes, start: Sequence[float] | np.ndarray, end: Sequence[float] | np.ndarray, colour: str) -> None:
    ax.plot(*start, "o", markersize=6.5, markerfacecolor="white", color=colour, zorder=4)
    ax.plot(*end, "*", markersize=13, color=colour, markeredgecolor="white", markeredgewidth=0.7, zorder=5)
