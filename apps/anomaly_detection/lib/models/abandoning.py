"""Work that nobody waits for any more ends early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

abandoned: ContextVar[Callable[[], bool] | None] = ContextVar("abandoned", default=None)
"""Whether the client that asked for what runs here has gone; None: nobody can tell."""


class Abandoned(Exception):
    """The client has gone, so what it asked for is not finished."""


def proceed() -> None:
    """Called between two steps.

    Raises:
        Abandoned: nobody waits for the next one.
    """
    gone = abandoned.get()
    if gone is not None and gone():
        raise Abandoned


@contextmanager
def turn(lock: threading.Lock) -> Iterator[None]:
    """One at a time; who goes away while waiting loses the turn.

    Raises:
        Abandoned: see `proceed`.
    """
    while not lock.acquire(timeout=0.2):
        proceed()
    try:
        yield
    finally:
        lock.release()
