"""What MONAI's trainer and evaluator need beyond their own parts to train on noised slices."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar, Timer
from monai.engines import default_prepare_batch
from monai.engines.utils import IterationEvents, PrepareBatch
from monai.inferers import DiffusionInferer, SimpleInferer
from monai.utils import convert_to_tensor

from .bundle import autocast

logger = logging.getLogger(__name__)


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


def loss_of(output: Mapping[str, Any]) -> float:
    """Output transform: the loss of an iteration."""
    return float(output["loss"].detach())


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


class ResumableCheckpoint:
    """Save network, EMA network, optimizer and trainer every `every_minutes` and at the end; resume from the last save.

    At the end the EMA weights are written to `final_path`, whole or not at all.

    Args:
        save_dir: of the checkpoint ``last.pt``.
        network, ema_network, optimizer: what to save.
        final_path: where the bundle reads its weights.
        every_minutes: between two saves.
    """

    def __init__(
        self,
        save_dir: str,
        network: torch.nn.Module,
        ema_network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        final_path: str,
        every_minutes: float = 5.0,
    ) -> None:
        self.path = Path(save_dir) / "last.pt"
        self.objects: dict[str, Any] = {"network": network, "ema": ema_network, "optimizer": optimizer}
        self.final_path = Path(final_path)
        self.every_seconds = 60 * every_minutes
        self._saved_at = time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Resume at start, save on time and at the end."""
        engine.add_event_handler(Events.STARTED, self._resume)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save_on_time)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        self._checkpoint = Checkpoint(
            {**self.objects, "trainer": engine},
            DiskSaver(str(self.path.parent), create_dir=True, atomic=True, require_empty=False),
            filename_pattern=self.path.name,
            n_saved=None,
        )

    def _resume(self, engine: Engine) -> None:
        self._saved_at = time.monotonic()
        if not self.path.is_file():
            return
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

    def _save_on_time(self, engine: Engine) -> None:
        if time.monotonic() - self._saved_at >= self.every_seconds:
            self._checkpoint(engine)
            self._saved_at = time.monotonic()

    def _finish(self, engine: Engine) -> None:
        self._checkpoint(engine)
        weights = {k: v.detach().cpu() for k, v in self.objects["ema"].state_dict().items()}
        self.final_path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.final_path.with_suffix(".part")
        torch.save(weights, partial)
        os.replace(partial, self.final_path)
        logger.info("wrote %s after %d iterations", self.final_path, engine.state.iteration)


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
