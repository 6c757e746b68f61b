"""The label of each slice of an image, from a mask in the bundle's own values."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.data import MetaTensor

from .. import DISEASED, HEALTHY
from .geometry import axial, slice_numbers
from .masks import load_values
from .restoring import LESION, NOT_ASSESSED


def mask_labels(path: str | Path, image: MetaTensor) -> list[int]:
    """Diseased (1) where a slice has a voxel of lesion; else -1 (leave out) where it has one not assessed; else healthy (0).

    Args:
        path: of the mask; its file may hold the image's voxels in another order.
        image: ``(C, X, Y, Z)``, not resampled, with ``input_affine`` in its meta.

    Returns:
        One a slice, counted from 0 along the image file's axis nearest to superior-inferior.

    Raises:
        ValueError: see `load_values`; or the mask holds other values than 0, 1 and 2.
    """
    marks = axial(load_values(path, image))
    values = marks.as_tensor()
    others = sorted(set(values.unique().tolist()) - {0, LESION, NOT_ASSESSED})
    if others:
        raise ValueError(
            f"{path}: holds the value {others[0]:g}; allowed are 0, {LESION} (anomaly) and {NOT_ASSESSED} (not assessed)."
        )
    labels = torch.full(values.shape[-1:], HEALTHY)
    labels[(values == NOT_ASSESSED).any(dim=(0, 1, 2))] = -1
    labels[(values == LESION).any(dim=(0, 1, 2))] = DISEASED
    return [label for _, label in sorted(zip(slice_numbers(marks), labels.tolist(), strict=True))]
