"""How long a training goes on, and how its learning rate falls."""

from __future__ import annotations

import logging
import math
import time

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from ..checks import check_number

logger = logging.getLogger(__name__)


class Budget:
    """End a training after so many images, and anneal its learning rate over them.

    The rate falls from that of the optimizer along half a cosine (Loshchilov and Hutter 2017): before step k of K it is
    rate (1 + cos(pi (k - 1) / K)) / 2. It depends on the step alone, so a training that was stopped goes on
    with the rate that it would have had.

    Args:
        images: that the training sees, a slice counted as often as it is drawn.
        batch_size: images a step, of all ranks together; the last step may go beyond `images`.
        epoch_images: images between two lines in the log; a validation follows every few epochs.
        optimizer: as it was made, before a checkpoint is loaded into it.
        minutes: at most, of this run; none by default. What is cut short by it has not annealed its rate.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        epoch_images: int,
        optimizer: torch.optim.Optimizer,
        minutes: float | None = None,
    ) -> None:
        for name, number in (("max_images", images), ("batch_size", batch_size), ("epoch_images", epoch_images)):
            check_number(name, number, 1, 10**12, "1 or more", whole=True)
        if minutes is not None and not minutes > 0:
            raise ValueError(f"max_minutes must be above 0, got {minutes}.")
        self.batch_size = batch_size
        self.steps = math.ceil(images / batch_size)
        self.epoch_length = min(math.ceil(epoch_images / batch_size), self.steps)
        """Steps an epoch."""
        self.epochs = math.ceil(self.steps / self.epoch_length)
        self.optimizer = optimizer
        self.seconds = math.inf if minutes is None else 60 * minutes
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        """Start the clock when the training starts; behind what loads its checkpoint."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._anneal)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)

    def _start(self, engine: Engine) -> None:
        self._begin = time.monotonic()
        if engine.state.iteration >= self.steps:
            engine.terminate()

    def _anneal(self, engine: Engine) -> None:
        passed = (engine.state.iteration - 1) / self.steps
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * passed)) / 2

    def _check(self, engine: Engine) -> None:
        step = engine.state.iteration
        if step >= self.steps:
            if step % self.epoch_length:
                engine.terminate_epoch()  # the last is shorter
        elif self._time_is_up():
            logger.warning(
                "stopped by max_minutes after %d of %d images; the same command, without --overwrite, goes on from there",
                *(step * self.batch_size, self.steps * self.batch_size),
            )
            engine.terminate()

    def _time_is_up(self) -> bool:
        if not math.isfinite(self.seconds):
            return False
        # several ranks end after the same step
        return bool(idist.all_reduce(int(time.monotonic() >= self._begin + self.seconds), "MAX"))
