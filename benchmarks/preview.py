"""The preview beside the default: what the student gives of the default's quality in one call a slice, and in what time.

    python benchmarks/preview.py --datalist FILE [--split test] [--model NAME] [--timed 4] [--rounds 3] [--seed 0]
        [--options "{'student#path': FILE}"] [--output FILE]

The same weights, patients, preprocessing and metrics for both. Quality is of all labelled slices of the split, on the
grid of the input within the foreground; the intervals are of resampled patients, and those of a difference of the same
resamples. How far the counterparts are apart is the median of |x1 - x_many| over healthy tissue, which is the foreground but
for what readers outlined, and over the lesion, on the networks' intensity scale, in the first channel. Times are of the
networks alone: each volume goes through both in turns, after one turn that doesn't count, and a ratio is of the same volume
in the same turn. `model` is an overlay of another model than the first, `options` are values by the ids of the configs.
Results of volumes are kept in `cache_dir`, where those of `evaluate.json` are found again. Writes preview.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import fire
import numpy as np
from algorithms import now
from keeping import ROOT, machine, versions
from tqdm import tqdm

from scripts.bundle import parsed
from scripts.files import write
from scripts.judging.bootstrap import Measured, measured
from scripts.judging.cases import SliceCase
from scripts.judging.readings import COUNTERFACTUAL, OURS, PAPER, STUDENT, shipped
from scripts.judging.volumes import LabelledVolumes
from scripts.learning.datalists import read_datalist
from scripts.weights import weights_digest

DEFAULT, PREVIEW = "default", "preview"
OVERLAYS: dict[str, tuple[str, ...]] = {DEFAULT: (), PREVIEW: ("preview",)}
REPORTED = ("pixel_ap", "dice_oracle", "pixel_auroc", "image_auroc")
BINS = np.linspace(0, 2, 20_001)
"""Of |x1 - x_many|, so that the pixels of a large split needn't be held."""


def volumes_of(name: str, model: str | None, cache_dir: str, options: dict[str, Any]) -> LabelledVolumes:
    """What an algorithm finds in labelled volumes, found once."""
    overlays = (*([model] if model else []), *OVERLAYS[name], "evaluate")
    quiet = {"inferer#progress": False, "cache_dir": cache_dir, "displayable_configs#threshold": 0.5}
    volumes = parsed(*overlays, **{**quiet, **options}).get_parsed_content("volumes")
    assert isinstance(volumes, LabelledVolumes)
    return volumes


def quality(cases: Iterable[SliceCase], seed: int) -> dict[str, Measured]:
    """Every reading of the maps; the one that ships first."""
    maps = next(iter(cases)).maps
    ours = shipped(maps)
    names = [ours, *(n for n in (OURS, COUNTERFACTUAL, STUDENT, PAPER) if n in maps and n != ours)]
    return {name: measured(cases, name, None, "foreground", seed=seed) for name in names}


def reported(found: Measured, default: Measured) -> dict[str, Any]:
    """The metrics with their intervals, and the difference to the default."""
    result: dict[str, Any] = {}
    for name in REPORTED:
        if name in found.values:
            result[name] = {"value": round(found.values[name], 4)}
            if name in found.intervals:
                result[name]["interval"] = [round(v, 4) for v in found.intervals[name]]
            difference = None if found is default else found.minus(default, name)
            if difference is not None:
                result[name]["minus_default"] = [round(v, 4) for v in difference]
    return result


def apart(one: Iterable[SliceCase], many: Iterable[SliceCase]) -> dict[str, dict[str, float]]:
    """Medians of |x1 - x_many|, and of |x - x_many| for comparison, over healthy tissue and over lesions; exact to 0.0001."""
    counts = {
        where: {n: np.zeros(len(BINS) - 1) for n in ("x1_to_x_many", "x_to_x_many")} for where in ("healthy", "lesion")
    }
    for a, b in zip(one, many, strict=True):
        if b.truth is None or a.counterfactual is None or b.counterfactual is None:
            continue
        for where, pixels in (("healthy", b.foreground & ~b.truth), ("lesion", b.foreground & b.truth)):
            for name, values in (("x1_to_x_many", a.counterfactual), ("x_to_x_many", b.image)):
                counts[where][name] += np.histogram(np.abs(values - b.counterfactual)[pixels], BINS)[0]
    # the first bin that holds the middle
    return {
        where: {
            n: round(float(BINS[np.searchsorted(np.cumsum(c), c.sum() / 2) + 1]), 4)
            for n, c in found.items()
            if c.any()
        }
        for where, found in counts.items()
    }


def timed_turns(
    volumes: dict[str, LabelledVolumes], items: list[dict[str, Any]], rounds: int
) -> list[dict[str, float]]:
    """Seconds a slice of each algorithm, in every round of every volume."""
    turns = []
    for item in tqdm(items, "times", unit="volume"):
        first = volumes[DEFAULT]
        volume = first.preprocessing({k: v for k, v in item.items() if k in ("image", "spacing", "foreground")})
        x, inside = (volume[key].as_tensor()[None].to(first.device) for key in ("image", "foreground"))
        for number in range(rounds + 1):
            turn = {}
            for name, of in volumes.items():
                begin = now(first.device)
                found = of.inferer(x, of.network, inside)
                turn[name] = (now(first.device) - begin) / max(1, int(found["assessed"].sum()))
            turns += [turn] if number else []
    return turns


def benchmark(
    datalist: str,
    split: str = "test",
    model: str | None = None,
    timed: int = 4,
    rounds: int = 3,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    output: str = str(ROOT / "benchmarks" / "preview.json"),
    cache_dir: str = str(ROOT / "bundle" / "cache"),
) -> None:
    """Measure and write `output`; see the module."""
    items = read_datalist(datalist, split)
    given = options or {}
    volumes = {name: volumes_of(name, model, cache_dir, given) for name in OVERLAYS}
    cases, failed = {}, {}
    for name, of in volumes.items():
        cases[name], failed[name] = of.cases(items, name)
    if any(failed.values()):
        raise SystemExit(f"volumes failed: {failed}")
    found = {name: quality(of, seed) for name, of in cases.items()}
    default = next(iter(found[DEFAULT].values()))
    turns = timed_turns(volumes, items[:timed], rounds)
    ratios = {n: [t[n] / t[DEFAULT] for t in turns] for n in volumes}
    record = {
        "machine": machine(volumes[DEFAULT].device),
        "versions": versions(),
        "seed": seed,
        "model": model or "brain_flair",
        "split": {"name": split, "volumes": len(items), "slices": sum(1 for _ in cases[DEFAULT])},
        "weights": {name: weights_digest(of.network) for name, of in volumes.items()},
        "settings": {name: getattr(of.inferer, "settings", {}) for name, of in volumes.items()},
        "parameters": {name: sum(p.numel() for p in of.network.parameters()) for name, of in volumes.items()},
        "quality": {n: {reading: reported(m, default) for reading, m in of.items()} for n, of in found.items()},
        "median_difference": apart(cases[PREVIEW], cases[DEFAULT]),
        "milliseconds_a_slice": {n: round(1000 * median(t[n] for t in turns), 2) for n in volumes},
        "time_of_the_default": {
            n: {"median": round(median(r), 4), "lowest": round(min(r), 4), "highest": round(max(r), 4)}
            for n, r in ratios.items()
            if n != DEFAULT
        },
    }
    write(Path(output), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(benchmark)
