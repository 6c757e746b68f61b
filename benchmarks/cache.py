"""The cache of slices with 100,000 of them: time to make and to open it, reads a second in random order, and peak memory.

    python benchmarks/cache.py [--folder DIR] [--slices 100000]

Noise of 72 x 88 pixels, as volumes of twenty slices and as radiographs of one. Ours is `scripts.learning.cache`, in which all
slices lie in one file; beside it stands what it took the place of, a ``.npy`` file a volume of which the last 128 that were
read stay open as memory maps. Each step is a process of its own, whose peak resident memory is given. The files are in
the system's cache when they are read. Writes benchmarks/cache.json.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from keeping import ROOT, machine
from monai.data import MetaTensor

from scripts.files import write
from scripts.learning.cache import SliceCache
from scripts.learning.preparing import fill

SIZE = (72, 88)
READS = 20_000


class Noise:
    """A preprocessing that makes volumes of noise."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __call__(self, source: dict[str, Any]) -> dict[str, MetaTensor]:
        """Float32 ``(1, H, W, D)``, all foreground."""
        image = torch.rand(1, *SIZE, self.depth, generator=torch.Generator().manual_seed(source["seed"]))
        affine = torch.eye(4, dtype=torch.float64)
        volume = MetaTensor(image, affine=affine, meta={"input_affine": affine})
        return {
            "image": volume,
            "input_image": volume,
            "foreground": MetaTensor(torch.ones_like(image), meta=volume.meta),
        }


def make(folder: Path, volumes: int, depth: int) -> None:
    """Fill the cache."""
    sources = {f"{n:016x}": {"image": str(n), "seed": n} for n in range(volumes)}
    fill(SliceCache(folder), sources, Noise(depth), 0.5)  # type: ignore[arg-type]


def open_(folder: Path, volumes: int, depth: int) -> None:
    """Find every volume."""
    assert len(SliceCache(folder).entries()) == volumes


def read(folder: Path, volumes: int, depth: int) -> None:
    """Read slices in random order."""
    cache = SliceCache(folder)
    cache.entries()
    for row in np.random.default_rng(0).integers(0, volumes * depth, READS):
        cache.read(int(row))["image"].astype(np.float32)


def make_former(folder: Path, volumes: int, depth: int) -> None:
    """A file a volume."""
    folder.mkdir(parents=True)
    noise = Noise(depth)
    for n in range(volumes):
        slices = np.empty(depth, [("number", "<i4"), ("image", "<f2", (1, *SIZE)), ("foreground", "?", (1, *SIZE))])
        slices["image"] = np.moveaxis(noise({"seed": n})["image"].numpy(), -1, 0)
        np.save(folder / f"{n}.npy", slices)


def open_former(folder: Path, volumes: int, depth: int) -> None:
    """Find every volume."""
    for n in range(volumes):
        assert len([int(number) for number in np.load(folder / f"{n}.npy", mmap_mode="r")["number"]]) == depth


def read_former(folder: Path, volumes: int, depth: int) -> None:
    """Read slices in random order."""

    @lru_cache(maxsize=128)
    def opened(n: int) -> np.ndarray:
        found: np.ndarray = np.load(folder / f"{n}.npy", mmap_mode="r")
        return found

    for row in np.random.default_rng(0).integers(0, volumes * depth, READS):
        opened(int(row) // depth)[int(row) % depth]["image"].astype(np.float32)


def measured(step: Callable[[Path, int, int], None], *arguments: Any) -> dict[str, float]:
    """Seconds and peak memory of a step in a process of its own."""

    def alone(results: Any) -> None:
        begin = time.perf_counter()
        step(*arguments)
        seconds = time.perf_counter() - begin
        results.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=alone, args=(results,))
    process.start()
    seconds, mebibytes = results.get()
    process.join()
    return {"seconds": round(seconds, 3), "peak_mib": round(mebibytes)}


def main(folder: str | None = None, slices: int = 100_000) -> None:
    """Measure both layouts and write cache.json; see the module."""
    record: dict[str, Any] = {
        "machine": machine(),
        "slices": slices,
        "reads": READS,
    }
    layouts = {"ours": (make, open_, read), "a file a volume": (make_former, open_former, read_former)}
    for name, depth in (("volumes of twenty slices", 20), ("radiographs", 1)):
        record[name] = {}
        for layout, steps in layouts.items():
            place = Path(tempfile.mkdtemp(dir=folder))
            results = [measured(step, place / "cache", slices // depth, depth) for step in steps]
            shutil.rmtree(place)
            found = dict(zip(("make", "open", "read"), results, strict=True))
            found["read"]["slices_per_second"] = round(READS / found["read"]["seconds"])
            record[name][layout] = found
    write(ROOT / "benchmarks" / "cache.json", (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
