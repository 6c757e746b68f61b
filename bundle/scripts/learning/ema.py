"""The moving average of a network's weights, which is what a training publishes."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.handlers.ema_handler import EMAWarmUp


class WarmedEMA(EMAHandler):
    """ignite's `EMAHandler`, whose momentum falls along a line to its own over the first steps, so that short trainings count.

    ignite's own warm-up counts the steps since the process began, so a training that goes on would begin it anew. Its average
    begins with the weights that the network was made with; this one with those that it has when the training starts.

    Args:
        model: whose weights are averaged.
        momentum: the share of the newest weights, after the first steps.
        momentum_warmup: that at the first step; None is no warm-up.
        warmup_iters: steps that it takes; None likewise.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        momentum: float,
        momentum_warmup: float | None = None,
        warmup_iters: int | None = None,
    ) -> None:
        super().__init__(model, momentum)
        warms = momentum_warmup is not None and warmup_iters is not None
        self._warm_up = EMAWarmUp(momentum_warmup, warmup_iters, momentum) if warms else None

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Average from the network's weights at the start on; before what loads a checkpoint."""
        super().attach(engine, *args, **kwargs)
        engine.add_event_handler(Events.STARTED, lambda: self.ema_model.load_state_dict(self.model.state_dict()))

    def _update_ema_model(self, engine: Engine, name: str) -> None:
        if self._warm_up is not None:
            setattr(engine.state, name, self._warm_up(engine.state.iteration))
        super()._update_ema_model(engine, name)
