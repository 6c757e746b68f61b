"""To the networks' input size, where pixels have no known size in mm."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from .padding import checked_size, padded
from .resampling import resized_in_plane


class ResizeInPlaned(MapTransform):
    """Make the whole picture as large as fits into ``size`` pixels, with its proportions, anti-aliased, and pad the rest.

    Proportions are those of the pixels' true edges, by the affine: one whose pixels are no squares comes out undistorted. Each
    axis of the picture is a whole number of new pixels, so edges that are alike before may differ by up to half of one. What
    is added has the lowest value of the networks' scale, so normalise before; the foreground has 0 there.

    Args:
        keys: images ``(C, X, Y, Z)`` and masks; masks come out as coverage in [0, 1].
        size: the networks' input size in pixels, two whole numbers.
        mask_key: the mask among the keys.

    Raises:
        ValueError: another size.
    """

    def __init__(self, keys: KeysCollection, size: Sequence[int], mask_key: str = "foreground") -> None:
        super().__init__(keys)
        self.size = checked_size(size)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            extent = [n * float(s) for n, s in zip(image.shape[1:3], image.pixdim[:2], strict=True)]
            pixel = max(e / n for e, n in zip(extent, self.size, strict=True))
            fitting = [min(n, max(1, round(e / pixel))) for e, n in zip(extent, self.size, strict=True)]
            d[key] = padded(resized_in_plane(image, fitting), self.size, key == self.mask_key)
        return d
