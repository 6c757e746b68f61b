"""A training's folder: what it needs to go on, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

from ..bundle import bundle_version
from ..digests import json_digest
from ..files import write
from ..fingerprints import settings_of

logger = logging.getLogger(__name__)


RUN, LOG = "run.json", "train.log"


class _Settings:
    """What a checkpoint keeps of what it was trained on, as ignite wants it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def state_dict(self) -> dict[str, Any]:
        return self._settings

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: the two were compared."""


class ResumableCheckpoint:
    """A training's folder: save all that it needs to go on every `every_minutes`, at Ctrl-C and at the end; go on from there.

    In `run_dir`: ``last.pt``, from which it goes on; ``run.json``, what it was trained on; ``train.log``; and at the end
    ``model.pt``, the EMA weights. `publish` brings those into the bundle. Each is written whole or not at all. A checkpoint
    knows `settings`, and goes on with the same alone.

    Args:
        run_dir: of this training.
        network, ema_network, optimizer: what to save.
        settings: what must be the same to go on; of an object its `data.settings_of` counts. ``teacher``, if it is there,
            are the digests of the networks that a student learns from.
        initial_weights: where the network began; a checkpoint goes before them.
        overwrite: begin anew, whatever `run_dir` holds of an earlier training.
        every_minutes: between two saves.

    Raises:
        SystemExit: `run_dir` holds a training with other settings, or weights without one; with a message.
    """

    def __init__(
        self,
        run_dir: str,
        network: torch.nn.Module,
        ema_network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        initial_weights: str | None = None,
        overwrite: bool = False,
        every_minutes: float = 5.0,
    ) -> None:
        self.folder = Path(run_dir)
        self.path, self.final_path = self.folder / "last.pt", self.folder / "model.pt"
        self.objects: dict[str, Any] = {"network": network, "ema": ema_network, "optimizer": optimizer}
        self.every_seconds = 60 * every_minutes
        self.settings = {name: _short(settings_of(value)) for name, value in settings.items()}
        began = hashlib.sha256(Path(initial_weights).read_bytes()).hexdigest() if initial_weights else None
        if not overwrite and self.path.is_file():
            before = self._settings_before()
            if began is not None and before["initial_weights"] != began:
                raise SystemExit(
                    f"{self.folder}: holds a training that did not begin with {initial_weights}. Go on with it without "
                    "--initial_weights, give another --run_dir, or --overwrite true to replace it."
                )
            began = before["initial_weights"]
        elif not overwrite and self.final_path.exists():
            raise SystemExit(
                f"{self.final_path}: is there already, without a checkpoint to go on from. Give another --run_dir, or "
                "--overwrite true to replace it."
            )
        self.settings["initial_weights"] = began
        self._anew = overwrite
        self._signal: int | None = None
        self._saved_at = time.monotonic()

    def _settings_before(self) -> dict[str, Any]:
        advice = "Give another --run_dir, or --overwrite true to replace it."
        try:
            before = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True).get("settings")
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise SystemExit(
                f"{self.path}: can't be read as a checkpoint ({type(error).__name__}). {advice}"
            ) from error
        if before is None:
            raise SystemExit(f"{self.path}: doesn't say what it was trained on. {advice}")
        names = sorted((before.keys() | self.settings.keys()) - {"initial_weights"})
        values = [(n, before.get(n), self.settings.get(n)) for n in names]
        differing = [f"{n} was {old}, now {new}" for n, old, new in values if old != new]
        if differing:
            raise SystemExit(f"{self.folder}: holds a training with other settings: {'; '.join(differing)}. {advice}")
        return dict(before)

    def attach(self, engine: Engine) -> None:
        """Resume at start, save on time and at the end."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save_on_time)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)
        self._checkpoint = Checkpoint(
            {**self.objects, "trainer": engine, "settings": _Settings(self.settings)},
            DiskSaver(str(self.folder), create_dir=True, atomic=True, require_empty=False),
            filename_pattern=self.path.name,
            n_saved=None,
        )

    def _start(self, engine: Engine) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._anew:
            for path in (self.path, self.final_path, self.folder / LOG):
                path.unlink(missing_ok=True)
        self._log = logging.FileHandler(self.folder / LOG, encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(self._log)
        self._catch_signals(engine)
        versions = {"bundle": bundle_version(), "monai": monai.__version__, "torch": torch.__version__}
        write(self.folder / RUN, json.dumps({"settings": self.settings, "versions": versions}, indent=2).encode())
        self._saved_at = time.monotonic()
        if self.path.is_file():
            self._resume(engine)

    def _resume(self, engine: Engine) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        limit = engine.state.max_epochs
        Checkpoint.load_objects({**self.objects, "trainer": engine}, state)
        engine.state.max_epochs = limit
        # another part of the random stream than the one already used
        torch.manual_seed(torch.initial_seed() + engine.state.iteration)
        generator = getattr(getattr(engine.state.dataloader, "sampler", None), "generator", None)
        if generator is not None:
            generator.manual_seed(generator.initial_seed() + engine.state.iteration)
        logger.info("resumed from %s at iteration %d", self.path, engine.state.iteration)
        if self.settings["initial_weights"]:
            logger.info("the initial weights are where it began; they are not loaded again")

    def _catch_signals(self, engine: Engine) -> None:
        self._handlers: dict[int, Any] = {}

        def stop(number: int, frame: Any) -> None:
            self._signal = number
            self._release_signals()  # the next one ends the process at once
            logger.info("stopping after this iteration or validation")
            engine.terminate()

        if threading.current_thread() is threading.main_thread():  # no other may
            self._handlers = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}

    def _release_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _save_on_time(self, engine: Engine) -> None:
        if time.monotonic() - self._saved_at >= self.every_seconds:
            self._checkpoint(engine)
            self._saved_at = time.monotonic()

    def _finish(self, engine: Engine) -> None:
        self._checkpoint(engine)
        if self._signal is None:
            weights = {k: v.detach().cpu() for k, v in self.objects["ema"].state_dict().items()}
            partial = self.final_path.with_suffix(".part")
            torch.save(weights, partial)
            os.replace(partial, self.final_path)
            logger.info("wrote %s after %d iterations", self.final_path, engine.state.iteration)
        self._end()

    def _give_up(self, engine: Engine, error: BaseException) -> None:
        self._end()
        raise error  # ignite leaves that to whoever listens

    def _end(self) -> None:
        self._release_signals()
        logging.getLogger().removeHandler(self._log)
        self._log.close()

    def close(self) -> None:
        """After the training: say how it ended.

        Raises:
            SystemExit: it was stopped by Ctrl-C (status 130) or SIGTERM (143).
        """
        if self._signal is None:
            print(f"{self.final_path}: the weights. They are not in the bundle yet: see `publish` in the README.")
            return
        print(f"Stopped. {self.path} was saved; the same command goes on from there.", file=sys.stderr)
        raise SystemExit(128 + self._signal)


def _short(setting: Any) -> Any:
    """A setting, or its hash where it is too long to be read."""
    return setting if len(json.dumps(setting)) < 300 else json_digest(setting)[:16]
