"""From what the networks found to an anomaly map, a lesion mask and scores, on the input's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.layers import MedianFilter
from monai.transforms import MapTransform

from ..checks import check_number
from ..images.geometry import slice_numbers
from ..images.normalization import BACKGROUND

POLARITIES = ("both", "hyperintense")


def anomaly_map(x: torch.Tensor, healthy: torch.Tensor, polarity: str, median_size: int) -> torch.Tensor:
    """What changed, summed over the channels.

    "both" is the paper's map, |x - healthy|. "hyperintense" is for lesions that are brighter than all healthy tissue: the
    geometric mean of how much brighter x is than its counterpart there, and than the median of the counterpart's brain. Folds
    and rims that came back a little shifted are left out, as they are no brighter than the brain, and lesions that were
    brought back in part are kept, as what is left of the change is raised by their brightness.

    Args:
        x: slices, ``(N, C, H, W)``, -1 outside the brain.
        healthy: their counterfactuals.
        polarity: "both" or "hyperintense".
        median_size: side of a median filter over each slice, in pixels, odd; 1 is none.

    Returns:
        ``(N, 1, H, W)``, 0 or more.

    Raises:
        ValueError: another polarity.
    """
    if polarity not in POLARITIES:
        raise ValueError(f"polarity must be 'both' or 'hyperintense', got {polarity!r}.")
    if polarity == "both":
        change = (x - healthy).abs()
    else:
        in_brain = healthy.masked_fill(x[:, :1] <= BACKGROUND, torch.nan)
        tissue = in_brain.flatten(2).nanmedian(dim=2).values[..., None, None].nan_to_num(BACKGROUND)
        change = ((x - healthy).clamp_min(0) * (x - tissue).clamp_min(0)).sqrt()
    a = change.sum(dim=1, keepdim=True)
    return MedianFilter(median_size // 2, spatial_dims=2, device=a.device)(a) if median_size > 1 else a


def gate(probability: torch.Tensor) -> torch.Tensor:
    """How much of a slice's map is kept: all where the classifier says diseased, ever less the surer it is of healthy.

    Args:
        probability: p(diseased), ``(N,)``.

    Returns:
        min(1, 2 p), ``(N, 1, 1, 1)``.
    """
    return (2 * probability).clamp(max=1).view(-1, 1, 1, 1)


def combined_map(x: torch.Tensor, found: Mapping[str, torch.Tensor], polarity: str, median_size: int) -> torch.Tensor:
    """The anomaly map from all that an inferer found in slices: the mean of its counterfactuals' map and the student's.

    The one knows what would be healthy in this very slice, the other what the maps of all training slices had in common: a
    lesion's shape, its dark core, and what is bright in healthy slices too. Each slice's map is multiplied by its `gate`.

    Args:
        x: slices, ``(N, C, H, W)``, -1 outside the brain.
        found: ``probability`` ``(N,)``, and ``counterfactual`` ``(N, C, H, W)``, ``student`` ``(N, 1, H, W)`` or both.
        polarity: see `anomaly_map`.
        median_size: likewise.

    Returns:
        ``(N, 1, H, W)``, 0 or more, 0 outside the brain.

    Raises:
        ValueError: neither was found.
    """
    maps = []
    if "counterfactual" in found:
        maps.append(anomaly_map(x, found["counterfactual"], polarity, median_size))
    if "student" in found:
        maps.append(found["student"])
    if not maps:
        raise ValueError(f"neither a counterfactual nor a student's map was found, but {', '.join(found)}.")
    return torch.stack(maps).mean(dim=0) * gate(found["probability"]) * (x[:, :1] > BACKGROUND)


def slice_score(a: torch.Tensor, brain: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """An image-level score of how anomalous each slice is.

    The mean of the anomaly map over the brain, times the classifier's p(diseased).

    Args:
        a: anomaly maps, ``(N, 1, H, W)``.
        brain: bool, same shape.
        probability: p(diseased), ``(N,)``.

    Returns:
        ``(N,)``, 0 or more.
    """
    return (a * brain).sum(dim=(1, 2, 3)) / brain.sum(dim=(1, 2, 3)).clamp_min(1) * probability


class AnomalyMapd(MapTransform):
    """Add ``anomaly_map`` ``(1, H, W, D)`` and ``slices``, the scores a slice, to what the inferer gave for a volume.

    Args:
        keys: the preprocessed image ``(C, H, W, D)``.
        pred_key: the inferer's dictionary, see `combined_map`.
        polarity, median_size: see `anomaly_map`.

    ``slices`` is a list with, for each slice of the preprocessed volume, ``slice`` (its number in the input file),
    ``assessed``, ``score`` and ``p_diseased`` (both None where not assessed).

    Raises:
        ValueError: another polarity, a median size that is not odd or above 99; or, of a volume, the map or p(diseased) of
            an assessed slice is NaN or infinite.
    """

    def __init__(
        self, keys: KeysCollection, pred_key: str = "pred", polarity: str = "hyperintense", median_size: int = 3
    ) -> None:
        super().__init__(keys)
        if polarity not in POLARITIES:
            raise ValueError(f"polarity must be 'both' or 'hyperintense', got {polarity!r}.")
        check_number("median_size", median_size, 1, 99, whole=True)
        if median_size % 2 == 0:
            raise ValueError(f"median_size must be odd, from 1 to 99, got {median_size}.")
        self.pred_key = pred_key
        self.polarity = polarity
        self.median_size = median_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image, pred = d[self.keys[0]], d[self.pred_key]
        x = image.as_tensor().movedim(-1, 0)
        found = {name: torch.as_tensor(values).movedim(-1, 0) for name, values in pred.items()}
        probability, assessed = found["probability"], found["assessed"]
        a = combined_map(x, found, self.polarity, self.median_size)
        a = torch.where(assessed.view(-1, 1, 1, 1), a, 0)
        score = slice_score(a, x[:, :1] > BACKGROUND, probability)
        broken = assessed & ~(a.isfinite().all(dim=(1, 2, 3)) & score.isfinite())
        if bool(broken.any()):
            name = image.meta.get("filename_or_obj", "the image")
            raise ValueError(
                f"{name}: the networks gave NaN or infinity in {int(broken.sum())} of {int(assessed.sum())} assessed slices; "
                "try a smaller guidance_scale or noise_level, or precision float32."
            )
        d["anomaly_map"] = MetaTensor(a.movedim(0, -1), affine=image.affine)
        d["slices"] = [
            {
                "slice": number,
                "assessed": bool(assessed[z]),
                "score": float(score[z]) if assessed[z] else None,
                "p_diseased": float(probability[z]) if assessed[z] else None,
            }
            for z, number in enumerate(slice_numbers(image))
        ]
        return d
