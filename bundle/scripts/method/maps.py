"""From what the networks found in slices to an anomaly map and scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import MedianFilter

from .slices import Findings

POLARITIES = {"both": 0, "hyperintense": 1, "hypointense": -1, "ignored": 0}
"""What a lesion is beside healthy tissue, and the sign of the change that shows it; 0 is any change, or none where ignored."""


def anomaly_map(
    x: torch.Tensor,
    healthy: torch.Tensor,
    foreground: torch.Tensor,
    polarity: str | Sequence[str],
    median_size: int,
) -> torch.Tensor:
    """What changed, summed over the channels.

    "both" is the paper's map, |x - healthy|. "hyperintense" is for lesions that are brighter than all healthy tissue: the
    geometric mean of how much brighter x is than its counterpart there, and than the median of the counterpart's foreground.
    Folds and rims that came back a little shifted are left out, as they are no brighter than the rest, and lesions that were
    brought back in part are kept, as what is left of the change is raised by their brightness. "hypointense" is the same
    for what is darker. An "ignored" channel adds nothing to the map; the networks see it.

    Args:
        x: slices, ``(N, C, H, W)``.
        healthy: their counterfactuals.
        foreground: bool ``(N, 1, H, W)``.
        polarity: one of `POLARITIES`, or one a channel.
        median_size: side of a median filter over each slice, in pixels, odd; 1 is none.

    Returns:
        ``(N, 1, H, W)``, 0 or more, 0 outside the foreground.

    Raises:
        ValueError: another polarity, or not one a channel.
    """
    polarities = checked_polarity(polarity, x.shape[1])
    sign = x.new_tensor([POLARITIES[p] for p in polarities]).view(-1, 1, 1)
    inside = healthy.masked_fill(~foreground, torch.nan)
    tissue = inside.flatten(2).nanmedian(dim=2).values[..., None, None].nan_to_num()
    signed = ((sign * (x - healthy)).clamp_min(0) * (sign * (x - tissue)).clamp_min(0)).sqrt()
    change = torch.where(sign == 0, (x - healthy).abs(), signed)
    counted = x.new_tensor([p != "ignored" for p in polarities]).view(-1, 1, 1)
    a = (change * counted).sum(dim=1, keepdim=True)
    return (MedianFilter(median_size // 2, spatial_dims=2, device=a.device)(a) if median_size > 1 else a) * foreground


def checked_polarity(polarity: str | Sequence[str], channels: int | None = None) -> list[str]:
    """The polarity of each channel.

    Raises:
        ValueError: another polarity, or not one a channel.
    """
    each = [polarity] * (channels or 1) if isinstance(polarity, str) else list(polarity)
    if not each or any(p not in POLARITIES for p in each) or (channels is not None and len(each) != channels):
        raise ValueError(
            f"polarity must be {', '.join(map(repr, POLARITIES))}, or one of them a channel, got {polarity!r}."
        )
    return each


def gate(probability: torch.Tensor) -> torch.Tensor:
    """How much of a slice's map is kept: all where the classifier says diseased, ever less the surer it is of healthy.

    Args:
        probability: p(diseased), ``(N,)``.

    Returns:
        min(1, 2 p), ``(N, 1, 1, 1)``.
    """
    return (2 * probability).clamp(max=1).view(-1, 1, 1, 1)


def gated_counterfactual(x: torch.Tensor, healthy: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """The counterparts that are shown: what changed in a slice is multiplied by its `gate`, as the map is.

    Guidance carries every slice towards healthy, one that is healthy too. Where the classifier is sure that it is, there was
    nothing to heal.

    Args:
        x: slices, ``(N, C, H, W)``.
        healthy: their counterfactuals.
        probability: p(diseased), ``(N,)``.

    Returns:
        ``(N, C, H, W)``: the counterfactuals where p is 0.5 or more, the slices themselves where it is 0.
    """
    return x + gate(probability) * (healthy - x)


def combined_map(
    x: torch.Tensor, found: Findings, foreground: torch.Tensor, polarity: str | Sequence[str], median_size: int
) -> torch.Tensor:
    """The anomaly map from all that an inferer found in slices: the mean of up to three maps.

    They are that of the counterfactuals, that of the student's counterparts, and the one that the student gives. The first
    knows what would be healthy in this very slice, the others what the training slices had in common: a lesion's shape, its
    dark core, and what is bright in healthy slices too. Each slice's map is multiplied by its `gate`.

    Args:
        x: slices, ``(N, C, H, W)``.
        found: ``probability``, and at least one of ``counterfactual``, ``counterpart`` and ``student``.
        foreground: bool ``(N, 1, H, W)``.
        polarity: see `anomaly_map`.
        median_size: likewise.

    Returns:
        ``(N, 1, H, W)``, 0 or more, 0 outside the foreground.

    Raises:
        ValueError: none was found.
    """
    healed = [found[key] for key in ("counterfactual", "counterpart") if key in found]
    maps = [anomaly_map(x, healthy, foreground, polarity, median_size) for healthy in healed]
    if "student" in found:
        maps.append(found["student"])
    if not maps:
        raise ValueError(f"no counterpart and no student's map was found, but {', '.join(found)}.")
    return torch.stack(maps).mean(dim=0) * gate(found["probability"]) * foreground


def slice_score(a: torch.Tensor, foreground: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """An image-level score of how anomalous each slice is.

    The mean of the anomaly map over the foreground, times the classifier's p(diseased).

    Args:
        a: anomaly maps, ``(N, 1, H, W)``.
        foreground: bool, same shape.
        probability: p(diseased), ``(N,)``.

    Returns:
        ``(N,)``, 0 or more.
    """
    area = foreground.sum(dim=(1, 2, 3)).clamp_min(1)
    return (a * foreground).sum(dim=(1, 2, 3)) / area * probability
