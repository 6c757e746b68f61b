"""What a training shows while it runs."""

from __future__ import annotations

import logging

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from tqdm import tqdm

from .budget import Budget
from .noising import loss_of

logger = logging.getLogger(__name__)


class Progress:
    """A bar over the whole training, and a line in the log an epoch: images, images a second, loss and the time left.

    The line says which share of the time the training waited for batches, too.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._total = budget.steps * budget.batch_size
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """To the trainer; before what ends it at an error."""
        self._epoch = Timer().attach(engine, start=Events.EPOCH_STARTED, pause=Events.EPOCH_COMPLETED)
        self._waiting = Timer().attach(
            engine, start=Events.EPOCH_STARTED, pause=Events.GET_BATCH_COMPLETED, resume=Events.GET_BATCH_STARTED
        )
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)
        for end in (Events.COMPLETED, Events.EXCEPTION_RAISED):
            engine.add_event_handler(end, self._close)

    def _reset(self, engine: Engine) -> None:
        if self._bar is None:  # only now it is known where a training goes on
            done = engine.state.iteration * self.budget.batch_size
            silent = idist.get_rank() > 0
            self._bar = tqdm(
                total=self._total, initial=done, desc="training", unit=" images", leave=False, disable=silent
            )
        self._images, self._losses = 0, 0.0

    def _count(self, engine: Engine) -> None:
        loss = loss_of(engine.state.output)
        self._images += self.budget.batch_size
        self._losses += loss * self.budget.batch_size
        assert self._bar is not None
        self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        self._bar.update(self.budget.batch_size)

    def _log(self, engine: Engine) -> None:
        seconds, done = self._epoch.value(), engine.state.iteration * self.budget.batch_size
        speed = self._images / seconds
        logger.info(
            "%d of %d images: loss %.4f, %.1f images/s, %.1f %% of the time waiting for data, about %.0f minutes left",
            *(done, self._total, self._losses / self._images, speed, 100 * self._waiting.value() / seconds),
            (self._total - done) / speed / 60,
        )

    def _close(self, engine: Engine, *error: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
