"""The options of a request, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from monailabel.utils.others.generic import device_list, name_to_device

OPTIONS: dict[str, tuple[type[int] | type[float], float]] = {
    "max_images": (int, 10**12),
    "max_minutes": (float, math.inf),
    "val_split": (float, 1.0),
    "learning_rate": (float, math.inf),
    "batch_size": (int, math.inf),
}
"""The numbers a request may set, and below what; all are above 0."""


def checked_options(request: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a request and its device; those it lacks have their defaults.

    Raises:
        ValueError: one is out of range, or there is no such device.
    """
    # every value becomes a number or a device: as a string the config would run it where it starts with "$"
    options: dict[str, Any] = {}
    for name, (kind, limit) in OPTIONS.items():
        given = request.get(name)
        try:
            options[name] = kind(defaults[name] if given in (None, "") else given)
        except (TypeError, ValueError, OverflowError):
            options[name] = math.nan
        if not 0 < options[name] < limit:
            upper = f" and below {limit:g}" if math.isfinite(limit) else ""
            raise ValueError(f"{name} must be a number above 0{upper}, got {given!r}.")
    given = request.get("device")
    try:
        options["device"] = torch.device(name_to_device(given))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one of {device_list()}, got {given!r}.") from error
    return options
