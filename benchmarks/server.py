"""Time in the MONAI Label server outside the networks, cold and warm, and its memory over many requests.

    python benchmarks/server.py [--requests 50] [--output benchmarks/server.json]

Asks a server on the bundle's sample as 3D Slicer does. Outside the networks is the wall time of a request, HTTP included, less
the diffusion model's and classifier's and less the brain extraction's. Every request has another noise level, so nothing is
taken from an earlier one; the memory is the server's resident set after each.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import fire
import psutil
from keeping import ROOT, machine, versions
from monailabel.client import MONAILabelClient
from tqdm import tqdm

sys.path.insert(0, str(ROOT / "apps" / "anomaly_detection"))

from lib.demonstration.label_server import label_server
from scripts.files import write
from serve import SAMPLE

IMAGE = SAMPLE.name.removesuffix(".nii.gz")


def benchmark(requests: int = 50, port: int = 8765, output: str = str(ROOT / "benchmarks" / "server.json")) -> None:
    """Run it and write the figures to `output`; see the module."""
    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder) / "studies"
        studies.mkdir()
        shutil.copy(SAMPLE, studies)
        begin = time.perf_counter()
        with label_server(str(studies), folder, port) as url:
            start = time.perf_counter() - begin
            client = MONAILabelClient(url, tmpdir=folder)
            process = next(p for p in psutil.process_iter(["cmdline"]) if f"{port}" in (p.info["cmdline"] or []))

            def ask(noise_level: int, steps: int | None = None) -> dict[str, float]:
                params = {"result_extension": ".nrrd", "result_dtype": "uint8", "noise_level": noise_level}
                if steps:
                    params["num_inference_steps"] = steps
                begin = time.perf_counter()
                file, answer = client.infer("lesion_mask", IMAGE, params)
                total = time.perf_counter() - begin
                Path(file).unlink()
                latencies = answer["latencies"]
                networks = latencies["infer"] + latencies["transform"]["pre"].get("ExtractBraind", 0.0)
                return {
                    "total": round(total, 3),
                    "networks": round(networks, 3),
                    "outside": round(total - networks, 3),
                    "resident_mib": round(process.memory_info().rss / 2**20),
                }

            cold, warm = ask(650), ask(651)
            again = ask(651)
            many = [ask(300 + n, steps=1) for n in tqdm(range(requests), "requests")]
    memory = [row["resident_mib"] for row in many]
    result = {
        "machine": machine(),
        "versions": versions(),
        "seconds_to_start": round(start, 1),
        "cold": cold,
        "warm": warm,
        "same_again": again,
        "one_step": {
            "requests": requests,
            "outside_median": statistics.median(row["outside"] for row in many),
            "outside_max": max(row["outside"] for row in many),
            "resident_mib_at": {n: memory[n - 1] for n in (1, 10, 20, 30, 40, 50) if n <= requests},
        },
    }
    write(Path(output), (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    fire.Fire(benchmark)
