"""Which part of an image is looked at: all of it, what is not background, or what a network says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from skimage.morphology import convex_hull_image

from ..checks import check_number
from ..errors import InvalidImageError
from ..weights import weights_digest
from .geometry import on_grid
from .masks import load_mask
from .resampling import resized_in_plane


class Foregroundd(MapTransform):
    """Add ``foreground``, a uint8 mask ``(1, X, Y, Z)`` on the grid of the first key.

    Where an item has ``foreground``, the path of a mask, that one is loaded instead. What is foreground is said by `find`.

    Args:
        keys: the image ``(C, X, Y, Z)``, on its own grid.

    Raises:
        InvalidImageError: nothing is foreground.
        ValueError: the mask given can't be used, see `masks.load_mask`.
    """

    def find(self, image: MetaTensor) -> torch.Tensor:
        """The foreground of an image, bool ``(X, Y, Z)``."""
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.keys[0]]
        given = d.get("foreground")
        mask = self.find(image)[None] if given is None else load_mask(given, image).as_tensor()
        if not bool(mask.any()):
            raise InvalidImageError(f"{image.meta['filename_or_obj']}: no foreground was found.")
        d["foreground"] = on_grid(mask.to(torch.uint8), image.affine, image)
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
            border = np.concatenate([channel[[0, -1]].ravel(), channel[:, [0, -1]].ravel()])
            values, counts = np.unique(border, return_counts=True)
            if 2 * counts.max() <= border.size:
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: channel {n} has no background of one value around it; give the "
                    "item a 'foreground', the path of a mask."
                )
            background = values[counts.argmax()]
            differs |= ~np.isnan(channel) if np.isnan(background) else channel != background
        parts, number = ndimage.label(differs)
        if not number:
            return torch.zeros(differs.shape, dtype=torch.bool)
        largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
        if largest.shape[2] == 1:  # in three dimensions no hole of a slice is closed
            return torch.from_numpy(ndimage.binary_fill_holes(largest[..., 0])[..., None])
        return torch.from_numpy(ndimage.binary_fill_holes(largest))


class ByNetworkd(Foregroundd):
    """What a segmentation network marks in each slice of the first channel, such as the lungs; see `Foregroundd`.

    The network gets slices ``(B, 1, *size)``, resampled to its size whatever their proportions, with their percentiles 1 and
    99 at -1 and 1. It gives logits, of one channel, or of two of which the second is foreground.

    Args:
        keys: the image; its first channel counts.
        network: with its weights, such as `weights.load_weights` gives it, on the device that it runs on.
        size: the network's input size, two whole numbers.
        threshold: probability from which on a pixel is foreground.
        convex_hull: take the convex hull of what is marked in a slice, as what lies between and behind the lungs.
        dilation: how far the foreground is then widened, as a part of the slice's longer side, so that what hides the border of
            an organ, as fluid does in the costophrenic angles, is foreground. It is no length in mm, as many radiographs don't
            say how large a pixel is, but all show about the same field.
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: torch.nn.Module,
        size: Sequence[int],
        threshold: float = 0.5,
        convex_hull: bool = False,
        dilation: float = 0.0,
    ) -> None:
        super().__init__(keys)
        check_number("threshold", threshold, 0, 1)
        check_number("dilation", dilation, 0, 1)
        self.network = network.eval()
        self.weights = weights_digest(network)  # by which what was computed before is found again
        self.size = tuple(size)
        self.threshold = threshold
        self.convex_hull = convex_hull
        self.dilation = dilation

    def find(self, image: MetaTensor) -> torch.Tensor:
        x = resized_in_plane(image[:1], self.size).as_tensor()[0].movedim(-1, 0)[:, None].nan_to_num()
        low, high = (x.flatten(1).quantile(q, dim=1).view(-1, 1, 1, 1) for q in (0.01, 0.99))
        x = (2 * (x - low) / (high - low).clamp_min(1e-6) - 1).clamp(-1, 1)
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits = torch.cat([self.network(one[None].to(device)).float().cpu() for one in x])
        p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)[:, 1:2]
        p = F.interpolate(p, image.shape[1:3], mode="bilinear")
        mask = (p[:, 0] >= self.threshold).movedim(0, -1).numpy()
        for z in range(mask.shape[2]):
            if self.convex_hull and mask[..., z].any():
                mask[..., z] = convex_hull_image(mask[..., z])
            if self.dilation > 0 and mask[..., z].any():
                spacing = [float(s) for s in image.pixdim[:2]]
                reach = self.dilation * max(n * s for n, s in zip(mask.shape[:2], spacing, strict=True))
                mask[..., z] = ndimage.distance_transform_edt(~mask[..., z], sampling=spacing) <= reach
        return torch.from_numpy(mask)
