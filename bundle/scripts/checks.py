"""Options: what is allowed, and a refusal that says so."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def check_number(
    name: str, value: Any, lowest: float, highest: float, allowed: str | None = None, whole: bool = False
) -> None:
    """Refuse an option that is no number, NaN, infinite or out of its range.

    Args:
        name: of the option.
        value: what was given.
        lowest: allowed.
        highest: allowed.
        allowed: the range in words; by default these two.
        whole: only whole numbers.

    Raises:
        ValueError: it names the option, what is allowed and what was given.
    """
    allowed = allowed or f"from {lowest:g} to {highest:g}"
    kind: Any = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, {allowed}, got {value!r}.")
    if not lowest <= value <= highest:  # NaN is neither
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def is_true(value: bool | str, name: str) -> bool:
    """An option that is true or false, which MONAI's command line leaves as text when it is written in small letters.

    Raises:
        ValueError: it is neither.
    """
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    return str(value).lower() == "true"


def check_as_typed(name: str, text: str, value: Any) -> None:
    """See to it that fire reads an option's text as it was typed: it takes text for Python, and what follows a # for a comment.

    Raises:
        ValueError: fire reads another text.
    """
    lost = "#" in text and "#" not in repr(value)
    if lost or isinstance(value, str) and value != text and text[:1] not in "'\"":
        raise ValueError(f"--{name}: {text!r} is read as {value!r}; of a path, write ./{text}")
