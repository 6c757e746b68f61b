"""What happens around the steps of a training."""

from __future__ import annotations

import logging
import math
import time

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, Timer
from monai.engines.utils import IterationEvents

from .noising import loss_of

logger = logging.getLogger(__name__)


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
