"""What happens around the steps of a training."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from ..checks import check_number
from .noising import loss_of


class InOrder:
    """Handlers, each of which relies on those before it."""

    def __init__(self, handlers: Sequence[Any]) -> None:
        self.handlers = handlers

    def attach(self, engine: Engine) -> None:
        """One after the other."""
        for handler in self.handlers:
            handler.attach(engine)


class NeedsFiniteLoss:
    """End a training whose loss is no number, before anything of it is saved."""

    def attach(self, engine: Engine) -> None:
        """To the trainer; before what saves its checkpoint."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        loss = loss_of(engine.state.output)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {engine.state.iteration}, so nothing more was saved; begin anew with a smaller "
                "learning_rate, or precision float32."
            )


class ClipGradients:
    """Clip the norm of the gradient before each optimizer step.

    Args:
        network: whose gradient it is.
        max_norm: above 0; a negative one would turn the gradient around.

    Raises:
        ValueError: `max_norm` is out of range.
    """

    def __init__(self, network: torch.nn.Module, max_norm: float) -> None:
        check_number("max_norm", max_norm, sys.float_info.min, math.inf, "above 0")
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Between backward and step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class MeanLoss:
    """Of several ranks' losses the mean, in the place of each one's own, for what comes after the step's backward."""

    def attach(self, engine: Engine) -> None:
        """To the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._average)

    def _average(self, engine: Engine) -> None:
        engine.state.output["loss"] = idist.all_reduce(engine.state.output["loss"].detach()) / idist.get_world_size()
