"""What a viewer is shown of a result: a mask, or a heat map in nine levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# the numbers are those of the masks of the bundle, which is not yet found when this is read
# OHIF colours a segment by a sum over the letters of its name: these are bright green and nearly white
MASK_LABELS = {"lesion": 1, "not assessed": 2}
LEVELS = 9
# and these run from dark violet over blue and green to pale yellow
HEAT_MAP_LABELS = {
    f"anomaly {level} {word}": level
    for level, word in enumerate(
        ("trace", "faint", "small", "minor", "notable", "high", "extreme", "top", "full"),
        start=1,
    )
}
# and this one is slate blue
HEAT_MAP_LABELS["not assessed: no result"] = LEVELS + 1
LEVELS_BELOW_THRESHOLD = 3


def lesion_mask(result: Mapping[str, Any], threshold: float) -> torch.Tensor:
    """1 where the bundle marks a lesion, 2 where nothing was assessed, 0 elsewhere: uint8 ``(X, Y, Z)``."""
    return result["pred"][0].to(torch.uint8)


def heat_map(result: Mapping[str, Any], threshold: float) -> torch.Tensor:
    """The anomaly map in nine levels: uint8 ``(X, Y, Z)``, 0 is below the first, 10 was not assessed.

    Three levels make one threshold, the one that was chosen on validation, whatever the request's: two studies compare.

    Args:
        result: what the bundle gave.
        threshold: the bundle's default. Level n begins at n / 3 of it, so the third begins where the mask does.
    """
    from scripts.images.restoring import NOT_ASSESSED

    a = result["anomaly_map"][0].nan_to_num(nan=0.0)
    # level n holds what is above its edge, as the mask does
    levels = (torch.ceil(a / (threshold / LEVELS_BELOW_THRESHOLD)) - 1).clamp(0, LEVELS)
    return torch.where(result["pred"][0] == NOT_ASSESSED, LEVELS + 1, levels).to(torch.uint8)
