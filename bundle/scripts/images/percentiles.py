"""To the networks' intensity scale, where intensities have no unit and no zero."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..checks import check_number
from ..errors import InvalidImageError


class NormalizePercentilesd(MapTransform):
    """Map two percentiles of each channel within the foreground to `darkest` and 1, and clip all of the image to that range.

    The image's meta gets ``intensity_offset`` and ``intensity_scale``, float32 ``(C,)``, so that ``x * scale + offset`` is back
    in the input's units, but for what was clipped.

    Args:
        keys: images ``(C, X, Y, Z)``.
        lower, upper: the percentiles, from 0 to 100.
        darkest: where the lower percentile comes to, from -1 to 0. The paper's networks see images from 0 to 1.
        mask_key: the foreground on the same grid; half and more counts.

    Raises:
        ValueError: other percentiles, or another end of the scale.
        InvalidImageError: nothing is foreground, or within it a channel is not finite, or has no two values to tell apart.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 1.0,
        upper: float = 99.0,
        darkest: float = -1.0,
        mask_key: str = "foreground",
    ) -> None:
        super().__init__(keys)
        check_number("lower", lower, 0, 100)
        check_number("upper", upper, lower, 100)
        check_number("darkest", darkest, -1, 0)
        self.lower, self.upper, self.darkest = lower, upper, darkest
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        inside = d[self.mask_key].as_tensor()[0] >= 0.5
        for key in self.key_iterator(d):
            image = d[key]
            name = image.meta["filename_or_obj"]
            if not bool(inside.any()):
                raise InvalidImageError(f"{name}: no foreground is left.")
            offsets, scales = [], []
            for channel in image.as_tensor().float():
                values = channel[inside]
                if not bool(torch.isfinite(values).all()):
                    raise InvalidImageError(
                        f"{name}: within the foreground pixels are NaN or infinite; all need a value."
                    )
                # torch.quantile takes at most 16 million values
                count = len(values) - 1
                low, high = (
                    float(values.kthvalue(1 + round(count * percent / 100)).values)
                    for percent in (self.lower, self.upper)
                )
                if low >= high:
                    raise InvalidImageError(
                        f"{name}: from percentile {self.lower:g} to {self.upper:g} the foreground has the one value {low:g}."
                    )
                scales.append((high - low) / (1 - self.darkest))
                offsets.append(high - scales[-1])
            offset, scale = torch.tensor(offsets), torch.tensor(scales)
            scaled = (image - offset.view(-1, 1, 1, 1)) / scale.view(-1, 1, 1, 1)
            d[key] = scaled.nan_to_num(nan=self.darkest).clamp(self.darkest, 1)
            d[key].meta |= {"intensity_offset": offset, "intensity_scale": scale}
        return d
