"""What a perfect network would give for the heads of `synthetic`."""

from __future__ import annotations

from typing import Any

import torch

from scripts.bundle import declared
from scripts.images.mapping import AnomalyMapd
from scripts.images.restoring import RestoreGridd
from scripts.method.slices import assessed_slices


def perfect_result(item: dict[str, Any], threshold: float = 0.3, min_area: int = 87) -> dict[Any, Any]:
    """What a perfect network would give: everything brighter than the median of the brain is brought back to it."""
    d = declared("preprocessing")(item)
    x = d["image"].as_tensor()
    assessed = assessed_slices(d["foreground"], min_area)
    d["pred"] = {
        "counterfactual": torch.where(d["foreground"] >= 0.5, x.clamp_max(0), x),
        "assessed": assessed,
        "probability": torch.where(assessed, 0.75, torch.nan),
    }
    d = AnomalyMapd("image", "both", 3)(d)
    return RestoreGridd("image", threshold=threshold)(d)
