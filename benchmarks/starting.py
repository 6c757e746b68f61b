"""How soon a preview of the sample is there: by MONAI's command, by the one that starts sooner, and in a process that is warm.

    python benchmarks/starting.py [--rounds 3] [--output FILE]

Both commands run the preview on the sample volume, each in a process of its own. They differ in what they import. They take
turns: with the brain extraction, each time into an empty cache, with a brain mask that was kept, and for the imports alone. A
first turn of each doesn't count, so the files are in the system's cache, and the order alternates. Given are the medians of the
seconds until the process has ended, and of those that its processors worked, which other work on the machine changes less. The
warm preview is that of `Predictor`, its networks loaded and one volume seen. Writes starting.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import fire
from keeping import ROOT, machine, rounded, versions

from scripts.files import write

SAMPLE = ROOT / "bundle" / "sample" / "TCGA_FG_6692_flair.nii.gz"
CONFIGS = [str(ROOT / "bundle" / "configs" / f"{name}.json") for name in ("inference", "preview")]
MODULES = ("monai.bundle", "scripts.running")
IMPORTS = {
    "monai.bundle": "import monai.bundle",
    "scripts.running": "from scripts.running.__main__ import import_monai as f; f()",
}


def timed(*command: str) -> dict[str, float]:
    """Seconds of a process, and those of its processors.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bundle")}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with status {os.waitstatus_to_exitcode(status)}.")
    return {"seconds": time.perf_counter() - begin, "processor_seconds": used.ru_utime + used.ru_stime}


def preview(module: str, folder: Path, cache: Path) -> dict[str, float]:
    """Of a command on the sample."""
    options = {
        "config_file": repr(CONFIGS),
        "input": SAMPLE,
        "output_dir": folder,
        "brain_cache": cache,
        "overwrite": "true",
    }
    return timed("-m", module, "run", *(text for name, value in options.items() for text in (f"--{name}", str(value))))


def warm(cache: Path, rounds: int) -> list[float]:
    """Seconds of previews in this process, after a first."""
    from scripts.running.predictor import Predictor

    predict = Predictor("preview", brain_cache=str(cache))
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        predict(SAMPLE)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def in_turns(rounds: int, measure: Callable[[str, int], dict[str, float]]) -> list[dict[str, dict[str, float]]]:
    """What `measure` gives of each module in each turn, whose number it takes too; a turn before them doesn't count."""
    return [{m: measure(m, n) for m in MODULES[:: (-1) ** n]} for n in range(rounds + 1)][1:]


def benchmark(rounds: int = 3, output: str = str(ROOT / "benchmarks" / "starting.json")) -> None:
    """Measure and write `output`; see the module."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extracted = in_turns(rounds, lambda m, n: preview(m, folder / "out", folder / f"{m} {n}"))
        kept = in_turns(rounds, lambda m, n: preview(m, folder / "out", folder / "kept"))
        imports = in_turns(rounds, lambda m, n: timed("-c", IMPORTS[m]))
        seconds = warm(folder / "kept", rounds)
    record: dict[str, Any] = {
        "machine": f"{machine()}, load {os.getloadavg()[0]:.1f}",
        "versions": versions(),
        "with_brain_extraction": paired(extracted),
        "with_a_kept_brain_mask": paired(kept),
        "imports_alone": paired(imports),
        "warm_seconds": [round(s, 2) for s in seconds],
    }
    write(Path(output), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


def paired(turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The medians of each module, and of the ratio within a turn."""
    before, after = MODULES
    kinds = ("seconds", "processor_seconds")
    medians = {m: {k: median(t[m][k] for t in turns) for k in kinds} for m in MODULES}
    return rounded({**medians, "ratio": {k: median(t[after][k] / t[before][k] for t in turns) for k in kinds}}, 2)


if __name__ == "__main__":
    fire.Fire(benchmark)
