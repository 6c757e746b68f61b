"""To the networks' pixel size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms.utils import scale_affine

from ..checks import check_number
from .geometry import on_grid


class ResampleInPlaned(MapTransform):
    """Resample the first two axes to ``pixel_size`` mm and keep the slices, anti-aliased.

    Making an image smaller takes the mean over the area of each new pixel, of values interpolated at least as densely as the
    old pixels lie; making it larger is bilinear. The new pixel size is the nearest that divides the field of view evenly.

    Args:
        keys: images and masks; masks come out as coverage in [0, 1].
        pixel_size: in mm, from 0.1 to 100.

    Raises:
        ValueError: another pixel size.
    """

    def __init__(self, keys: KeysCollection, pixel_size: float) -> None:
        super().__init__(keys)
        check_number("pixel_size", pixel_size, 0.1, 100)
        self.pixel_size = pixel_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key].float()
            spacing = image.pixdim.tolist()
            size = [max(1, round(n * s / self.pixel_size)) for n, s in zip(image.shape[1:3], spacing[:2], strict=True)]
            d[key] = resized_in_plane(image, size)
        return d


def resized_in_plane(image: MetaTensor, size: Sequence[int]) -> MetaTensor:
    """``(C, X, Y, Z)`` with its first two axes resampled to `size` pixels over the same field of view, anti-aliased."""
    # PyTorch's "area" averages whole pixels, whose middle lies up to a fourth of a new pixel beside the new pixel's
    samples = [ceil(n / new) for n, new in zip(image.shape[1:3], size, strict=True)]
    finer = [new * k for new, k in zip(size, samples, strict=True)]
    slices = F.avg_pool2d(F.interpolate(image.as_tensor().float().movedim(-1, 0), finer, mode="bilinear"), samples)
    to_old = torch.from_numpy(scale_affine(image.shape[1:], (*size, image.shape[3])))
    affine = torch.as_tensor(image.affine, dtype=torch.float64) @ to_old
    return on_grid(slices.movedim(0, -1).contiguous(), affine, image)
