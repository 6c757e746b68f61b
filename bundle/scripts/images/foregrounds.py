"""Which part of an image is looked at: a mask that is given, or else all of it, or what is not background."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from ..errors import InvalidImageError
from .air import background_of
from .connected import largest_part
from .geometry import on_grid
from .masks import load_mask


class Foregroundd(MapTransform):
    """Add ``foreground``, a uint8 mask ``(1, X, Y, Z)`` on the grid of the first key.

    Where an item has ``foreground``, the path of a mask, that one is loaded instead. What is foreground is said by `find`.

    Args:
        keys: the image ``(C, X, Y, Z)``, on its own grid.
        name: of what is added. ``roi`` is where maps and scores are read, of a model whose networks look at more than that.

    Raises:
        InvalidImageError: nothing is foreground.
        ValueError: the mask given can't be used, see `masks.load_mask`.
    """

    def __init__(self, keys: KeysCollection, name: str = "foreground") -> None:
        super().__init__(keys)
        self.name = name

    def find(self, image: MetaTensor) -> torch.Tensor:
        """The foreground of an image, bool ``(X, Y, Z)``."""
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.keys[0]]
        given = d.get(self.name)
        mask = self.find(image)[None] if given is None else load_mask(given, image).as_tensor()
        if not bool(mask.any()):
            raise InvalidImageError(f"{image.meta['filename_or_obj']}: no {self.name} was found.")
        d[self.name] = on_grid(mask.to(torch.uint8), image.affine, image)
        return d


class WholeImaged(Foregroundd):
    """The whole image is foreground; see `Foregroundd`."""

    def find(self, image: MetaTensor) -> torch.Tensor:
        return torch.ones(image.shape[1:], dtype=torch.bool)


class NonZerod(Foregroundd):
    """What is not background, such as a brain whose skull was removed; see `Foregroundd`.

    The background is the one value that most of a channel's in-plane border has: 0, or another one after a z-score.
    Foreground is what differs from it in any channel: the largest connected part of that, its holes filled.

    Raises:
        InvalidImageError: half of a channel's border or more is not of one value.
    """

    def find(self, image: MetaTensor) -> torch.Tensor:
        array = image.as_tensor().numpy()
        differs = np.zeros(array.shape[1:], bool)
        for n, channel in enumerate(array):
            background, share = background_of(channel)
            if share <= 0.5:
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: channel {n} has no background of one value around it; give the "
                    "item a 'foreground', the path of a mask."
                )
            differs |= ~np.isnan(channel) if np.isnan(background) else channel != background
        largest = largest_part(differs)
        if largest.shape[2] == 1:  # in three dimensions no hole of a slice is closed
            return torch.from_numpy(ndimage.binary_fill_holes(largest[..., 0])[..., None])
        return torch.from_numpy(ndimage.binary_fill_holes(largest))
