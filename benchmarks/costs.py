"""What an algorithm costs on a device: seconds a slice and peak memory, each taken in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from algorithms import STUDENT, Algorithms, everywhere, now, times

from scripts.bundle import declared
from scripts.device import autocast

SIZE = 16
"""Slices in a file of a sample; more are repeats."""


def memory(device: torch.device) -> float:
    """The peak so far, in MiB: on a GPU what was allocated, else what was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # not resource's ru_maxrss, which begins at that of the process that started this one
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def cost(row: str, slices: str, number: int, device: str, overlays: list[str]) -> dict[str, float]:
    """That of a row on the slices in a file; `number` is how many, 0 for the row's own."""
    x = torch.load(slices, weights_only=True)
    on = torch.device(device)
    if row == STUDENT:
        network = declared("network", *overlays, "preview", device=device)
        inferer = declared("inferer", *overlays, "preview", device=device)
        x = x.to(on)
        inside = everywhere(x)
        inferer.slices(x, inside, network)
        begin = now(on)
        inferer.slices(x, inside, network)
        seconds = (now(on) - begin) / len(x)
    else:
        algorithms = Algorithms(*overlays, device=device)
        how = algorithms.rows[row]
        first = x[: how.batch].to(on)
        with torch.no_grad(), autocast(on, how.precision):
            for network in (algorithms.network, algorithms.classifier):
                network.to(memory_format=how.memory_format)(first, times(first, 0))
            if algorithms.student is not None:
                algorithms.student(first)
        number = number or how.timed
        x = x.repeat(-(-number // len(x)), 1, 1, 1)[:number]
        seconds = algorithms.timed(how.sampler, x, how.batch, how.precision)[1] / number
    return {"seconds": seconds, "memory": memory(on)}


def cost_of(row: str, sample: Path, device: torch.device, overlays: list[str], number: int = 0) -> dict[str, Any]:
    """`cost` in a process of its own."""
    given = json.dumps([row, str(sample), number, str(device), overlays])
    done = subprocess.run([sys.executable, __file__, given], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(cost(*json.loads(sys.argv[1]))))
