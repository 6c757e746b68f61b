"""What happens around the steps of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents


class InOrder:
    """Handlers, each of which relies on those before it."""

    def __init__(self, handlers: Sequence[Any]) -> None:
        self.handlers = handlers

    def attach(self, engine: Engine) -> None:
        """One after the other."""
        for handler in self.handlers:
            handler.attach(engine)


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
