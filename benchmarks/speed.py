"""What fewer steps, precision, memory layout, batches and compilation each give in speed, and what quality they leave.

    python benchmarks/speed.py --pack FILE [--device cuda] [--turns 2] [--slices 16] [--results DIR] [--settings_of FILE]

From the reference's algorithm in its tuned setting to the default, one change after another; and the other way round, the
default without one of the changes. All take turns on one machine, so that a turn's ratios are of one state of it; a slow one is
timed on one slice a turn. The quality is the pixel AP of the counterfactual alone on the validation subset of the pack; what
`compare` made of it is taken. Apart from that, the default with other numbers of steps, and the fewest
that leave as much quality as the reference has. `settings_of` is a table of `compare` that says the tuned setting, which is
searched for otherwise. A run that was stopped goes on. Writes benchmarks/speed.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fire
import torch
from algorithms import BATCH, NAMES, Algorithms, Sampler
from keeping import ROOT, kept, machine, place, versions
from tuning import Maps

from scripts.device import default_device, fastest_precision
from scripts.files import write
from scripts.judging.readings import COUNTERFACTUAL, readings
from scripts.method.slices import CPU_BATCH, GPU_BATCH

STEPS = (2, 3, 4, 5, 7, 10, 20, 50)
"""Numbers of steps up, and as many down, that are tried."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
EQUAL = 0.01
"""So much less pixel AP counts as equal."""


@dataclass(frozen=True)
class Way:
    """How counterfactuals are made."""

    few_steps: bool
    precision: str = "float32"
    layout: str = "contiguous"
    batch: int = 1
    compiled: bool = False


def ladder(fastest: str, batch: int) -> dict[str, Way]:
    """One change after another; bfloat16 only where the machine multiplies it."""
    ways = {"reference": Way(False), "fewer steps": Way(True)}
    changes: dict[str, dict[str, Any]] = {
        "bfloat16": {"precision": "bfloat16"},
        "channels_last": {"layout": "channels_last"},
        f"batches of {batch}": {"batch": batch},
        "compilation": {"compiled": True},
    }
    if fastest == "float32":
        del changes["bfloat16"]
    way = ways["fewer steps"]
    for name, change in changes.items():
        ways[name] = way = replace(way, **change)
    return ways


def without_one(ways: dict[str, Way]) -> dict[str, Way]:
    """The default, which is everything but compilation, and it without one of the changes."""
    default = list(ways.values())[-2]
    found = {"default": default, "without fewer steps": replace(default, few_steps=False)}
    if default.precision != "float32":
        found["without bfloat16"] = replace(default, precision="float32")
    found["without channels_last"] = replace(default, layout="contiguous")
    found["without batches"] = replace(default, batch=1)
    return found


def ratios(names: list[str], seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """How many times as fast as the one before each way is, turn by turn."""
    return {
        name: [round(a / b, 3) for a, b in zip(seconds[before], seconds[name], strict=True)]
        for before, name in zip(names[:-1], names[1:], strict=True)
    }


class Ways:
    """Samplers of ways, each with networks of its own."""

    def __init__(self, overlays: list[str], device: torch.device, reference: str) -> None:
        self.overlays, self.device, self.reference = overlays, device, reference
        self._made: dict[Way, tuple[Algorithms, Sampler]] = {}

    def made(self, way: Way) -> tuple[Algorithms, Sampler]:
        """The networks, laid out and compiled, and what runs them."""
        if way not in self._made:
            algorithms = Algorithms(*self.overlays, device=self.device)
            for name in ("network", "classifier"):
                network = getattr(algorithms, name).to(memory_format=LAYOUTS[way.layout])
                setattr(algorithms, name, torch.compile(network) if way.compiled else network)
            if way.few_steps:
                sampler = algorithms.ours(algorithms.scale, precision=way.precision)
            else:
                sampler = algorithms.sampler(*(NAMES[self.reference][0], *NAMES[self.reference][1]))
            self._made[way] = algorithms, sampler
        return self._made[way]

    def seconds(self, way: Way, x: torch.Tensor) -> float:
        """A slice's, of slices ``(N, C, H, W)``."""
        algorithms, sampler = self.made(way)
        return algorithms.timed(sampler, x, way.batch, way.precision)[1] / len(x)


def speed(
    pack: str,
    device: str | None = None,
    turns: int = 2,
    slices: int = 16,
    seed: int = 0,
    results: str = str(ROOT / "bundle" / "cache" / "compare"),
    settings_of: str | None = None,
    output: str = str(ROOT / "benchmarks" / "speed.json"),
) -> None:
    """Write `output`; see the module."""
    on = torch.device(device or default_device())
    maps = Maps(Path(pack), Path(results), on, seed=seed, settings_of=settings_of)
    reference = maps.tuned_settings("reference")["best"][COUNTERFACTUAL]
    fastest = fastest_precision(maps.device)
    batch = min(slices, CPU_BATCH if maps.device.type == "cpu" else GPU_BATCH)
    chosen = maps.subset["validation"]
    subset = maps.splits["validation"].at(chosen)
    x = subset.x.repeat(-(-slices // len(subset.x)), 1, 1, 1)[:slices]

    def pixel_ap(healthy: torch.Tensor) -> float:
        healthy = torch.where(subset.foreground, healthy, subset.x)
        found = {"counterfactual": healthy, "probability": maps.probability["validation"][chosen]}
        return subset.pixel_ap(readings(subset.x, found, subset.foreground, *maps.reading)[0][COUNTERFACTUAL])

    ways = ladder(fastest, batch)
    every = ways | without_one(ways)
    running = Ways(maps.overlays, maps.device, reference)
    quality, first, seconds = {}, {}, {name: [] for name in every}
    for name, way in every.items():
        # the first call also chooses how, and compiles
        first[name] = running.seconds(way, x[: way.batch]) if way.few_steps else None

        def healed(way: Way = way) -> torch.Tensor:
            algorithms, sampler = running.made(way)
            return algorithms.timed(sampler, subset.x, min(BATCH, len(subset.x)), way.precision)[0]

        if name == "reference":
            quality[name] = pixel_ap(maps.counterfactuals(reference, "validation")["healthy"])
        elif way.few_steps:
            quality[name] = pixel_ap(healed())
    for turn in range(turns):
        for name, way in every.items():

            def take(way: Way = way) -> float:
                return running.seconds(way, x[:1] if way.batch == 1 and not way.few_steps else x)

            # a turn is kept as it is taken: the reference's takes a minute on a CPU, and more with all its steps in batches
            path = place(maps.folder, f"speed {name}", way, turn, reference, maps.weights, len(x), machine(maps.device))
            seconds[name].append(kept(path, take))
    steps = {}
    algorithms = running.made(list(without_one(ways).values())[0])[0]
    for number in STEPS:
        sampler = algorithms.ours(algorithms.scale, **{"displayable_configs#num_inference_steps": number})
        healthy, spent = algorithms.timed(sampler, subset.x, batch, fastest)
        steps[number] = {"pixel_ap": pixel_ap(healthy), "seconds": spent / len(subset.x)}
    enough = [n for n, one in steps.items() if one["pixel_ap"] >= quality["reference"] - EQUAL]
    alone = {
        name: [round(b / a, 3) for a, b in zip(seconds["default"], seconds[name], strict=True)]
        for name in every
        if name.startswith("without")
    }
    record = {
        "machine": machine(maps.device),
        "versions": versions(),
        "weights": maps.weights,
        "reference": reference,
        "slices": slices,
        "seconds_a_slice": seconds,
        "times_as_fast_as_the_one_before": ratios(list(ways), seconds),
        "times_as_slow_as_the_default": alone,
        "pixel_ap_on_validation": quality,
        "seconds_of_the_first_call": {name: value for name, value in first.items() if value is not None},
        "default_by_number_of_steps": steps,
        "fewest_steps_at_equal_quality": min(enough) if enough else None,
    }
    write(Path(output), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(speed)
