"""What a training depends on, as its checkpoint keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..digests import json_digest
from ..fingerprints import settings_of


def shortened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting as JSON, see `fingerprints.settings_of`; or its hash where it is too long to be read."""
    described = {name: settings_of(value) for name, value in settings.items()}
    return {n: value if len(json.dumps(value)) < 300 else json_digest(value)[:16] for n, value in described.items()}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, which settings are not what they were; of the initial weights another place asks."""
    names = sorted((before.keys() | now.keys()) - {"initial_weights"})
    values = [(n, before.get(n), now.get(n)) for n in names]
    return [f"{n} was {old}, now {new}" for n, old, new in values if old != new]
