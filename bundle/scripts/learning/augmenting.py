"""Augmentation of what scanners change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandBiasField, Randomizable
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


class _RandShared(MapTransform, Randomizable):
    """Changes the magnitudes (x + 1) / 2 of a slice and of what was made of it in one and the same way.

    That the counterpart of a changed slice is the changed counterpart is an assumption, which is why the changes are mild.

    Args:
        keys: images ``(C, H, W)`` in [-1, 1], of one size. Values are clipped to that afterwards; -1 stays.
        kept: the first channels of each, as many as its number says, stay as they are, such as a map before a counterpart.
        prob: of a change.
    """

    def __init__(self, keys: KeysCollection, kept: Sequence[int], prob: float) -> None:
        super().__init__(keys)
        self.kept, self.prob = tuple(kept), prob

    def change(self, shape: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Draw one, for magnitudes ``(C, *shape)``."""
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.R.random_sample() >= self.prob:
            return d
        change = self.change(d[self.keys[0]].shape[1:])
        for key, kept in self.key_iterator(d, self.kept):
            rest, x = convert_to_tensor(d[key]).split([kept, len(d[key]) - kept])
            d[key] = torch.cat([rest, (2 * change((x.clamp(-1, 1) + 1) / 2) - 1).clamp(-1, 1)])
        return d


class RandSharedGammad(_RandShared):
    """The same gamma curve y^g for a slice and what was made of it, see `_RandShared`.

    MONAI's `RandAdjustContrastd` scales the curve to the range of each image, so a slice and its healthy counterpart, which
    has no bright lesion, would be changed by two curves.

    Args:
        keys, kept, prob: see `_RandShared`.
        gamma: lowest and highest g.
    """

    def __init__(
        self, keys: KeysCollection, kept: Sequence[int], prob: float = 0.3, gamma: tuple[float, float] = (0.85, 1.18)
    ) -> None:
        super().__init__(keys, kept, prob)
        self.gamma = tuple(gamma)

    def change(self, shape: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        g = self.R.uniform(*self.gamma)
        return lambda magnitude: magnitude**g


class RandSharedBiasFieldd(_RandShared):
    """The same bias field of a coil for a slice and what was made of it, see `_RandShared`.

    It is a slice of MONAI's `RandBiasField` of a volume. That of an image of two dimensions lacks the terms of the second one
    alone, and `RandBiasFieldd` would multiply values in [-1, 1].

    Args:
        keys, kept, prob: see `_RandShared`.
        coefficient: of the polynomial of third degree in the field's logarithm, each at most so far from 0.
    """

    def __init__(self, keys: KeysCollection, kept: Sequence[int], prob: float = 0.5, coefficient: float = 0.12) -> None:
        super().__init__(keys, kept, prob)
        self.field = RandBiasField(coeff_range=(-coefficient, coefficient), prob=1.0)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandSharedBiasFieldd:
        """Of this and of MONAI's field."""
        super().set_random_state(seed, state)
        self.field.set_random_state(state=self.R)
        return self

    def change(self, shape: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        field = convert_to_tensor(self.field(torch.ones(1, *shape, 1)))[..., 0]
        return lambda magnitude: magnitude * field
