"""The anomaly map of a volume, and the scores of its slices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from ..checks import check_number
from ..method.maps import checked_polarity, combined_map, slice_score
from ..method.slices import Findings, each
from .geometry import slice_numbers


class AnomalyMapd(MapTransform):
    """Add ``anomaly_map`` ``(1, H, W, D)`` and ``slices``, the scores a slice, to what the inferer gave for a volume.

    That is ``pred``, see `method.slices.Findings`.

    Args:
        keys: the preprocessed image ``(C, H, W, D)``.
        polarity, median_size: see `method.maps.anomaly_map`.
        mask_key: where map and score are read: the foreground or the roi ``(1, H, W, D)``, inside from 0.5 on.

    ``slices`` is a list with, for each slice of the preprocessed volume, ``slice`` (its number in the input file),
    ``assessed``, ``score`` and ``p_diseased`` (both None where not assessed).

    Raises:
        ValueError: another polarity, a median size that is not odd or above 99; or, of a volume, see `check_finite`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        polarity: str | Sequence[str],
        median_size: int,
        mask_key: str = "foreground",
    ) -> None:
        super().__init__(keys)
        checked_polarity(polarity)
        check_number("median_size", median_size, 1, 99, whole=True)
        if median_size % 2 == 0:
            raise ValueError(f"median_size must be odd, from 1 to 99, got {median_size}.")
        self.mask_key = mask_key
        self.polarity = polarity
        self.median_size = median_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image, pred = d[self.keys[0]], d["pred"]
        x = image.as_tensor().movedim(-1, 0)
        inside = convert_to_tensor(d[self.mask_key], track_meta=False).movedim(-1, 0).to(x.device) >= 0.5
        found = each(pred, lambda values: convert_to_tensor(values, track_meta=False).movedim(-1, 0))
        check_finite(found, image)
        probability, assessed = found["probability"], found["assessed"]
        a = combined_map(x, found, inside, self.polarity, self.median_size)
        a = torch.where(assessed.view(-1, 1, 1, 1), a, 0)
        score = slice_score(a, inside, probability)
        d["anomaly_map"] = MetaTensor(a.movedim(0, -1), affine=image.affine)
        d["slices"] = [
            {
                "slice": number,
                "assessed": bool(assessed[z]),
                "score": float(score[z]) if assessed[z] else None,
                "p_diseased": float(probability[z]) if assessed[z] else None,
            }
            for z, number in enumerate(slice_numbers(image))
        ]
        return d


def check_finite(found: Findings, image: MetaTensor) -> None:
    """Refuse a volume for which the networks gave NaN or infinity: of them there is no map, and 0 in their place is a good one.

    Args:
        found: of its slices ``(D, ...)``, with ``assessed``.
        image: that it is of, for the error.

    Raises:
        ValueError: NaN or infinity in an assessed slice.
    """
    assessed = found["assessed"]
    broken = torch.zeros_like(assessed)
    for values in cast(dict[str, torch.Tensor], found).values():
        broken |= assessed & ~values.isfinite().reshape(len(values), -1).all(dim=1)
    if bool(broken.any()):
        raise ValueError(
            f"{image.meta.get('filename_or_obj', 'the image')}: the networks gave NaN or infinity in {int(broken.sum())} of "
            f"{int(assessed.sum())} assessed slices; try a smaller guidance_scale or noise_level, or precision float32."
        )
