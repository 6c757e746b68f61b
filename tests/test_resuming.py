"""A training that was stopped, wherever and however often, ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.utils import set_determinism

from training_data import command, parsed, write_datalist, write_teacher

STEPS = 10


class PowerCutError(Exception):
    """What ends a training without a last save."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a datalist and the weights of a teacher."""
    folder = tmp_path_factory.mktemp("resuming")
    write_datalist(folder)
    write_teacher(folder)
    return folder


def train(config: str, folder: Path, run: str, cuts: Sequence[int] = (), workers: int = 0) -> dict[str, Any]:
    """Train for ten steps of four images in epochs of three, and lose a step or two each time the power is cut."""
    for cut in (*cuts, 0):
        parser = parsed(
            config,
            folder,
            run_dir=str(folder / run),
            num_workers=workers,
            max_images=4 * STEPS,
            epoch_images=12,
            batch_size=4,
            val_interval=1,
            compile=False,
            **{f"{name}#path": str(folder / f"{name}.pt") for name in ("network", "classifier")},
            **{"ema#momentum": 0.3, "learning_rate": 1e-2},
        )
        try:
            parser.get_parsed_content("initialize")
            trainer, checkpoint = (parser.get_parsed_content(name) for name in ("train#trainer", "checkpoint"))
            checkpoint.every_seconds = float("inf")
            checkpoint.open()

            @trainer.on(Events.ITERATION_COMPLETED)
            def live(engine: Engine, cut: int = cut, checkpoint: Any = checkpoint) -> None:
                if cut and engine.state.iteration == cut - 2:
                    checkpoint._save(engine)
                if cut and engine.state.iteration == cut:
                    raise PowerCutError

            try:
                trainer.run()
            except PowerCutError:
                assert cut
            else:
                assert not cut and trainer.state.iteration == STEPS
        finally:
            set_determinism(None)
    state = torch.load(folder / run / "last.pt", weights_only=True)
    return {**state, "model": torch.load(folder / run / "model.pt", weights_only=True)}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


@pytest.mark.parametrize("config", ["train", "train_classifier", "train_student"])
def test_a_training_that_was_stopped_ends_with_the_same_weights(folder: Path, config: str) -> None:
    """In the middle of an epoch, at the end of one, before the first save, twice at once; with and without workers."""
    whole = train(config, folder, f"{config} whole")
    assert whole["iteration"] == STEPS and not same(whole["model"], whole["network"])
    for cuts, workers in (((1, 4, 5, 9), 0), ((5, 5), 2), ((), 2)):
        assert same(train(config, folder, f"{config} {cuts} {workers}", cuts, workers), whole)


def test_kill_stop_and_resume(tmp_path: Path) -> None:
    """MONAI's command, ended by kill -9, by Ctrl-C and by its end, writes what the same command writes in one go."""
    write_datalist(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole_steps = 80
    limits: dict[str, Any] = {"max_images": 8 * whole_steps, "epoch_images": 160, "checkpoint_minutes": 0.002}
    checkpoint = tmp_path / "run" / "last.pt"

    def stopped_by(number: int) -> tuple[int, int, str]:
        """Stop a training that has saved; its exit status, the step it went on from or -1, and what it printed."""
        log = tmp_path / "log"
        began = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with log.open("w") as file:
            process = subprocess.Popen(
                command("train", tmp_path, **limits), cwd=tmp_path, stdout=file, stderr=file, env=environment
            )
            limit = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < limit:
                if checkpoint.exists() and checkpoint.stat().st_mtime_ns > began:
                    break
                time.sleep(0.02)
            process.send_signal(number)
            status = process.wait(60)
        output = log.read_text()
        assert checkpoint.exists(), output[-3000:]
        resumed = re.findall(r"resumed from .* at step (\d+)", output)
        return status, int(resumed[0]) if resumed else -1, output

    def finished(**others: Any) -> str:
        done = subprocess.run(
            command("train", tmp_path, **limits, **others),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    def saved() -> int:
        return int(torch.load(checkpoint, weights_only=True)["iteration"])

    assert stopped_by(signal.SIGKILL)[:2] == (-signal.SIGKILL, -1)
    first = saved()
    assert first > 0
    status, resumed, output = stopped_by(signal.SIGINT)
    assert (status, resumed) == (130, first) and "last.pt was saved" in output and "Traceback" not in output
    second = saved()
    assert first < second < whole_steps and not (tmp_path / "run" / "model.pt").exists()
    assert f"at step {second}" in finished() and saved() == whole_steps
    assert "wrote" in (tmp_path / "run" / "train.log").read_text()
    finished(run_dir=str(tmp_path / "whole"))
    for name in ("last.pt", "model.pt"):
        found, whole = (torch.load(tmp_path / run / name, weights_only=True) for run in ("run", "whole"))
        assert same(found, whole)
