"""What a request switches on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

FLAGS = ("allow_any_image", "save_label", "overwrite")


def flag(request: Mapping[str, Any], name: str) -> bool:
    """Whether a request has one of `FLAGS`; without it, it hasn't.

    Raises:
        MONAILabelException: INVALID_INPUT, the field is neither true nor false: "false" would count as true.
    """
    value = request.get(name, False)
    if not isinstance(value, bool):
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"{name} must be true or false, got {value!r:.60}.")
    return value
