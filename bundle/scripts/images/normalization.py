"""To the networks' intensity scale."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..errors import InvalidImageError

BACKGROUND = -1.0
"""What the networks see outside the foreground, on their intensity scale [-1, 1]. It says nothing of what is inside."""


class NormalizeByMediand(MapTransform):
    """Map a channel's foreground median to 0, no signal to -1 and twice the median to 1; clip; set the outside to -1.

    MR intensities have no unit. One factor a volume and channel, robust to a lesion that takes less than half of the
    foreground, leaves the contrast between tissues as the scanner made it. The factor of each channel is kept in the image's
    meta as ``intensity_scale``, so that ``(x + 1) * scale`` is back in the input's units.

    Args:
        keys: images.
        mask_key: the foreground's coverage in [0, 1]; half and more is inside.

    Raises:
        InvalidImageError: the foreground is empty, or the median of a channel within it is not positive.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "foreground") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        inside = d[self.mask_key].as_tensor()[0] >= 0.5
        for key in self.key_iterator(d):
            image = d[key]
            if not bool(inside.any()):
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: no foreground is left at the networks' pixel size."
                )
            scale = torch.stack([channel[inside].median() for channel in image.as_tensor()])
            if bool((scale <= 0).any()):
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: the median intensity within the foreground is {scale.min():g}; it must "
                    "be positive (MR magnitude images, not difference or phase images)."
                )
            image = (image / scale[:, None, None, None] - 1).clamp(-1, 1)
            image[:, ~inside] = BACKGROUND
            image.meta["intensity_scale"] = scale
            d[key] = image
        return d
