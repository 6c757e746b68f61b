"""Two processes of one thread against one, as torchrun starts them: images trained on and studies run a second.

    python benchmarks/ranks.py [--turns 2] [--images 64] [--studies 8] [--output benchmarks/ranks.json]

Trains the bundle's diffusion network with its own batch, which two ranks share, and runs the bundle's inference on a folder of
studies, from which each rank takes the next. Both on heads that are made here, so that no data is needed. One and two take
turns. A training's speed is that of its second half, as its log says it; that of inference goes from when each rank
has written a study to the last. Start-up is left out, and given apart. Writes benchmarks/ranks.json.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from keeping import ROOT, machine, versions

from scripts.bundle import declared
from scripts.files import write
from scripts.running.results import Results

CONFIGS = ROOT / "bundle" / "configs"


def write_head(folder: Path, name: str, seed: int) -> dict[str, str]:
    """A textured ellipsoid, 64 x 80 x 8 voxels of 2.4 x 2.4 x 5 mm, and its mask; an item of a datalist."""
    shape = (64, 80, 8)
    grids = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(g**2 for g in grids) < 0.7
    image = inside * np.random.default_rng(seed).normal(100, 15, shape)
    paths = {"image": folder / f"{name}.nii.gz", "foreground": folder / f"{name}_brain.nii.gz"}
    for path, values in zip(paths.values(), (image.astype(np.float32), inside.astype(np.uint8)), strict=True):
        nib.save(nib.Nifti1Image(values, np.diag([2.4, 2.4, 5.0, 1.0])), path)
    return {key: str(path) for key, path in paths.items()} | {"subject": name}


def launched(ranks: int, configs: list[str], **options: Any) -> float:
    """Run the bundle's command on so many ranks of one thread; seconds.

    Raises:
        SystemExit: it failed; with the end of what it printed.
    """
    launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"] if ranks > 1 else []
    files = [str(CONFIGS / f"{name}.json") for name in ("inference", *configs)]
    command = [sys.executable, "-m", *launch, "monai.bundle", "run", "--config_file", repr(files)]
    command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{ranks} ranks ended with status {done.returncode}: {done.stdout[-2000:]}{done.stderr[-6000:]}"
        )
    return time.perf_counter() - begin


def trained(ranks: int, folder: Path, images: int, seed: int) -> dict[str, float]:
    """Images a second, and all that a training took."""
    run = folder / f"run-{time.monotonic_ns()}"
    options = {"datalist": folder / "datalist.json", "cache_dir": folder / "cache", "run_dir": run, "seed": seed}
    limits = {"max_images": images, "epoch_images": images // 2, "compile": False, "val_interval": 100}
    seconds = launched(ranks, ["train", *(["multi_gpu_train"] if ranks > 1 else [])], **options, **limits)
    speeds = re.findall(r"([\d.]+) images/s", (run / "train.log").read_text("utf-8"))
    return {"images_per_second": float(speeds[-1]), "seconds": seconds}


def inferred(ranks: int, folder: Path) -> dict[str, float]:
    """Studies a second, and all that a run took."""
    out = folder / f"out-{time.monotonic_ns()}"
    seconds = launched(ranks, [], datalist=folder / "datalist.json", split="test", output_dir=out)
    written = sorted(path.stat().st_mtime for path in out.glob("*/result.json"))
    # ranks write their first studies at about one time, so the count begins when each has written one
    return {"studies_per_second": (len(written) - ranks) / (written[-1] - written[ranks - 1]), "seconds": seconds}


def bookkeeping(folder: Path, studies: int = 1000) -> dict[str, float]:
    """What a study costs beside its computation, on the local disk: a turn of the counter, its place, its part of a summary."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    begin = time.perf_counter()
    for _ in range(studies):
        store.add("next", 1)
    counted = time.perf_counter()
    items = [{"image": str(folder / f"{n}.nii.gz"), "name": str(n)} for n in range(studies)]
    results = Results(str(folder / "many"), "recipe")
    results.interval = float("inf")
    results.prepare(items)
    results.compose()
    rows = [{"slice": n, "assessed": True, "score": n / 7, "p_diseased": n / 11} for n in range(24)]
    placing = time.perf_counter()
    for item in items:
        made = results.new_folder()
        for name in ("anomaly_map", "counterfactual", "pred"):
            (made / f"{name}.nii.gz").write_bytes(bytes(100_000))
        results.place(item, made, {"status": "ok", "slices": rows, "warnings": []})
    placed = time.perf_counter()
    results.close()
    closed = time.perf_counter()
    return {
        "counter_milliseconds": 1000 * (counted - begin) / studies,
        "place_milliseconds": 1000 * (placed - placing) / studies,
        "summary_milliseconds": 1000 * (closed - placed) / studies,
        "summary_kilobytes": (folder / "many" / "summary.json").stat().st_size / 1000 / studies,
    }


def benchmark(
    turns: int = 2,
    images: int = 64,
    studies: int = 8,
    seed: int = 0,
    output: str = str(ROOT / "benchmarks" / "ranks.json"),
) -> None:
    """Run it and write the figures to `output`; see the module."""
    load = os.getloadavg()[0]
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        items = [write_head(folder, f"head{n}", seed + n) for n in range(studies)]
        labelled = [item | {"label": n % 2} for n, item in enumerate(items)]
        content = {"training": labelled[2:], "validation": labelled[:2]}
        copies = [write_head(folder, f"study{n}", seed + n) for n in range(studies)]
        (folder / "datalist.json").write_text(json.dumps(content | {"test": copies}))
        costs = bookkeeping(folder)
        trained(1, folder, 8, seed)  # fills the cache
        for _ in range(turns):
            for ranks in (1, 2):
                training, inference = trained(ranks, folder, images, seed), inferred(ranks, folder)
                measured.append({"ranks": ranks, "training": training, "inference": inference})
    speeds = {"training": "images_per_second", "inference": "studies_per_second"}
    ratios = {
        what: [two[what][speed] / one[what][speed] for one, two in zip(measured[::2], measured[1::2], strict=True)]
        for what, speed in speeds.items()
    }
    record = {
        "machine": f"{machine()}, of which each rank has one, gloo",
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "note": "With a load above 0 before, other programs shared the processors, and two ranks get more of them than one.",
        "versions": versions(),
        "seed": seed,
        "exchanged_megabytes_a_step": 4e-6 * sum(p.numel() for p in declared("network_def").parameters()),
        "a_study_beside_its_computation": costs,
        "turns": measured,
        "two_ranks_to_one": ratios,
    }
    write(Path(output), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(benchmark)
