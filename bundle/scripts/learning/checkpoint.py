"""A training's folder: what it needs to go on, and what it leaves."""

from __future__ import annotations

import json
import logging
import math
import pickle
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch
from filelock import FileLock, Timeout
from ignite.engine import Engine, Events

from ..bundle import bundle_version
from ..checks import check_number, is_true
from ..digests import digest_of
from ..errors import ExhaustedError
from ..files import write
from ..ranks import note, of_first, was_noted
from ..weights import write_tensors
from .settings import differing, shortened
from .stopping import StopSignals

logger = logging.getLogger(__name__)

RUN, LOG = "run.json", "train.log"
ADVICE = "Give another --run_dir, or --overwrite true to replace it."


class ResumableCheckpoint:
    """A training's folder: save all that it needs to go on every `every_minutes`, at Ctrl-C and at the end; go on from there.

    In `run_dir`: ``last.pt``, from which it goes on; ``run.json``, what it is trained on; ``train.log``; and at the end
    ``model.pt``, the EMA weights. `publish` brings those into the bundle. Each is written whole or not at all. A checkpoint
    knows `settings`, and goes on with the same alone; ``model.pt`` of fewer steps goes then. One training at a time
    has a folder.

    All of it from `open` on. A trainer that is run without it, as a federated client runs one, begins each time with the
    weights that it was given, and leaves no file. Of several ranks, the first reads and writes for all.

    Args:
        run_dir: of this training.
        network, ema_network, optimizer: what to save.
        settings: what must be the same to go on; of an object its `fingerprints.settings_of` counts. ``teacher``, if it is
            there, are the digests of the networks that a student learns from.
        record: what else ``run.json`` says.
        initial_weights: where the network began; a checkpoint goes before them.
        overwrite: begin anew, whatever `run_dir` holds of an earlier training.
        every_minutes: between two saves.

    Raises:
        ValueError: `every_minutes` is out of range.
        SystemExit: `run_dir` holds a training with other settings, or weights without one; or, when it starts, another one
            has the folder; with a message.
    """

    def __init__(
        self,
        run_dir: str,
        network: torch.nn.Module,
        ema_network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        record: Mapping[str, Any] | None = None,
        initial_weights: str | None = None,
        overwrite: bool | str = False,
        every_minutes: float = 5.0,
    ) -> None:
        check_number("checkpoint_minutes", every_minutes, sys.float_info.min, math.inf, "above 0")
        self.folder = Path(run_dir)
        self.path, self.final_path = self.folder / "last.pt", self.folder / "model.pt"
        self.objects: dict[str, Any] = {"network": network, "ema": ema_network, "optimizer": optimizer}
        self.every_seconds = 60 * every_minutes
        self._lock = FileLock(self.folder / "lock")
        self._log: logging.FileHandler | None = None
        self.settings, self.record = shortened(settings), dict(record or {})
        self._begun = f"begun {self.folder.absolute()}"
        # what torchrun starts again may have begun anew already
        self._anew = is_true(overwrite, "overwrite") and not of_first(lambda: was_noted(self._begun))
        self.settings["initial_weights"] = of_first(lambda: self._began(initial_weights))
        self._signals = StopSignals()
        self._saved_at = time.monotonic()
        self._is_open = False

    def open(self) -> None:
        """Before the trainer runs: go on from this folder, and save into it."""
        self._is_open = True

    def _began(self, initial_weights: str | None) -> str | None:
        """The digest of the weights that the training begins, or began, with; refuse what this folder must not hold."""
        began = None if initial_weights is None else digest_of(Path(initial_weights))
        if self._anew:
            return began
        if self.path.is_file():
            before = self._settings_before()
            if began is not None and before["initial_weights"] != began:
                raise SystemExit(
                    f"{self.folder}: holds a training that did not begin with {initial_weights}. Go on with it without "
                    "--initial_weights, give another --run_dir, or --overwrite true to replace it."
                )
            return before["initial_weights"]
        if self.final_path.exists():
            raise SystemExit(
                f"{self.final_path}: is there already, without a checkpoint to go on from. Give another --run_dir, or "
                "--overwrite true to replace it."
            )
        return began

    def _settings_before(self) -> dict[str, Any]:
        try:
            before = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True).get("settings")
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise SystemExit(
                f"{self.path}: can't be read as a checkpoint ({type(error).__name__}). {ADVICE}"
            ) from error
        if before is None:
            raise SystemExit(f"{self.path}: doesn't say what it was trained on. {ADVICE}")
        if changes := differing(before, self.settings):
            raise SystemExit(f"{self.folder}: holds a training with other settings: {'; '.join(changes)}. {ADVICE}")
        return dict(before)

    def attach(self, engine: Engine) -> None:
        """Resume at start, save on time and at the end; behind what updates the EMA weights."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._signals.agree)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save_on_time)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def _start(self, engine: Engine) -> None:
        if not self._is_open:
            return
        if getattr(engine, "scaler", None) is not None:  # of float16; MONAI makes it when a training starts
            self.objects["scaler"] = engine.scaler
        state = of_first(self._take_folder)
        self._signals.catch(engine)
        if state is not None:
            self._resume(engine, state)
        self._saved_at = time.monotonic()

    def _take_folder(self) -> dict[str, Any] | None:
        """Have the folder, write what is known, and read where the training goes on, if it does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise SystemExit(f"{self.folder}: another training has this folder. Give another --run_dir.") from error
        # of a process that was killed while it saved: the lock says that none is at it now
        for name in (self.path.name, self.final_path.name):
            for left in self.folder.glob(f".part-*-{name}"):
                left.unlink(missing_ok=True)
        if self._anew:
            for path in (self.path, self.final_path, self.folder / LOG):
                path.unlink(missing_ok=True)
            note(self._begun)
        self._log = logging.FileHandler(self.folder / LOG, encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(self._log)
        versions = {"bundle": bundle_version(), "monai": monai.__version__, "torch": torch.__version__}
        content = {"settings": self.settings, "versions": versions, **self.record}
        write(self.folder / RUN, (json.dumps(content, indent=2) + "\n").encode())
        return torch.load(self.path, map_location="cpu", weights_only=True) if self.path.is_file() else None

    def _resume(self, engine: Engine, state: dict[str, Any]) -> None:
        for name, thing in self.objects.items():
            if name != "scaler" or name in state:  # which no checkpoint before 0.4.1 has
                thing.load_state_dict(state[name])
        engine.state.iteration = state["iteration"]
        engine.state.epoch = engine.state.iteration // (engine.state.epoch_length or 1)
        logger.info("resumed from %s at step %d", self.path, engine.state.iteration)
        if self.settings["initial_weights"]:
            logger.info("the initial weights are where it began; they are not loaded again")

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        state = {name: thing.state_dict() for name, thing in self.objects.items()}
        self._write(self.path, {**state, "iteration": engine.state.iteration, "settings": self.settings})
        # of fewer steps: it would be published in place of what comes
        self.final_path.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def _write(self, path: Path, content: Any) -> None:
        try:
            write_tensors(path, content)
        except OSError as error:
            kept = f"{self.path}, saved before, is kept" if self.path.is_file() else "nothing was saved before"
            raise ExhaustedError(f"{path}: can't be written ({error.strerror or error}); {kept}.") from error

    def _save_on_time(self, engine: Engine) -> None:
        if self._is_open and time.monotonic() - self._saved_at >= self.every_seconds:
            self._save(engine)

    def _finish(self, engine: Engine) -> None:
        if not self._is_open:
            return
        self._save(engine)
        if self._signals.caught is None and idist.get_rank() == 0:
            weights = {k: v.detach().cpu() for k, v in self.objects["ema"].state_dict().items()}
            self._write(self.final_path, weights)
            logger.info("wrote %s after %d steps", self.final_path, engine.state.iteration)
        self._end()

    def _give_up(self, engine: Engine, error: BaseException) -> None:
        self._end()
        raise error  # ignite leaves that to whoever listens

    def _end(self) -> None:
        self._signals.release()
        if not self._lock.is_locked:
            return
        if self._log is not None:  # which can't be opened on a full disk
            logging.getLogger().removeHandler(self._log)
            self._log.close()
        self._lock.release()

    def close(self) -> None:
        """After the training: say how it ended.

        Raises:
            SystemExit: it was stopped by Ctrl-C (status 130) or SIGTERM (143).
        """
        first = idist.get_rank() == 0
        if self._signals.caught is None:
            if first:
                print(
                    f"{self.final_path}: the weights. To bring them into the bundle, give `run publish` instead of `run`."
                )
            return
        if first:
            print(
                f"Stopped. {self.path} was saved; the same command, without --overwrite, goes on from there.",
                file=sys.stderr,
            )
        raise SystemExit(128 + self._signals.caught)
