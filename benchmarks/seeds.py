"""How much the student depends on the seed of its training: several trainings, each judged on the test patients.

    python benchmarks/seeds.py --name NAME --datalist FILE [--model brats] [--seeds "[0,1,2]"] [--device cuda] [--results DIR]

Everything else is that of the bundle: its counterfactuals teach, its classifier gates. Thresholds need no mask, see
`thresholds.label_threshold`. A training that was stopped goes on. Writes benchmarks/seeds/NAME.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from algorithms import STUDENT, Algorithms
from keeping import ROOT, run_training
from packs import Split

from scripts.bundle import declared, parsed
from scripts.device import default_device
from scripts.files import write
from scripts.judging.bootstrap import measured
from scripts.judging.thresholds import label_threshold
from scripts.method.maps import combined_map, slice_score

SHOWN = ("pixel_ap", "dice_threshold", "image_auroc", "aupimo", "lesions_found", "false_lesions")


def trained(
    datalist: str, folder: Path, seed: int, device: str, images: int | None, cache_dir: str, *overlays: str
) -> torch.nn.Module:
    """A student of this seed, from its folder if it is there."""
    weights = folder / "model.pt"
    if not weights.is_file():
        values = {
            "datalist": datalist,
            "cache_dir": cache_dir,
            "brain_cache": cache_dir,
            "seed": seed,
            "device": device,
        }
        run_training(folder, images, *overlays, "train", "train_student", **values)
    return declared("student", *overlays, device=device, **{"student#path": str(weights)})


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation, lowest and highest of a metric's values, one a seed."""
    return {
        "mean": float(np.mean(values)),
        "standard_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "lowest": min(values),
        "highest": max(values),
    }


def seeds(
    name: str,
    datalist: str,
    model: str = "",
    seeds: tuple[int, ...] = (0, 1, 2),
    device: str | None = None,
    images: int | None = None,
    results: str = str(ROOT / "bundle" / "cache" / "seeds"),
    output: str | None = None,
    cache_dir: str = str(ROOT / "bundle" / "cache"),
) -> None:
    """Write `output`, by default benchmarks/seeds/NAME.json; see the module."""
    overlays = [model] if model else []
    on = str(device or default_device())
    algorithms = Algorithms(*overlays, device=on)
    preprocessing = declared("preprocessing", *overlays, brain_cache=cache_dir)
    reading = declared("polarity", *overlays), declared("median_size", *overlays)
    splits = {n: Split(datalist, n, preprocessing, *overlays) for n in ("validation", "test")}
    found: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        student = trained(datalist, Path(results) / f"{name}-{seed}", seed, on, images, cache_dir, *overlays)
        cases = {}
        for n, split in splits.items():
            x, inside, depths = split.slices.x, split.slices.foreground, split.slices.depths
            p = algorithms.probability(x, depths)
            a = combined_map(x, {**algorithms.learned(x, depths, student), "probability": p}, inside, *reading)
            cases[n] = split.cases({STUDENT: a}, {STUDENT: slice_score(a, inside, p)})
        threshold = label_threshold(cases["validation"], STUDENT, classes=3)
        reached = measured(cases["test"], STUDENT, threshold, "foreground")
        values = {m: reached.values[m] for m in SHOWN if m in reached.values}
        intervals = {m: list(reached.intervals[m]) for m in values if m in reached.intervals}
        found[str(seed)] = {"threshold": threshold, **values, "intervals": intervals}
        print(f"seed {seed}: {values}")
    there = [m for m in SHOWN if all(m in of_seed for of_seed in found.values())]
    record = {
        "data": name,
        "model": model or "brain_flair",
        "images": images or parsed(*overlays, "train", "train_student")["max_images"],
        "seeds": found,
        "spread": {m: spread([of_seed[m] for of_seed in found.values()]) for m in there},
    }
    path = Path(output or ROOT / "benchmarks" / "seeds" / f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record["spread"], indent=2))


if __name__ == "__main__":
    fire.Fire(seeds)
