"""What is said of a volume beside its mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT_OPTIONS = {"noise_level": "L", "guidance_scale": "g", "num_inference_steps": "s", "threshold": "t"}


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a volume (its highest slice's), how much is marked and was not assessed, and the warnings."""
    from scripts.running.records import measured

    return {
        **measured(result),
        "not_assessed_slices": [s["slice"] for s in result["slices"] if not s["assessed"]],
        "warnings": list(result.get("warnings", [])),
        "slices": result["slices"],
    }


def changed_options(options: Mapping[str, float], defaults: Mapping[str, float]) -> str:
    """Those that are not the default, short as in "L500 s20": noise (L)evel, (g)uidance, (s)teps, (t)hreshold."""
    return " ".join(f"{SHORT_OPTIONS.get(k, k)}{v:.4g}" for k, v in options.items() if v != defaults[k])


def warn(params: dict[str, Any], warnings: list[str]) -> None:
    """Put sentences that say why a result may be wrong before those that `AnomalyInferTask` gave."""
    for place in (params, params["result"]):
        place["warnings"] = [*warnings, *place.get("warnings", [])]
