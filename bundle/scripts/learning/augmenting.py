"""Augmentation of what scanners change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor

from ..images.normalization import BACKGROUND


class AsMagnitude(MapTransform, Randomizable):
    """Apply transforms to images as magnitudes: 0 where there is no signal, whereas the networks see -1 there.

    MONAI's bias field and intensity scale multiply, and its gamma takes the least value for black. The background stays as it
    is, and values are clipped to [-1, 1], as `images.normalization.NormalizeByMediand` does.

    Args:
        keys: images ``(C, H, W)`` in [-1, 1].
        transforms: MONAI's, of images without keys.
    """

    def __init__(self, keys: KeysCollection, transforms: Sequence[Callable[[Any], Any]]) -> None:
        super().__init__(keys)
        self.transforms = list(transforms)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> AsMagnitude:
        """Of this and of all of its transforms."""
        super().set_random_state(seed, state)
        for transform in self.transforms:
            if isinstance(transform, Randomizable):
                transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            x = d[key]
            magnitude = x - BACKGROUND
            for transform in self.transforms:
                magnitude = transform(magnitude)
            changed = (convert_to_tensor(magnitude) + BACKGROUND).clamp(-1, 1)
            d[key] = torch.where(x > BACKGROUND, changed, x)
        return d


class RandSharedGammad(MapTransform, Randomizable):
    """The same gamma curve for a slice and what was made of it: y = 2 ((x + 1) / 2)^g - 1, which keeps -1 and 1.

    MONAI's `RandAdjustContrastd` scales the curve to the range of each image, so a slice and its healthy counterpart, which
    has no bright lesion, would be changed by two curves. That the counterpart of a changed slice is the changed counterpart is
    an assumption, which is why the curves are near the straight line.

    Args:
        keys: images ``(C, H, W)`` in [-1, 1].
        kept: the first channels of each, as many as its number says, stay as they are, such as a map before a counterpart.
        prob: of a change.
        gamma: lowest and highest g.
    """

    def __init__(
        self, keys: KeysCollection, kept: Sequence[int], prob: float = 0.3, gamma: tuple[float, float] = (0.85, 1.18)
    ) -> None:
        super().__init__(keys)
        self.kept, self.prob, self.gamma = tuple(kept), prob, tuple(gamma)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        changes, g = self.R.random_sample() < self.prob, self.R.uniform(*self.gamma)
        for key, kept in self.key_iterator(d, self.kept) if changes else ():
            rest, x = convert_to_tensor(d[key]).split([kept, len(d[key]) - kept])
            d[key] = torch.cat([rest, 2 * ((x.clamp(-1, 1) + 1) / 2) ** g - 1])
        return d
