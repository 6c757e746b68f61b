"""The networks' input size, and images brought to it."""

from __future__ import annotations

from collections.abc import Sequence

from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCrop

from ..checks import check_number
from .normalization import BACKGROUND


def checked_size(size: Sequence[int]) -> tuple[int, ...]:
    """The option ``spatial_size``.

    Raises:
        ValueError: it isn't two whole numbers from 1 to 4096.
    """
    for n in size:
        check_number("spatial_size", n, 1, 4096, "two whole numbers from 1 to 4096", whole=True)
    if len(size) != 2:
        raise ValueError(f"spatial_size must be two whole numbers from 1 to 4096, got {list(size)}.")
    return tuple(size)


def padded(image: MetaTensor, size: Sequence[int], is_mask: bool) -> MetaTensor:
    """An image ``(C, X, Y, Z)`` with its first two axes cropped or padded to a size around the middle.

    What is added is 0 in a mask, and elsewhere what the networks see outside the foreground.
    """
    value = 0.0 if is_mask else BACKGROUND
    return ResizeWithPadOrCrop((*size, -1), mode="constant", value=value)(image)
