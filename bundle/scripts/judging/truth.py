"""What is known of a labelled volume: its lesions by a mask or boxes, and the labels of its slices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from .. import DISEASED, HEALTHY
from ..images.geometry import axial, axial_index
from ..images.masks import load_values
from .cases import Array
from .parts import parts_of


class Truth(NamedTuple):
    """On the input's grid in the order left, posterior, superior, ``(H, W, D)``."""

    lesion: Array | None
    """Bool ``(H, W, D)``; None without a mask."""
    boxes: Array | None
    """See `SliceCase`; None without any."""
    parts: Array | None = None
    """Uint8 ``(H, W, D)``, see `parts.parts_of`."""


def truth_of(item: Mapping[str, Any], original: MetaTensor) -> Truth:
    """The lesions of an item.

    Args:
        item: of a datalist; its ``boxes`` are ``[x0, y0, x1, y1]`` in pixels of an image of one slice; of a picture that its
            EXIF data turns, as it is shown.
        original: the image ``(C, X, Y, Z)`` in the order of its file.

    Raises:
        ValueError: see `load_mask`; or boxes of another form, outside of the image, or of several slices.
    """
    lesion, parts = None, None
    if item.get("mask") is not None:
        values = axial(load_values(item["mask"], original)).as_tensor().numpy()[0]
        lesion, parts = values > 0, parts_of(values)
    if item.get("boxes") is None:
        return Truth(lesion, None, parts)
    size = original.shape[1:]
    if size[2] != 1:
        raise ValueError(f"{item['image']}: boxes are for images of one slice, it has {size[2]}.")
    marked = torch.zeros(max(len(item["boxes"]), 1), *size, dtype=torch.bool)
    for n, box in enumerate(item["boxes"]):
        x0, y0, x1, y1 = _checked(box, size, item["image"])
        marked[n, int(x0) : int(np.ceil(x1)), int(y0) : int(np.ceil(y1))] = True
    placed = axial(MetaTensor(marked, affine=original.affine)).as_tensor().numpy()[..., 0]
    places = [np.argwhere(box) for box in placed[: len(item["boxes"])]]
    corners = [[*place.min(axis=0), *(place.max(axis=0) + 1)] for place in places]
    return Truth(lesion, np.array(corners, int).reshape(-1, 4), parts)


def _checked(box: Any, size: Sequence[int], image: Any) -> Sequence[float]:
    numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
    if not numbers or not (0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]):
        raise ValueError(
            f"{image}: a box must be [x0, y0, x1, y1] in pixels, x0 < x1 up to {size[0]}, y0 < y1 up to {size[1]}, got {box!r}."
        )
    return list(box)


def slice_labels(item: Mapping[str, Any], original: MetaTensor, truth: Truth, assessed: Collection[int]) -> list[int]:
    """The label of each slice of the file: 0, 1, or -1 for those that are left out.

    A label a slice is taken as it is. One label of a whole volume is that of all its slices that are assessed; but where there
    is a mask, those of them that it marks nothing in are healthy. Without a label, the mask alone says it.

    Args:
        item: of a datalist.
        original: the image ``(C, X, Y, Z)`` in the order of its file.
        truth: see `truth_of`.
        assessed: the numbers of the slices that the inferer would look at.

    Raises:
        ValueError: another number of labels than slices, neither label nor mask, or diseased with a mask that is empty.
    """
    label = item.get("label")
    if (
        DISEASED in (label if isinstance(label, (list, tuple)) else [label])
        and truth.lesion is not None
        and not truth.lesion.any()
    ):
        raise ValueError(f"{item['image']}: is labelled diseased, but its mask {item.get('mask')} marks nothing.")
    affine = torch.as_tensor(original.affine)
    depth = axial(original).shape[3]
    if label is None and truth.lesion is None:
        raise ValueError(f"{item['image']}: has neither label nor mask.")
    if isinstance(label, (list, tuple)):
        if len(label) != depth:
            raise ValueError(f"{item['image']}: has {depth} slices, but {len(label)} labels.")
        return list(label)
    labels = [-1] * depth
    for n in assessed:
        labels[n] = DISEASED if label is None else label
    if label in (DISEASED, None) and truth.lesion is not None:
        for n in assessed:
            labels[n] = DISEASED if truth.lesion[..., axial_index(n, affine, depth)].any() else HEALTHY
    return labels
