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
        momentum_warmup: that at the first step.
        warmup_iters: steps that it takes.
    """

    def __init__(self, model: torch.nn.Module, momentum: float, momentum_warmup: float, warmup_iters: int) -> None:
        super().__init__(model, momentum)
        self._warm_up = EMAWarmUp(momentum_warmup, warmup_iters, momentum)

    def _update_ema_model(self, engine: Engine, name: str) -> None:
        setattr(engine.state, name, self._warm_up(engine.state.iteration))
        super()._update_ema_model(engine, name)
