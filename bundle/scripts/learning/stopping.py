"""Ctrl-C and SIGTERM end a training after its step, on all ranks the same."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine

logger = logging.getLogger(__name__)


class StopSignals:
    """Between `catch` and `release`, Ctrl-C and SIGTERM end the training gracefully; a second one ends the process at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._handlers: dict[int, Any] = {}

    def catch(self, engine: Engine) -> None:
        """From here on; in the main thread, as no other may."""

        def stop(number: int, frame: Any) -> None:
            self.caught = number
            self.release()
            logger.info("stopping after this step or validation")
            if idist.get_world_size() == 1:
                engine.terminate()

        if threading.current_thread() is threading.main_thread():
            self._handlers = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}

    def agree(self, engine: Engine) -> None:
        """After every step: what one of several ranks caught ends the training on all of them."""
        if idist.get_world_size() > 1 and (caught := idist.all_reduce(self.caught or 0, "MAX")):
            self.caught = int(caught)
            engine.terminate()

    def release(self) -> None:
        """What was there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
