"""The paper's network at its full size in the bundle's default setting: seconds a volume, and how much of the chip that uses.

    python benchmarks/paper_network.py [--slices 155] [--output FILE]

113.7 million parameters and a classifier of 5.8 million, as paper.json declares them, 256 x 256 pixels, four sequences, as for
BRATS2020. The weights are random, as time does not depend on them; sampler, guidance, precision and batches are the bundle's.
The share of the chip is what the networks multiply a second, by PyTorch's count, against the rate that this chip reaches with
large square matrices in the same precision. With fewer slices, for a CPU, the time of a volume is extrapolated. Writes
paper_network.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch
from algorithms import now
from keeping import ROOT, machine, versions
from torch.utils.flop_counter import FlopCounterMode

from scripts.bundle import declared
from scripts.device import default_device, fastest_precision
from scripts.files import write

VOLUME = 155
"""Slices of a BRATS2020 volume."""
SHAPE = (4, 256, 256)
"""T1, T1 with contrast, T2 and FLAIR; 240 x 240 pixels, padded."""


def seconds(f: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Of one call of `f`, all work on the device included."""
    begin = now(device)
    for _ in range(repeats):
        f()
    return (now(device) - begin) / repeats


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of the product of two square matrices, the best of a few sizes."""
    rates = []
    for n in (2048, 4096, 8192):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        a @ b  # the first call chooses how
        rates.append(2 * n**3 / seconds(lambda a=a, b=b: a @ b, device, repeats=3))
    return max(rates)


def flop(network: str, gradient: bool = False) -> int:
    """FLOP of one slice in a call of a network that paper.json declares, or in a call and the gradient by its input."""
    with torch.device("meta"):
        f = declared(network, "paper").requires_grad_(False)
        x = torch.zeros(1, *SHAPE, requires_grad=gradient)
        with FlopCounterMode(display=False) as counter:
            y = f(x * 1, torch.zeros(1, dtype=torch.long))  # the counter can't follow a gradient to a leaf
            if gradient:
                torch.autograd.grad(y.sum(), x)
    return counter.get_total_flops()


def benchmark(slices: int = VOLUME, output: str = str(ROOT / "benchmarks" / "paper_network.json")) -> None:
    """Run it and write the figures to `output`; see the module."""
    device = default_device()
    precision = fastest_precision(device)
    dtype = getattr(torch, precision)
    rate = matrix_rate(device, dtype)
    torch.manual_seed(0)
    parts = {name: declared(f"{name}_def", "paper") for name in ("network", "classifier")}
    for part in parts.values():
        part.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    network, classifier = parts["network"], parts["classifier"]
    inferer = declared("inferer", classifier=classifier, student=None)
    x = torch.rand(slices, *SHAPE, device=device) * 2 - 1

    calls: Counter[str] = Counter()
    network.register_forward_hook(lambda *_: calls.update(["network"]))
    classifier.register_forward_hook(
        lambda module, inputs, _: calls.update(["gradient" if inputs[0].requires_grad else "classifier"])
    )
    inferer.slices(
        x[:1], torch.ones_like(x[:1, :1], dtype=torch.bool), network
    )  # also the first call, which chooses how
    calls_a_slice = dict(calls)
    of_call = {
        "network": flop("network_def"),
        "gradient": flop("classifier_def", gradient=True),
        "classifier": flop("classifier_def"),
    }
    total = sum(number * of_call[name] for name, number in calls_a_slice.items())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    volume = x.movedim(0, -1)[None]
    every = torch.ones(1, slices, dtype=torch.bool, device=device)
    a_slice = seconds(lambda: inferer(volume, network, assessed=every), device) / slices
    record = {
        "machine": machine(device),
        "versions": versions(),
        "seed": 0,
        "precision": precision,
        "settings": inferer.settings,
        "parameters": {name: sum(p.numel() for p in n.parameters()) for name, n in parts.items()},
        "calls_a_slice": calls_a_slice,
        "slices": slices,
        "seconds_a_slice": round(a_slice, 3),
        "seconds_a_volume_of_155": round(VOLUME * a_slice, 1),
        "tflop_a_slice": round(total / 1e12, 2),
        "matrix_tflop_a_second": round(rate / 1e12, 2),
        "share_of_matrix_rate": round(total / a_slice / rate, 3),
    }
    if device.type == "cuda":
        record["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    write(Path(output), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(benchmark)
