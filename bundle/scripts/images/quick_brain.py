"""The brain by a small network, and by HD-BET where that one is not sure."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from scipy import ndimage

from ..device import autocast
from ..weights import weights_digest
from .brain import ExtractBraind
from .heads import boxed, padded, unboxed
from .plausibility import implausible_size

logger = logging.getLogger(__name__)


class ExtractBrainQuicklyd(ExtractBraind):
    """As `ExtractBraind`, by a network that learned HD-BET's masks at a coarser grid, see benchmarks/quick_brain.py.

    It sees the head and its mirror image, of which it should mark the same: where these two differ, or the brain has no size
    of brains, HD-BET finds the brain instead. The mask is that of the mean of both, its largest part, without holes.

    Args:
        keys: as for `ExtractBraind`.
        network: on its device; ``(1, 1, x, y, z)`` as `heads.boxed` gives it to logits of the same shape.
        min_agreement: the lowest Dice of the two, from 0 to 1.
        options: as for `ExtractBraind`.
    """

    quick_spacing = 2.4
    quick_divisor = 16

    def __init__(
        self, keys: KeysCollection, network: torch.nn.Module, min_agreement: float = 0.97, **options: Any
    ) -> None:
        super().__init__(keys, **options)
        self.network = network.eval()
        self.made_by = weights_digest(network)
        self.min_agreement = min_agreement

    def _segment(self, image: MetaTensor) -> torch.Tensor:
        mask = self.quick(image)
        return super()._segment(image) if mask is None else mask

    def quick(self, image: MetaTensor) -> torch.Tensor | None:
        """The mask of a volume ``(1, X, Y, Z)`` by the network, bool; None where it is not to be trusted."""
        x, box = boxed(image[:1], self.quick_spacing, next(self.network.parameters()).device)
        with torch.inference_mode(), autocast(x.device, self.precision):
            p, q = (self._marked(v) for v in (x, x.flip(2)))
        p, q = p, q.flip(2)
        a, b = (p > 0.5), (q > 0.5)
        agreement = 2 * float((a & b).sum()) / max(1, int(a.sum()) + int(b.sum()))
        if agreement < self.min_agreement:
            logger.info("the quick brain and its mirror image agree by a Dice of %.3f; HD-BET takes over", agreement)
            return None
        mean = (p + q) / 2
        whole = torch.from_numpy(solid(mean[0, 0].cpu().numpy() > 0.5)).to(mean.device)
        # smooth where it is kept, so that the rim is not that of coarse voxels
        mask = unboxed(torch.where(whole, mean.clamp_min(0.5 + 1e-3), mean.clamp_max(0.5)), box, image[:1])
        if implausible_size(mask[0].numpy(), image.pixdim.tolist()):
            logger.info("the quick brain has no size of brains; HD-BET takes over")
            return None
        return mask

    def _marked(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(padded(x, self.quick_divisor))
        return logits[..., : x.shape[2], : x.shape[3], : x.shape[4]].float().sigmoid()


def solid(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask ``(X, Y, Z)``, its holes filled."""
    labels, number = ndimage.label(mask)
    if number > 1:
        mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    filled: np.ndarray = ndimage.binary_fill_holes(mask)
    return filled
