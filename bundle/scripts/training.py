"""What MONAI's trainer and evaluator need beyond their own parts to train on noised slices."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar, Timer
from monai.engines import default_prepare_batch
from monai.engines.utils import IterationEvents, PrepareBatch
from monai.inferers import DiffusionInferer, SimpleInferer
from monai.utils import convert_to_tensor

from .bundle import MANIFEST, autocast, bundle_version, load_weights, read_manifest, replace_weights, weights_digest
from .data import json_digest, settings_of
from .reporting import write

logger = logging.getLogger(__name__)

RUN, LOG = "run.json", "train.log"


class _Autocast:
    """Makes of an inferer one whose networks run in `precision`, on whatever device the inputs are.

    MONAI's engines know CUDA's autocast only.
    """

    def __init__(self, *args: Any, precision: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        autocast("cpu", precision)  # refuses what it doesn't know
        self.precision = precision

    def __call__(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with autocast(inputs.device, self.precision):
            return super().__call__(inputs, *args, **kwargs).float()  # type: ignore[misc]  # of the other base


class AutocastInferer(_Autocast, SimpleInferer):
    """MONAI's `SimpleInferer` under autocast.

    Args:
        precision: "float32", "bfloat16", or "float16" (GPU; set the trainer's ``amp`` for its gradient scaler).

    Raises:
        ValueError: another precision.
    """


class AutocastDiffusionInferer(_Autocast, DiffusionInferer):
    """MONAI's `DiffusionInferer` under autocast.

    Args:
        scheduler: MONAI's.
        precision: as for `AutocastInferer`.

    Raises:
        ValueError: another precision.
    """


class NoisedPrepareBatch(PrepareBatch):
    """Draw a timestep and a noise field for every image; the target is the noise (diffusion) or the label (classifier).

    Args:
        num_train_timesteps: timesteps are drawn uniformly from 0 to this.
        target: "noise" or "label".
        noise_levels: for validation: repeat every image at each of these timesteps, one level after the other, with a
            noise that depends on `seed` and the batch alone, so that two validations compare.
        seed: of the validation noise.

    Returns (as MONAI's engines expect): images ``(N, C, H, W)``, targets, no arguments, and ``noise`` and ``timesteps`` by
    keyword for `DiffusionInferer`.
    """

    def __init__(
        self, num_train_timesteps: int, target: str = "noise", noise_levels: list[int] | None = None, seed: int = 0
    ) -> None:
        if target not in ("noise", "label"):
            raise ValueError(f"target must be 'noise' or 'label', got {target!r}.")
        self.num_train_timesteps = num_train_timesteps
        self.target = target
        self.noise_levels = noise_levels
        self.seed = seed

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, torch.Tensor]]:
        images, labels = default_prepare_batch(dict(batchdata), device, non_blocking, **kwargs)
        images = convert_to_tensor(images)  # a MetaTensor slows every operation, and can't be compiled
        if self.noise_levels is None:
            timesteps = torch.randint(0, self.num_train_timesteps, (len(images),), device=images.device)
            noise = torch.randn_like(images)
        else:
            timesteps = torch.tensor(self.noise_levels, device=images.device).repeat_interleave(len(images))
            images = images.repeat(len(self.noise_levels), 1, 1, 1)
            labels = labels.repeat(len(self.noise_levels))
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(images.shape, generator=generator).to(images.device)
        target = noise if self.target == "noise" else labels
        return images, target, (), {"noise": noise, "timesteps": timesteps}


def loss_of(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> float:
    """Output transform: the loss of an iteration, of a batch or of its images, each of which has it."""
    return float((output if isinstance(output, Mapping) else output[0])["loss"])


class AtNoiseLevel:
    """Output transform: predictions and labels at one of the `noise_levels` of `NoisedPrepareBatch`.

    Args:
        index: which level.
        total: how many there are.
        probability: give p(diseased) instead of the logits, for AUROC.
    """

    def __init__(self, index: int, total: int, probability: bool = False) -> None:
        self.index, self.total, self.probability = index, total, probability

    def __call__(self, output: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pred = output["pred"].chunk(self.total)[self.index]
        label = output["label"].chunk(self.total)[self.index]
        return (pred.softmax(dim=1)[:, 1] if self.probability else pred), label


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
    return setting if len(json.dumps(setting)) < 300 else json_digest(setting)


def publish(run_dir: str, path: str, network: torch.nn.Module) -> None:
    """Bring the weights of a training into the bundle; what is there is kept beside them under a name with the time.

    Student and threshold belong to networks: ``weights.json`` beside the weights says which, and a student brings what it
    learned from. For other networks inference warns (`bundle.not_together`), as this does.

    Args:
        run_dir: of the training.
        path: in the bundle's ``models``.
        network: of the definition that the bundle declares; the weights must fit it.

    Raises:
        SystemExit: there are no weights in `run_dir`, or the bundle can't be written.
        ValueError: see `bundle.load_weights`.
    """
    source, target = Path(run_dir) / "model.pt", Path(path)
    if not source.is_file():
        raise SystemExit(f"{source}: no weights there; finish the training, or give the --run_dir of another.")
    digest = weights_digest(load_weights(network, str(source)))
    teacher = json.loads((source.with_name(RUN)).read_text("utf-8"))["settings"].get("teacher")
    manifest = target.with_name(MANIFEST)
    belonging = read_manifest(manifest)
    copy = target.with_suffix(".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        kept = replace_weights(copy, target)
        if teacher is not None:
            belonging["student"] = {**teacher, "student": digest}
            write(manifest, (json.dumps(belonging, indent=4) + "\n").encode())
    except OSError as error:
        raise SystemExit(
            f"{target}: can't be written ({error.strerror or error}); give a copy of the bundle as --bundle_root."
        ) from error
    print(f"{target}: published." + (f" The old weights are {kept}." if kept else ""))
    if teacher is None and digest not in belonging.get("student", {}).values():
        print(
            "The student and the threshold belong to other networks: run with --student '$None' until there is a student for "
            "these, and choose a threshold anew."
        )
    elif teacher is not None and digest not in belonging.get("threshold", {}).values():
        print("The threshold was chosen for another student: choose one anew.")


class MinutesLimit:
    """Anneal the learning rate and end the training gracefully, final weights included, after so many minutes of this run.

    The learning rate falls from that of the optimizer along half a cosine (Loshchilov and Hutter 2017): as the time is known
    and the number of iterations is not, it follows the time, in `STEPS` steps, within each of which a run depends on its seed
    alone. A run that goes on begins with the whole rate again.

    Args:
        minutes: of this run, above 0.
        optimizer: as it was made, before a checkpoint is loaded into it.

    Raises:
        ValueError: the minutes are not above 0.
    """

    STEPS = 20

    def __init__(self, minutes: float, optimizer: torch.optim.Optimizer) -> None:
        if not minutes > 0:
            raise ValueError(f"max_minutes must be above 0, got {minutes}.")
        self.seconds = 60 * minutes
        self.optimizer = optimizer
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        """Start the clock when the training starts."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._anneal)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)

    def _start(self, engine: Engine) -> None:
        self._begin = time.monotonic()

    def _anneal(self, engine: Engine) -> None:
        passed = int(self.STEPS * (time.monotonic() - self._begin) / self.seconds) / self.STEPS
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * min(passed, 1.0))) / 2

    def _check(self, engine: Engine) -> None:
        if time.monotonic() >= self._begin + self.seconds:
            engine.terminate()


class ClipGradients:
    """Clip the norm of the gradient before each optimizer step."""

    def __init__(self, network: torch.nn.Module, max_norm: float) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Between backward and step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class NetworkShare:
    """Log after every epoch which share of the time the training waited for batches, and the images a second."""

    def attach(self, engine: Engine) -> None:
        """Around the fetching of every batch."""
        self._epoch = Timer().attach(engine, start=Events.EPOCH_STARTED, pause=Events.EPOCH_COMPLETED)
        self._waiting = Timer().attach(
            engine, start=Events.EPOCH_STARTED, pause=Events.GET_BATCH_COMPLETED, resume=Events.GET_BATCH_STARTED
        )
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _reset(self, engine: Engine) -> None:
        self._images = 0

    def _count(self, engine: Engine) -> None:
        self._images += len(engine.state.batch["image"])

    def _log(self, engine: Engine) -> None:
        total = self._epoch.value()
        share = self._waiting.value() / total
        logger.info("waiting for data: %.1f %% of the time; %.1f images/s", 100 * share, self._images / total)


class Progress:
    """A progress bar an epoch with the loss."""

    def attach(self, engine: Engine) -> None:
        """To the trainer."""
        bar = ProgressBar(desc="epoch", persist=False)
        bar.attach(engine, output_transform=lambda output: {"loss": loss_of(output)})
