"""To the networks' field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms.utils import generate_spatial_bounding_box

from ..errors import InvalidImageError
from .geometry import on_grid
from .padding import checked_size, padded


class CropAroundForegroundd(MapTransform):
    """Crop or pad the first two axes to ``size`` pixels around the foreground's centre, the third to slices with foreground.

    Args:
        keys: images and masks.
        size: the networks' input size in pixels, two whole numbers.
        mask_key: the foreground's coverage in [0, 1].

    Raises:
        ValueError: another size.
        InvalidImageError: the foreground covers under a quarter of the network's input in each direction.
    """

    def __init__(self, keys: KeysCollection, size: Sequence[int], mask_key: str = "foreground") -> None:
        super().__init__(keys)
        self.size = checked_size(size)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        lower, upper = generate_spatial_bounding_box(d[self.mask_key].as_tensor(), lambda m: m >= 0.5)
        extent = [b - a for a, b in zip(lower, upper, strict=True)]
        if extent[0] < self.size[0] // 4 and extent[1] < self.size[1] // 4:
            raise InvalidImageError(
                f"{d[self.mask_key].meta['filename_or_obj']}: the foreground covers only {extent[0]} x {extent[1]} pixels of "
                f"the network's {self.size[0]} x {self.size[1]}; are the voxel sizes in the header right?"
            )
        box = (slice(None), *(slice(a, b) for a, b in zip(lower, upper, strict=True)))
        for key in self.key_iterator(d):
            d[key] = padded(_cropped(d[key], box, lower), self.size, key == self.mask_key)
        return d


def _cropped(image: MetaTensor, box: tuple[slice, ...], lower: Sequence[int]) -> MetaTensor:
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.as_tensor(lower, dtype=torch.float64)
    return on_grid(image.as_tensor()[box], torch.as_tensor(image.affine, dtype=torch.float64) @ shift, image)
