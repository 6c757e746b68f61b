"""To the networks' intensity scale."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from .loading import InvalidImageError

BACKGROUND = -1.0
"""The value of everything outside the brain on the networks' intensity scale [-1, 1]."""


class NormalizeBraind(MapTransform):
    """Map a channel's brain median to 0, no signal to -1 and twice the median to 1; clip; set the outside to -1.

    MR intensities have no unit. One factor a volume and channel, robust to a lesion that takes less than half of the
    brain, leaves the contrast between tissues as the scanner made it. The factor of each channel is kept in the image's
    meta as ``intensity_scale``, so that ``(x + 1) * scale`` is back in the input's units.

    Args:
        keys: images.
        mask_key: the brain's coverage in [0, 1]; half and more counts as brain.

    Raises:
        InvalidImageError: the median of a channel within the brain is not positive.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        brain = d[self.mask_key].as_tensor()[0] >= 0.5
        for key in self.key_iterator(d):
            image = d[key]
            if not bool(brain.any()):
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: no brain is left at the networks' pixel size."
                )
            scale = torch.stack([channel[brain].median() for channel in image.as_tensor()])
            if bool((scale <= 0).any()):
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: the median intensity within the brain is {scale.min():g}; it must be "
                    "positive (MR magnitude images, not difference or phase images)."
                )
            # just above the outside's value, so that a brain pixel without signal is still brain
            image = (image / scale[:, None, None, None] - 1).clamp(BACKGROUND + 1e-3, 1)
            image[:, ~brain] = BACKGROUND
            image.meta["intensity_scale"] = scale
            d[key] = image
        return d
