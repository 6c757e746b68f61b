"""Sweep noise level, steps and guidance scale on the validation patients, and write one row a setting.

    python benchmarks/sweep.py --dataset_dir DIR [--noise_levels "[250,500]"] [--steps "[10]"] [--scales "[3,10,30]"]

Slices are encoded once a noise level and grid, and decoded once a scale. Test patients are never read. Masks are used to
score, not to train; the columns that need none (image AUROC, `healthy_map`) are marked so in benchmarks/README.md.
"""

from __future__ import annotations

import csv
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.bundle import declared  # noqa: E402
from scripts.data import brain_mr  # noqa: E402
from scripts.evaluation import BASELINE, OURS, PAPER, cases_of  # noqa: E402
from scripts.guidance import ClassifierGuidance  # noqa: E402
from scripts.metrics import metrics  # noqa: E402
from scripts.sampler import NoiseModel, decode, encode, timestep_grid  # noqa: E402


def sweep(
    dataset_dir: str,
    output: str = str(ROOT / "benchmarks" / "validation_sweep.csv"),
    cache_dir: str = str(ROOT / "bundle" / "cache"),
    noise_levels: tuple[int, ...] = (250, 500),
    steps: tuple[int, ...] = (10,),
    fixed_point_iterations: tuple[int, ...] = (2,),
    scales: tuple[float, ...] = (3.0, 10.0, 30.0),
) -> None:
    """Run the sweep and add its rows to `output`; see the module."""
    items = brain_mr(dataset_dir, "val")
    preprocessing = declared("preprocessing", brain_cache=cache_dir)
    network, classifier = declared("network"), declared("classifier")
    alphas = declared("scheduler").alphas_cumprod
    reading = declared("polarity"), declared("median_size")
    autocast = torch.autocast("cpu", torch.bfloat16)
    path = Path(output)
    rows: list[dict[str, Any]] = list(csv.DictReader(path.open())) if path.is_file() else []

    def noise_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return network(x, t).float()

    for level, k, iterations in itertools.product(noise_levels, steps, fixed_point_iterations):
        grid = timestep_grid(level, k, len(alphas))
        encode_once = EncodeOnce(noise_model, grid, alphas, iterations)
        for scale in scales:
            guided = ClassifierGuidance(noise_model, classifier, alphas, scale)

            def infer(
                x: torch.Tensor, assessed: torch.Tensor, encode_once: Any = encode_once, guided: Any = guided
            ) -> dict[str, torch.Tensor]:
                slices = x.movedim(-1, 1)
                chosen = slices[assessed]
                with torch.no_grad(), autocast:
                    healthy = decode(guided, encode_once(chosen), encode_once.grid, alphas)
                    p = classifier(chosen, torch.zeros(len(chosen), dtype=torch.long)).float().softmax(dim=1)[:, 1]
                result, probability = slices.clone(), torch.full(assessed.shape, torch.nan)
                result[assessed] = torch.where(chosen > -1, healthy.clamp(-1, 1), chosen)
                probability[assessed] = p
                return {"counterfactual": result.movedim(1, -1), "probability": probability}

            start = time.perf_counter()
            cases = [c for i in items for c in cases_of(i, preprocessing, infer, *reading)]
            seconds = time.perf_counter() - start
            healthy_cases = [c for c in cases if not c.diseased]
            for method in (OURS, PAPER) if rows else (BASELINE, OURS, PAPER):
                found = metrics(cases, method, np.inf, "brain")
                row: dict[str, Any] = {
                    "method": method,
                    "noise_level": level,
                    "steps": k,
                    "fixed_point_iterations": iterations,
                    "scale": scale,
                    "pixel_ap": found["pixel_ap"],
                    "dice_oracle": found["dice_oracle"],
                    "image_auroc": found["image_auroc"],
                    "healthy_map": np.mean([c.maps[method][c.brain].mean() for c in healthy_cases]),
                    "seconds": seconds,
                }
                rows.append({n: f"{v:.4g}" if isinstance(v, float) else v for n, v in row.items()})
                print(rows[-1], flush=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


class EncodeOnce:
    """The noise of a batch of slices; the same slices again are not encoded again."""

    def __init__(self, noise_model: NoiseModel, grid: list[int], alphas: torch.Tensor, iterations: int) -> None:
        self.noise_model, self.grid, self.alphas, self.iterations = noise_model, grid, alphas, iterations
        self.known: dict[bytes, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        key = x.numpy().tobytes()
        if key not in self.known:
            self.known[key] = encode(self.noise_model, x, self.grid, self.alphas, self.iterations)
        return self.known[key]


if __name__ == "__main__":
    fire.Fire(sweep)
