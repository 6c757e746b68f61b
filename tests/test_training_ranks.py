"""One training on several processes: the weights of one process, one writer, and a rank that is killed."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import psutil
import pytest
import torch
from ignite.engine import Engine, State
from torch import distributed

from scripts.errors import message_of
from scripts.learning.handlers import MeanLoss
from scripts.learning.plan import Plan
from scripts.learning.seeding import RandomBatches, validated
from scripts.learning.stopping import StopSignals
from scripts.ranks import meet
from torchrun import environment, machines, said, torchrun
from training_data import command, parsed, write_datalist

STEPS = 12
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_datalist(folder)
    return folder


def training(folder: Path, run: str, *more: str, config: str = "train", **options: Any) -> list[str]:
    """Twelve steps of four images in epochs of six, validated after each."""
    limits = {"max_images": 4 * STEPS, "epoch_images": 24, "batch_size": 4, "val_interval": 1, "compile": False}
    settings = {"precision": "float32", "ema#momentum": 0.3, "run_dir": str(folder / run)}
    return command(config, folder, *more, **{**limits, **settings, **options})


def last(folder: Path, run: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / run / "last.pt", weights_only=True)
    return state


def losses(folder: Path, run: str) -> list[float]:
    """What is said of the trained and the validated loss of each epoch."""
    log = (folder / run / "train.log").read_text()
    return [float(number) for number in re.findall(r"(?:images: loss|val_loss:) ([\d.]+)", log)]


def kinds(folder: Path) -> list[str]:
    return sorted(p.name.split(".1")[0] for p in folder.iterdir())


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    """What two ranks train in one go."""
    said(torchrun(training(folder, "two", "multi_gpu_train"), 2), folder)
    return last(folder, "two")


def test_two_ranks_train_what_one_process_does(folder: Path, two: dict[str, Any]) -> None:
    """Each takes half of every batch; network, average and losses are the same but for the rounding of the sums."""
    said(training(folder, "one"), folder)
    one = last(folder, "one")
    assert one["iteration"] == two["iteration"] == STEPS and one["settings"] == two["settings"]
    for name in ("network", "ema"):
        assert two[name].keys() == one[name].keys()
        assert max(float((two[name][k] - one[name][k]).abs().max()) for k in one[name]) < 1e-6
    assert losses(folder, "two") == pytest.approx(losses(folder, "one"), abs=2e-4) and len(losses(folder, "one")) >= 3
    # one has written
    assert kinds(folder / "two") == kinds(folder / "one")
    assert json.loads((folder / "two" / "run.json").read_text())["sizes"]["images_a_step"] == 4


def test_a_rank_that_is_killed_changes_nothing(folder: Path, two: dict[str, Any]) -> None:
    """torchrun starts both again, which go on from the checkpoint to the same weights, bit for bit."""
    run = training(folder, "killed", "multi_gpu_train", checkpoint_minutes=1e-9, overwrite=True)
    launched = torchrun(run, 2, "--max-restarts=1")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(launched, cwd=folder, stdout=log, stderr=log, env=environment())
        try:
            limit = time.monotonic() + 150
            while not (folder / "killed" / "last.pt").exists() and time.monotonic() < limit:
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                time.sleep(0.02)
            ranks = {p.environ().get("RANK"): p for p in psutil.Process(process.pid).children()}
            ranks["1"].send_signal(signal.SIGKILL)
            status = process.wait(170)
        finally:
            process.kill()
    output = (folder / "log").read_text()
    assert status == 0, output[-3000:]
    [step] = re.findall(r"resumed from .* at step (\d+)", output)
    assert 0 < int(step) < STEPS
    killed = last(folder, "killed")
    assert killed["iteration"] == STEPS
    for name in ("network", "ema"):
        assert all(torch.equal(killed[name][k], two[name][k]) for k in two[name])


def test_two_machines_train_what_two_ranks_do(folder: Path, two: dict[str, Any]) -> None:
    """Two torchruns that meet at an address, here of this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = machines(training(folder, "machines", "multi_gpu_train"), 2, port)
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(said, launched, folder) for _ in range(2)]
        outputs = [one.result() for one in done]
    assert sorted("wrote " in output for output in outputs) == [False, True]  # one has written
    state = last(folder, "machines")
    assert state["iteration"] == STEPS
    for name in ("network", "ema"):
        assert all(torch.equal(state[name][k], two[name][k]) for k in two[name])


def test_one_process_goes_on_with_what_two_ranks_began(folder: Path, two: dict[str, Any]) -> None:
    """To the weights of two ranks, but for the rounding of the sums."""
    said(torchrun(training(folder, "fewer", "multi_gpu_train", max_minutes=1e-6), 2), folder)
    assert last(folder, "fewer")["iteration"] == 1
    assert re.search(r"resumed from .* at step 1\n", said(training(folder, "fewer"), folder))
    fewer = last(folder, "fewer")
    assert fewer["iteration"] == STEPS
    for name in ("network", "ema"):
        assert max(float((fewer[name][k] - two[name][k]).abs().max()) for k in two[name]) < 1e-6


@pytest.mark.parametrize("config", ["train_classifier", "train_student"])
def test_the_overlay_goes_over_every_training(folder: Path, config: str) -> None:
    """Stopped by the clock of one rank, both save and end after the same step; a teacher works on one rank alone."""
    paths = {}
    for name in ("network", "classifier"):
        torch.save(parsed("train", folder).get_parsed_content(f"{name}_def").state_dict(), folder / f"{name}.pt")
        paths[f"{name}#path"] = str(folder / f"{name}.pt")
    options = {**paths, "config": config, "max_minutes": 1e-6}
    output = said(torchrun(training(folder, config, "multi_gpu_train", **options), 2), folder)
    assert "stopped by max_minutes after 4 of 48 images" in output
    # once for both splits too, which hold the same slices
    made = re.findall(r"(\w+) of \d+ slices:   0%", output)
    assert made == ([] if config == "train_classifier" else ["changes", "maps"])
    state = last(folder, config)
    assert state["iteration"] == 1 and all(bool(v.isfinite().all()) for v in state["network"].values())


def test_ranks_meet_under_a_name_that_no_start_before_had() -> None:
    """A rank that reads what a dead rank 0 left, answers and all, waits for the one that lives."""
    store = distributed.HashStore()
    names = []
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            others = [pool.submit(meet, store, rank, 3) for rank in (1, 2)]
            time.sleep(0.1)
            found = [meet(store, 0, 3), *(other.result(timeout=20) for other in others)]
        assert len(set(found)) == 1
        names.append(found[0])
    assert names[0] != names[1]


THREADS = """
import os, pathlib, torch
import ignite.distributed as idist
from scripts import ranks

def of_gloo():
    return sum("gloo" in (task / "comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir())

ranks.join()
network = idist.auto_model(torch.nn.Linear(3, 2))
network(torch.ones(4, 3)).sum().backward()
circle = [network]
circle.append(circle)
del network, circle
before = of_gloo()
ranks.leave()
if os.environ["RANK"] == "1":
    print("THREADS", before > 0, of_gloo())
"""


def test_no_thread_that_exchanges_tensors_outlives_a_rank(tmp_path: Path) -> None:
    """Not even where a network that was trained on several ranks is still in a circle of references."""
    (tmp_path / "threads.py").write_text(THREADS)
    launch = torchrun([sys.executable, "-m", "threads"], 2)
    assert "THREADS True 0" in said(launch, tmp_path, PYTHONPATH=f"{ROOT / 'bundle'}:{tmp_path}")


NOTING = """
import os, pathlib, signal
from scripts import ranks
ranks.join()
known = ranks.of_first(lambda: ranks.was_noted("begun"))
starts = pathlib.Path(f"starts{os.environ['GROUP_RANK']}{os.environ['LOCAL_RANK']}")
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
if number > 0:
    ranks.of_first(lambda: ranks.note("begun"))
if os.environ["RANK"] == "0":
    os.write(1, b"NOTED %d\\n" % known)
ranks.of_first(lambda: None)
if os.environ["RANK"] == "1" and number < int(os.environ["DEATHS"]):
    os.kill(os.getpid(), signal.SIGKILL)
ranks.of_first(lambda: None)
"""


@pytest.mark.parametrize("several_machines", [False, True])
def test_what_was_noted_outlives_restarts_and_nothing_else_does(several_machines: bool, tmp_path: Path) -> None:
    """Whatever torchrun counts: a rank dies before it is noted, and one after that, on this machine or another one."""
    (tmp_path / "noting.py").write_text(NOTING)
    command, paths = [sys.executable, "-m", "noting"], {"PYTHONPATH": f"{ROOT / 'bundle'}:{tmp_path}", "DEATHS": "2"}
    if several_machines:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launched = machines(command, 2, port)
        launched.insert(3, "--max-restarts=5")
        with ThreadPoolExecutor() as pool:
            done = [pool.submit(said, launched, tmp_path, **paths) for _ in range(2)]
            output = "".join(one.result() for one in done)
    else:
        output = said(torchrun(command, 2, "--max-restarts=5"), tmp_path, **paths)
    found = re.findall(r"NOTED (\d)", output)
    assert found[0] == "0" and found[-1] == "1" and found == sorted(found) and len(found) >= 3
    (tmp_path / "again").mkdir()
    assert "NOTED 0" in said(torchrun(command, 2), tmp_path / "again", **{**paths, "DEATHS": "0"})


@pytest.mark.parametrize(("status", "told"), [(0, 0), (130, 1)])
def test_torchrun_makes_1_of_every_status_but_0(status: int, told: int, tmp_path: Path) -> None:
    """As AGENTS.md says."""
    (tmp_path / "ending.py").write_text(f"raise SystemExit({status})")
    said(torchrun([sys.executable, "-m", "ending"], 2), tmp_path, told, PYTHONPATH=str(tmp_path))


WAITING = """
import os, time
from scripts import ranks
ranks.join()
# in one piece, as both write to one pipe
os.write(1, b"%d\\n" % os.getpid())
# the first works, the other waits for what it makes
ranks.of_first(lambda: time.sleep(600))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux is asked for")
def test_no_rank_outlives_a_torchrun_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    launch = torchrun([sys.executable, "-m", "waiting"], 2)
    paths = {"PYTHONPATH": f"{ROOT / 'bundle'}:{tmp_path}"}
    with subprocess.Popen(
        launch, cwd=tmp_path, env=environment(**paths), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as agent:
        assert agent.stdout is not None
        try:
            pids = [int(agent.stdout.readline()) for _ in range(2)]
        finally:
            agent.kill()
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline, "a rank waits for a torchrun that is gone"
            time.sleep(0.1)


class Three:
    labels = [0] * 6 + [1] * 6

    def __len__(self) -> int:
        return 12


def on_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: rank)
    monkeypatch.setattr(idist, "get_world_size", lambda: ranks)


def test_ranks_share_each_batch_and_the_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = next(iter(RandomBatches(Three(), 6, False, 5)))
    shares, slices = [], []
    for rank in range(3):
        on_rank(monkeypatch, rank, 3)
        shares += next(iter(RandomBatches(Three(), 6, False, 5)))
        slices += validated(Three())
    assert sorted(shares, key=lambda draw: draw[1]) == alone and sorted(slices) == list(range(12))
    # where there are fewer slices than ranks, each validates all of them, which gives the same means
    on_rank(monkeypatch, 3, 13)
    assert list(validated(Three())) == list(range(12))
    with pytest.raises(ValueError, match="batch_size must be a multiple of 13, as 13 processes share it, got 6"):
        RandomBatches(Three(), 6, False, 5)


def test_the_loss_of_a_step_is_the_mean_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    on_rank(monkeypatch, 0, 2)
    monkeypatch.setattr(idist, "all_reduce", lambda value: value + 3.0)  # the other's
    engine = Engine(lambda e, b: None)
    engine.state = State(output={"loss": torch.tensor(1.0)})
    MeanLoss()._average(engine)
    assert float(engine.state.output["loss"]) == 2.0


def test_what_stops_one_rank_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    on_rank(monkeypatch, 0, 2)
    monkeypatch.setattr(idist, "all_reduce", lambda value, op: max(value, 15))  # the other caught SIGTERM
    engine = Engine(lambda e, b: None)
    signals = StopSignals()
    signals.agree(engine)
    assert signals.caught == 15 and engine.should_terminate


def test_processes_that_know_nothing_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan: Any = Plan({}, None, None)  # type: ignore[arg-type]  # neither is reached
    with pytest.raises(ValueError, match="started 2 processes; with multi_gpu_train.json") as refused:
        plan.run()
    assert message_of(refused.value) is not None
