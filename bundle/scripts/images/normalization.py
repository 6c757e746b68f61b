"""To the networks' intensity scale."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..checks import check_number
from ..errors import InvalidImageError

BACKGROUND = -1.0
"""What the networks see outside the foreground, on their intensity scale [-1, 1]. It says nothing of what is inside."""


class NormalizeByMediand(MapTransform):
    """Map no signal to -1 and a multiple of a channel's foreground median to 1; clip; set the outside to -1.

    MR intensities have no unit. One factor a volume and channel, robust to a lesion that takes less than half of the
    foreground, leaves the contrast between tissues as the scanner made it. The factor of each channel is kept in the image's
    meta as ``intensity_scale``, so that ``(x + 1) * scale`` is back in the input's units.

    Args:
        keys: images.
        mask_key: the foreground's coverage in [0, 1]; half and more is inside.
        highest: the multiple of the median that becomes 1, above 1, or one a channel; 2 makes the median 0.

    Raises:
        ValueError: another multiple.
        InvalidImageError: the foreground is empty, or the median of a channel within it is not positive.
    """

    def __init__(
        self, keys: KeysCollection, mask_key: str = "foreground", highest: float | Sequence[float] = 2.0
    ) -> None:
        super().__init__(keys)
        self.mask_key = mask_key
        self.highest = [highest] if isinstance(highest, (int, float)) else list(highest)
        for multiple in self.highest:
            check_number("highest", multiple, 1, 100)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        inside = d[self.mask_key].as_tensor()[0] >= 0.5
        for key in self.key_iterator(d):
            image = d[key]
            if not bool(inside.any()):
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: no foreground is left at the networks' pixel size."
                )
            if len(self.highest) not in (1, len(image)):
                raise ValueError(
                    f"highest must be one number, or one for each of {len(image)} channels, got {self.highest}."
                )
            scale = torch.stack([channel[inside].median() for channel in image.as_tensor()])
            scale = scale * scale.new_tensor(self.highest) / 2
            if bool((scale <= 0).any()):
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: the median intensity within the foreground is not positive; it must "
                    "be positive (MR magnitude images, not difference or phase images)."
                )
            image = (image / scale[:, None, None, None] - 1).clamp(-1, 1)
            image[:, ~inside] = BACKGROUND
            image.meta["intensity_scale"] = scale
            d[key] = image
        return d
