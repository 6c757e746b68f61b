"""The moving average of a network's weights, which is what a training publishes."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from ignite.handlers.ema_handler import EMAWarmUp


class WarmedEMA(EMAHandler):
    """ignite's `EMAHandler`, whose momentum falls along a line to its own over the first steps, so that short trainings count.

    ignite's own warm-up counts the steps since the process began, so a training that goes on would begin it anew.

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

    def _update_ema_model(self, engine: Engine, name: str) -> None:
        if self._warm_up is not None:
            setattr(engine.state, name, self._warm_up(engine.state.iteration))
        super()._update_ema_model(engine, name)
