"""Words of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def some(names: Sequence[str]) -> str:
    """The first three of many names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shown(value: Any) -> str:
    """A setting: a number without needless zeros, a text as it is, several with slashes between."""
    if isinstance(value, (list, tuple)):
        return "/".join(map(shown, value))
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
