"""From what the networks found to an anomaly map, a lesion mask and scores, on the input's own grid."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.layers import MedianFilter
from monai.transforms import MapTransform

from .bundle import check_number
from .geometry import reordered, slice_numbers, to_grid
from .preprocessing import BACKGROUND

POLARITIES = ("both", "hyperintense")

LESION, NOT_ASSESSED = 1, 2
"""Labels of the mask; 0 is everything that was assessed and holds no lesion, and all that is not brain."""


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


class RestoreGridd(MapTransform):
    """Bring the results back to the grid, affine and orientation of the input file.

    Replaces ``anomaly_map`` by float32 ``(1, X, Y, Z)``, NaN in brain that was not assessed and 0 outside the brain; adds
    ``counterfactual`` where the inferer gave one, float32 ``(C, X, Y, Z)`` in the input's intensities: the input minus what
    changed, so that what did not change keeps the input's full resolution; and replaces the inferer's dictionary by the
    mask, uint8 ``(1, X, Y, Z)``: `LESION` where the map is above `threshold`, `NOT_ASSESSED` in brain that was not assessed.

    Brain that was not assessed is every voxel of the brain mask that lies in no assessed slice, or beyond the field that the
    networks see of one.

    Args:
        keys: the preprocessed image, with ``input_affine`` and ``intensity_scale`` in its meta.
        threshold: on the anomaly map, above 0 and at most 2 a channel, which no map exceeds.
        channels: of the image.
        input_key: the input volume ``(C, X, Y, Z)`` as it was loaded.
        pred_key: the inferer's dictionary.
        mask_key: the whole brain's mask ``(1, ...)`` on the input's grid, its axes in any order.

    Raises:
        ValueError: the threshold is out of its range; or, of a volume, the brain's mask lies on another grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        threshold: float,
        channels: int = 1,
        input_key: str = "input_image",
        pred_key: str = "pred",
        mask_key: str = "input_brain",
    ) -> None:
        super().__init__(keys)
        highest = 2 * channels
        check_number("threshold", threshold, sys.float_info.min, highest, f"above 0 and at most {highest}")
        self.threshold = threshold
        self.input_key = input_key
        self.pred_key = pred_key
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image, pred = d[self.keys[0]], d[self.pred_key]
        original, brain = d[self.input_key], d[self.mask_key]
        affine = torch.as_tensor(image.meta["input_affine"], dtype=torch.float64)
        whole = reordered(brain.as_tensor().cpu(), brain.affine, affine, original.shape[1:])
        if whole is None:
            raise ValueError(f"{self.mask_key} must lie on the grid of {self.input_key}, in any order of the axes.")
        assessed = torch.as_tensor(pred["assessed"]).cpu()
        scale = torch.as_tensor(image.meta["intensity_scale"]).view(-1, 1, 1, 1).cpu()
        scale = scale * torch.as_tensor(d.get("bias_field", 1.0)).cpu()
        changed = torch.zeros(0, *image.shape[1:])
        if "counterfactual" in pred:
            changed = (image.as_tensor() - torch.as_tensor(pred["counterfactual"])).cpu() * scale
        looked_at = assessed.float().expand(1, *image.shape[1:])
        parts = [looked_at, d["anomaly_map"].as_tensor().cpu(), changed]
        restored = to_grid(torch.cat(parts), image.affine, affine, original.shape[1:])
        in_assessed, a, difference = restored.split([1, 1, len(changed)])

        unseen = (whole > 0) & (in_assessed < 0.5)
        mask = (a > self.threshold).to(torch.uint8) * LESION
        mask[unseen] = NOT_ASSESSED
        a[unseen] = torch.nan

        def on_input_grid(tensor: torch.Tensor) -> MetaTensor:
            return MetaTensor(tensor, affine=affine, meta={"filename_or_obj": image.meta["filename_or_obj"]})

        d["anomaly_map"] = on_input_grid(a)
        if len(changed):
            d["counterfactual"] = on_input_grid(torch.as_tensor(original).cpu() - difference)
        d[self.pred_key] = on_input_grid(mask)
        return d
