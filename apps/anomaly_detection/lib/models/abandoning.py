"""Work that nobody waits for any more ends early."""

from __future__ import annotations

from collections.abc import Callable
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
