"""How much the result depends on the noise level L and the guidance scale s, on validation slices.

    python benchmarks/sweep.py --datalist FILE [--slices 64] [--noise_levels "[250,500]"] [--scales "[3,10,30]"] [--device cuda]

Slices are drawn with `seed`, encoded once a noise level and decoded once a scale. What is measured is the default's map, the
mean of the counterfactual's and the student's two, and ``dice_oracle_alone`` the counterfactual's by itself. Three columns
need no mask: the threshold of ``dice_labels`` is Otsu's of the slices labelled diseased, in three classes as the map is a mean
of several; ``contrast`` is the AUROC with which the mean of the counterfactual's map, without the classifier's gate, tells them
from the others; ``separability`` is Otsu's own criterion, how much of the variance of that map, without the gate too, in their
foreground lies between its two classes.
Test patients are never read.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import fire
import numpy as np
import torch
from algorithms import BATCH, Algorithms
from keeping import ROOT, rounded
from matplotlib.figure import Figure
from packs import Split
from tqdm import tqdm

from scripts import DISEASED
from scripts.bundle import declared
from scripts.device import autocast, fastest_precision
from scripts.files import write
from scripts.judging.cases import SliceCase
from scripts.judging.metrics import metrics
from scripts.judging.readings import COUNTERFACTUAL, OURS, readings
from scripts.judging.thresholds import label_threshold
from scripts.method.guidance import ClassifierGuidance
from scripts.method.sampler import decode, encode, timestep_grid


def separability(cases: list[SliceCase], method: str) -> float:
    """The share of the map's variance that lies between Otsu's two classes, in the foreground of slices labelled diseased."""
    values = np.concatenate([c.maps[method][c.foreground] for c in cases if c.diseased == DISEASED])
    above = values > label_threshold(cases, method)
    return float(above.mean() * (1 - above.mean()) * (values[above].mean() - values[~above].mean()) ** 2 / values.var())


def measures(cases: list[SliceCase]) -> dict[str, float]:
    """The columns of a row, of cases with the maps "map", the default's, "alone" and "plain"; see the module."""
    result = metrics(cases, "map", label_threshold(cases, "map", classes=3), "foreground")
    return {
        "slices": len(cases),
        "pixel_ap": result["pixel_ap"],
        "dice_oracle": result["dice_oracle"],
        "dice_labels": result["dice_threshold"],
        "image_auroc": result["image_auroc"],
        "dice_oracle_alone": metrics(cases, "alone", None, "foreground")["dice_oracle"],
        "contrast": metrics(cases, "plain", None, "foreground")["image_auroc"],
        "separability": separability(cases, "plain"),
    }


def sweep(
    datalist: str,
    slices: int = 64,
    seed: int = 0,
    noise_levels: tuple[int, ...] = (250, 350, 500, 650, 750),
    scales: tuple[float, ...] = (2.0, 4.0, 10.0, 25.0, 60.0),
    output: str = str(ROOT / "benchmarks" / "validation_sweep"),
    device: str | None = None,
    cache_dir: str = str(ROOT / "bundle" / "cache"),
) -> None:
    """Write `output`.csv and .png; see the module."""
    algorithms = Algorithms(device=device)
    network, classifier, on = algorithms.network, algorithms.classifier, algorithms.device
    alphas = declared("scheduler").alphas_cumprod.float().clone().to(on)
    options, iterations = declared("displayable_configs"), declared("num_fixed_point_iterations")
    reading = declared("polarity"), declared("median_size")
    split = Split(datalist, "validation", declared("preprocessing", brain_cache=cache_dir))
    every, depths = split.slices.x, split.slices.depths
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:slices].sort().values
    x, inside = every[chosen], split.slices.foreground[chosen]
    learned, probability = algorithms.learned(every, depths), algorithms.probability(every, depths)
    known = {"probability": probability[chosen]} | {name: values[chosen] for name, values in learned.items()}
    rows = []

    def all_slices(values: torch.Tensor) -> torch.Tensor:
        """Zeros for the slices that were not drawn."""
        full = torch.zeros(len(every), *values.shape[1:])
        full[chosen] = values
        return full

    def noise_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return network(x, t).float()

    for level in noise_levels:
        grid = timestep_grid(level, options["num_inference_steps"], len(alphas))
        with torch.no_grad(), autocast(on, fastest_precision(on)):
            noise = [encode(noise_model, b.to(on), grid, alphas, iterations) for b in x.split(BATCH)]
        for scale in tqdm(scales, f"L = {level}"):
            guided = ClassifierGuidance(classifier, alphas, scale)(noise_model)
            with torch.no_grad(), autocast(on, fastest_precision(on)):
                healthy = torch.cat([decode(guided, n, grid, alphas) for n in noise]).cpu()
            healthy = torch.where(inside, healthy.clamp(-1, 1), x)
            maps, scores = readings(x, known | {"counterfactual": healthy}, inside, *reading)
            ungated = {"counterfactual": healthy, "probability": torch.ones(len(x))}
            plain, plain_scores = readings(x, ungated, inside, *reading)
            of_pixels = {"map": maps[OURS], "alone": maps[COUNTERFACTUAL], "plain": plain[COUNTERFACTUAL]}
            of_image = {"map": scores[OURS], "alone": scores[COUNTERFACTUAL], "plain": plain_scores[COUNTERFACTUAL]}
            cases = split.cases(
                {name: all_slices(a) for name, a in of_pixels.items()},
                {name: all_slices(s) for name, s in of_image.items()} | {"number": torch.arange(len(every))},
            )
            cases = [c for c in cases if int(c.scores["number"]) in chosen]
            row = {"noise_level": level, "scale": scale, **measures(cases)}
            rows.append(rounded(row, 3))
            tqdm.write(str(rows[-1]))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(Path(output).with_suffix(".csv"), text.getvalue().encode())

    figure = Figure((13, 3.6), layout="constrained")
    titles = {
        "dice_oracle": "oracle Dice",
        "dice_labels": "Dice, threshold without masks",
        "dice_oracle_alone": "oracle Dice, counterfactual alone",
    }
    for ax, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        values = np.array([r[name] for r in rows]).reshape(len(noise_levels), len(scales))
        ax.imshow(values, cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto")
        for i, j in np.ndindex(values.shape):
            ax.text(
                j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="white" if values[i, j] < 0.6 else "black"
            )
        ax.set(title=title, xlabel="guidance scale s", ylabel="noise level L")
        ax.set_xticks(range(len(scales)), [f"{s:g}" for s in scales])
        ax.set_yticks(range(len(noise_levels)), [str(level) for level in noise_levels])
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    write(Path(output).with_suffix(".png"), buffer.getvalue())


if __name__ == "__main__":
    fire.Fire(sweep)
