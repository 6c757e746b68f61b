"""A training's folder: what is written, what is refused, and how a training ends."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler

from machine import files_up_to
from scripts.errors import message_of
from scripts.learning.checkpoint import ResumableCheckpoint
from scripts.learning.handlers import NeedsFiniteLoss


def attached(checkpoint: ResumableCheckpoint, engine: Engine) -> None:
    checkpoint.attach(engine)
    checkpoint.open()


def test_the_ema_weights_are_the_ones_written(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def step(engine: Engine, batch: int) -> None:
        optimizer.zero_grad()
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    engine = Engine(step)
    ema = EMAHandler(network, momentum=0.1)
    ema.attach(engine)
    attached(ResumableCheckpoint(str(tmp_path), network, ema.ema_model, optimizer, {}), engine)
    start = network.weight.detach().clone()
    engine.run(range(3), max_epochs=1)
    # w_k = w_0 - 0.1 k, and the EMA follows by a tenth of the way each time
    lag = 0.0
    for k in (1, 2, 3):
        lag = 0.9 * lag + 0.1 * 0.1 * k
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.allclose(written["weight"], start - lag, atol=1e-6)
    resumed = Engine(step)
    attached(ResumableCheckpoint(str(tmp_path), network, ema.ema_model, optimizer, {}), resumed)
    iterations: list[int] = []
    resumed.add_event_handler(Events.ITERATION_COMPLETED, lambda e: iterations.append(e.state.iteration))
    resumed.run(range(3), max_epochs=2, epoch_length=3)
    assert iterations == [4, 5, 6]


def tiny_run(
    folder: Path, settings: dict[str, Any], stop: int = 0, number: int = signal.SIGINT, **options: Any
) -> ResumableCheckpoint:
    """Six iterations of nothing, in which a signal is sent at one."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    checkpoint = ResumableCheckpoint(str(folder), network, deepcopy(network), optimizer, settings, **options)
    engine = Engine(lambda e, b: os.kill(os.getpid(), number) if e.state.iteration == stop else None)
    attached(checkpoint, engine)
    engine.run(range(3), max_epochs=2)
    return checkpoint


def test_a_checkpoint_goes_on_with_what_it_was_trained_on_alone(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "first.pt")
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "second.pt")
    folder = tmp_path / "run"
    settings = {"data": "4f2a", "network": torch.nn.Conv2d(1, 2, 3), "learning_rate": 0.1}
    tiny_run(folder, settings, initial_weights=str(tmp_path / "first.pt"))
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["data"] == "4f2a" and record["versions"]["torch"] == torch.__version__
    assert record["settings"]["initial_weights"] == hashlib.sha256((tmp_path / "first.pt").read_bytes()).hexdigest()
    before = (folder / "model.pt").read_bytes()
    for other, line in (
        ({"data": "77b1"}, "data was 4f2a, now 77b1"),
        ({"learning_rate": 0.2, "data": "77b1"}, "data was 4f2a, now 77b1; learning_rate was 0.1, now 0.2"),
        ({"network": torch.nn.Conv2d(1, 2, 5)}, "network was .*, now "),
    ):
        with pytest.raises(
            SystemExit, match=f"run: holds a training with other settings: {line}.*another --run_dir, or"
        ):
            tiny_run(folder, settings | other)
    with pytest.raises(SystemExit, match="holds a training that did not begin with .*second.pt"):
        tiny_run(folder, settings, initial_weights=str(tmp_path / "second.pt"))
    assert (folder / "model.pt").read_bytes() == before
    for weights in (None, str(tmp_path / "first.pt")):  # where it began
        tiny_run(folder, settings | {"network": torch.nn.Conv2d(1, 2, 3)}, initial_weights=weights)
    tiny_run(folder, settings | {"data": "77b1"}, overwrite=True)
    assert torch.load(folder / "last.pt", weights_only=True)["settings"]["data"] == "77b1"
    assert (folder / "model.pt").read_bytes() != before


def test_weights_without_a_checkpoint_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"shipped")
    with pytest.raises(SystemExit, match="model.pt: is there already, without a checkpoint to go on from"):
        tiny_run(tmp_path, {})
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit, match="last.pt: can't be read as a checkpoint"):
        tiny_run(tmp_path, {})
    torch.save({"network": {}}, tmp_path / "last.pt")
    with pytest.raises(SystemExit, match="last.pt: doesn't say what it was trained on"):
        tiny_run(tmp_path, {})
    assert (tmp_path / "model.pt").read_bytes() == b"shipped"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves(number: int, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(number)
    stopped = tiny_run(tmp_path, {}, stop=2, number=number)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iteration"] == 2
    assert not (tmp_path / "model.pt").exists() and signal.getsignal(number) is handler
    with pytest.raises(SystemExit) as ended:
        stopped.close()
    # which would begin anew
    said = "last.pt was saved; the same command, without --overwrite, goes on from there."
    assert ended.value.code == status and said in capsys.readouterr().err
    tiny_run(tmp_path, {}).close()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iteration"] == 6
    assert (tmp_path / "model.pt").exists()
    # by no page, as a zip has not those of the repository
    assert "To bring them into the bundle, give `run publish` instead of `run`." in capsys.readouterr().out


def test_one_training_at_a_time_has_a_folder(tmp_path: Path) -> None:
    """The second is refused and leaves the first one's folder as it is; the first goes on."""
    engine = Engine(lambda e, b: None)
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    attached(ResumableCheckpoint(str(tmp_path), network, deepcopy(network), optimizer, {}), engine)

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def second(engine: Engine) -> None:
        # this process has one log for both
        names = [path for path in tmp_path.iterdir() if path.name != "train.log"]
        before = {path.name: path.read_bytes() for path in names}
        with pytest.raises(SystemExit, match="another training has this folder. Give another --run_dir"):
            tiny_run(tmp_path, {}, overwrite=True)
        assert {path.name: path.read_bytes() for path in names} == before

    engine.run(range(3), max_epochs=1)
    assert (tmp_path / "model.pt").exists()
    tiny_run(tmp_path, {})


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """At step 4; what was saved at step 3 stays."""
    network = torch.nn.Linear(2, 1)
    checkpoint = ResumableCheckpoint(
        str(tmp_path), network, deepcopy(network), torch.optim.SGD(network.parameters(), lr=0.1), {}, every_minutes=1e-9
    )
    engine = Engine(lambda e, b: {"loss": float("nan") if e.state.iteration == 4 else 1.0})
    NeedsFiniteLoss().attach(engine)
    attached(checkpoint, engine)
    with pytest.raises(ValueError, match="the loss is nan at step 4, so nothing more was saved"):
        engine.run(range(3), max_epochs=2)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iteration"] == 3
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("minutes", [0, -1])
def test_minutes_between_two_saves_are_above_0(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"checkpoint_minutes must be above 0, got {minutes}"):
        tiny_run(tmp_path / "run", {}, every_minutes=minutes)
    assert not (tmp_path / "run").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    left = [tmp_path / f".part-1-2-{name}" for name in ("last.pt", "model.pt")]
    for path in left:
        path.write_bytes(b"half")
    mine = tmp_path / ".part-of-mine"
    mine.touch()
    tiny_run(tmp_path, {})
    assert not any(path.exists() for path in left) and mine.exists()


@pytest.mark.parametrize("saved", [True, False])
def test_a_full_disk_keeps_the_last_checkpoint_and_is_said_in_one_line(saved: bool, tmp_path: Path) -> None:
    if saved:
        tiny_run(tmp_path, {})
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    # ends as a full disk does, but for the words
    with files_up_to(1000), pytest.raises(RuntimeError) as error:
        tiny_run(tmp_path, {})
    kept = f"{tmp_path}/last.pt, saved before, is kept" if saved else "nothing was saved before"
    assert message_of(error.value) == f"{tmp_path}/last.pt: can't be written (File too large); {kept}."
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".part*"))


def test_a_disk_that_is_full_at_the_start_is_said_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        Path("/dev/full").open("wb", buffering=0).write(content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as error:
        tiny_run(tmp_path, {})
    assert message_of(error.value) == f"[Errno 28] No space left on device: '{tmp_path}/run.json'"
    monkeypatch.undo()
    (tmp_path / "train.log").unlink()
    (tmp_path / "train.log").mkdir()
    with pytest.raises(IsADirectoryError, match="train.log"):
        tiny_run(tmp_path, {})


def test_weights_of_fewer_steps_are_not_left_beside_a_checkpoint(tmp_path: Path) -> None:
    """A training that had ended, by its clock, and goes on: stopped again, it has no weights to publish."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def run(last: int, number: int | None = None) -> None:
        engine = Engine(lambda e, b: os.kill(os.getpid(), number) if number and e.state.iteration == last else None)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=last), lambda e: e.terminate())
        attached(ResumableCheckpoint(str(tmp_path), network, deepcopy(network), optimizer, {}), engine)
        engine.run(range(3), max_epochs=2)

    run(2)
    assert (tmp_path / "model.pt").exists()
    run(4, signal.SIGINT)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iteration"] == 4
    assert not (tmp_path / "model.pt").exists()
