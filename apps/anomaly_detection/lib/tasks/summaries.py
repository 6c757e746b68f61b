"""What is said of a volume beside its mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lib.tasks.views import LESION

SHORT_OPTIONS = {"noise_level": "L", "guidance_scale": "g", "num_inference_steps": "s", "threshold": "t"}


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a volume: its highest slice's, the volume of what is marked, and the warnings."""
    assessed = [s for s in result["slices"] if s["assessed"]]
    voxel_ml = float(abs(torch.linalg.det(result["pred"].affine[:3, :3]))) / 1000
    return {
        "score": max((s["score"] for s in assessed), default=None),
        "p_diseased": max((s["p_diseased"] for s in assessed), default=None),
        "lesion_ml": float((result["pred"] == LESION).sum()) * voxel_ml,
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
