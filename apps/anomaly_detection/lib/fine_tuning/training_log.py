"""What a fine-tuning says while it runs."""

from __future__ import annotations

import logging
import time

from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class TrainingLog:
    """Log the loss and the minutes left, every few seconds and at the end.

    Args:
        minutes: that the training may take.
        every_seconds: between two lines.
    """

    def __init__(self, minutes: float, every_seconds: float = 15.0) -> None:
        self.minutes, self.every_seconds = minutes, every_seconds
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """To the trainer."""
        from scripts.learning.noising import loss_of

        self._loss_of = loss_of
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._log)

    def _start(self, engine: Engine) -> None:
        self._began = self._logged = time.monotonic()

    def _collect(self, engine: Engine) -> None:
        self._losses.append(self._loss_of(engine.state.output))
        if time.monotonic() - self._logged >= self.every_seconds:
            self._log(engine)

    def _log(self, engine: Engine) -> None:
        self._logged = time.monotonic()
        if self._losses:
            loss = sum(self._losses) / len(self._losses)
            left = max(0.0, self.minutes - (self._logged - self._began) / 60)
            logger.info("iteration %d: loss %.4f, at most %.1f minutes left", engine.state.iteration, loss, left)
            self._losses.clear()
