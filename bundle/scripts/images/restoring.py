"""Results on the input's own grid."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..checks import check_number
from ..method.maps import gated_counterfactual
from .geometry import to_grid
from .masks import reordered

LESION, NOT_ASSESSED = 1, 2
"""Labels of the mask; 0 is everything that was assessed and holds no lesion, and all that is not foreground."""
COLOURS = {LESION: (255, 64, 64), NOT_ASSESSED: (91, 155, 255)}
"""Of the labels in a picture; what is not marked is transparent."""


def looked_at(image: MetaTensor, assessed: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Which voxels of the input the networks saw in an assessed slice.

    A voxel was seen if the network's pixel that its middle lies in was, up to the edges of the outermost.

    Args:
        image: the preprocessed image, with ``input_affine`` in its meta.
        assessed: bool ``(D,)``, of its slices.
        size: of the input, ``(X, Y, Z)``.

    Returns:
        bool ``(1, X, Y, Z)``.
    """
    affine = torch.as_tensor(image.meta["input_affine"], dtype=torch.float64)
    return to_grid(assessed.expand(1, *image.shape[1:]), image.affine, affine, size, mode="nearest") > 0


class RestoreGridd(MapTransform):
    """Bring the results back to the grid, affine and orientation of the input file.

    - ``anomaly_map`` becomes float32 ``(1, X, Y, Z)``: NaN in foreground that was not assessed; outside of the foreground it
      fades to 0 within a pixel of the networks.
    - ``counterfactual`` is added where the inferer gave one, or a student its counterpart: float32 ``(C, X, Y, Z)`` in the
      input's intensities. It is the input minus what changed by `method.maps.gated_counterfactual`, so that what did not
      change keeps the input's full resolution.
    - ``pred``, the inferer's dictionary, becomes the mask, uint8 ``(1, X, Y, Z)``: `LESION` where the map is above
      `threshold`, `NOT_ASSESSED` in foreground that was not assessed.

    Beside them it reads ``input_image``, the input volume ``(C, X, Y, Z)`` as it was loaded, and ``input_foreground``, the
    whole foreground ``(1, ...)`` on that grid, its axes in any order.

    Foreground that was not assessed is every voxel of it that lies in no assessed slice, or beyond the field that the
    networks see of one.

    Args:
        keys: the preprocessed image, with ``input_affine`` and ``intensity_scale`` in its meta.
        threshold: on the anomaly map, above 0 and at most 2 a channel, which no map exceeds.
        channels: of the image.

    Raises:
        ValueError: the threshold is out of its range; or, of a volume, the foreground lies on another grid.
    """

    def __init__(self, keys: KeysCollection, threshold: float, channels: int = 1) -> None:
        super().__init__(keys)
        highest = 2 * channels
        check_number("threshold", threshold, sys.float_info.min, highest, f"above 0 and at most {highest}")
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image, pred = d[self.keys[0]], d["pred"]
        original, foreground = d["input_image"], d["input_foreground"]
        affine = torch.as_tensor(image.meta["input_affine"], dtype=torch.float64)
        whole = reordered(foreground.as_tensor().cpu(), foreground.affine, affine, original.shape[1:])
        if whole is None:
            raise ValueError("input_foreground must lie on the grid of input_image, in any order of the axes.")
        assessed = torch.as_tensor(pred["assessed"]).cpu()
        scale = torch.as_tensor(image.meta["intensity_scale"]).view(-1, 1, 1, 1).cpu()
        scale = scale * torch.as_tensor(d.get("bias_field", 1.0)).cpu()
        changed = torch.zeros(0, *image.shape[1:])
        healed = pred.get("counterfactual", pred.get("counterpart"))
        if healed is not None:
            x, healthy = (torch.as_tensor(v).cpu().movedim(-1, 0) for v in (image, healed))
            p = torch.as_tensor(pred["probability"]).cpu().nan_to_num()
            changed = (x - gated_counterfactual(x, healthy, p)).movedim(0, -1) * scale
        size = original.shape[1:]
        restored = to_grid(torch.cat([d["anomaly_map"].as_tensor().cpu(), changed]), image.affine, affine, size)
        a, difference = restored.split([1, len(changed)])

        unseen = (whole > 0) & ~looked_at(image, assessed, size)
        mask = (a > self.threshold).to(torch.uint8) * LESION
        mask[unseen] = NOT_ASSESSED
        a[unseen] = torch.nan

        def on_input_grid(tensor: torch.Tensor) -> MetaTensor:
            return MetaTensor(tensor, affine=affine, meta={"filename_or_obj": image.meta["filename_or_obj"]})

        d["anomaly_map"] = on_input_grid(a)
        if len(changed):
            d["counterfactual"] = on_input_grid(torch.as_tensor(original).cpu() - difference)
        d["pred"] = on_input_grid(mask)
        return d
