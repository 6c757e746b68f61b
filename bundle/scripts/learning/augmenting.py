"""Augmentation: what scanners change, and lesions that are made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandBiasField, Randomizable
from monai.utils import convert_to_tensor

from ..images.normalization import BACKGROUND
from ..method.maps import checked_polarity

MIN_PLACES = 100
"""Pixels of foreground that a slice must have for a synthetic lesion."""
SEEN = 0.08
"""So much brighter a pixel must have become to count as one of a synthetic lesion; the whole range is 2."""


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


class RandSyntheticLesionsd(MapTransform, Randomizable):
    """Bright spots in slices without a lesion, for a student that is to find those of other diseases than its teacher's too.

    The counterpart stays what it was: the slice without spots. A spot is an ellipse with a soft rim, in the foreground.
    It is brighter than healthy tissue by a share of what there is up to the highest value; what is brighter already stays. The
    idea of learning from made lesions is that of DISYRE (Naval Marimont et al. 2024) and REFLECT (MICCAI 2025), which paste
    texture.

    Slices of several channels stay as they are, as it isn't known how such a lesion looks in each; so do those of a model whose
    lesions aren't "hyperintense".

    Args:
        keys: a slice ``(1, H, W)`` in [-1, 1], and a `pseudo_labels.Lesson` of it.
        polarity: see `method.maps.anomaly_map`.
        prob: of spots in a slice.
        number: of spots, at most.
        radius: the least and the largest half width of a spot at half its brightness, in pixels, before it is stretched.
    """

    def __init__(
        self,
        keys: KeysCollection,
        polarity: str | Sequence[str],
        prob: float = 0.5,
        number: int = 6,
        radius: tuple[float, float] = (0.8, 4.5),
    ) -> None:
        super().__init__(keys)
        self.polarity, self.prob, self.number, self.radius = checked_polarity(polarity), prob, number, tuple(radius)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image, lesson = self.keys
        x, y = convert_to_tensor(d[image]).clone(), convert_to_tensor(d[lesson])
        if self.polarity != ["hyperintense"] or len(x) != 1 or self.R.random_sample() >= self.prob or bool(y[0].any()):
            return d
        inside = x[0] > BACKGROUND + 0.01
        places = inside.nonzero()
        if len(places) < MIN_PLACES:
            return d
        tissue = x[0][inside].median()
        rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in x.shape[1:]), indexing="ij")
        label = torch.zeros_like(y[:1])
        for _ in range(self.R.randint(1, self.number + 1)):
            row, column = places[self.R.randint(len(places))].tolist()
            size = np.exp(self.R.uniform(*np.log(self.radius)))
            stretch, angle = np.exp(self.R.uniform(-0.5, 0.5)), self.R.uniform(0, np.pi)
            u = ((rows - row) * np.cos(angle) + (columns - column) * np.sin(angle)) / (size * stretch)
            v = ((columns - column) * np.cos(angle) - (rows - row) * np.sin(angle)) / (size / stretch)
            share = torch.sigmoid((1 - (u**2 + v**2).sqrt()) / self.R.uniform(0.1, 0.35)) * inside
            bright = tissue + self.R.uniform(0.2, 0.9) * (1 - tissue)
            noise = torch.from_numpy(self.R.normal(0, 0.03, x.shape[1:])).float()
            changed = x[0] + share * (bright + noise - x[0]).clamp_min(0)
            label = torch.maximum(label, ((share > 0.5) & (changed - x[0] > SEEN)).float()[None])
            x[0] = changed
        d[image], d[lesson] = x.clamp(-1, 1), torch.cat([label, y[1:]])
        return d
