"""A light network that finds the brain, and tells by itself where it is in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from monai.transforms.utils import generate_spatial_bounding_box

from ..device import autocast
from .connected import largest_part
from .plausibility import BRAIN_ML, size_warnings

SPACING = (1.2, 1.2, 2.4)
"""mm a voxel of what the network gets and gives."""
FACTOR = 2
"""Voxels of `SPACING` along each axis that it takes as one of 2.4 x 2.4 x 4.8 mm, with channels."""
LEAST = (48 * FACTOR, 48 * FACTOR, 16 * FACTOR)
"""Voxels along each axis, for its four poolings to leave several, of which its norms take the statistics.

With four voxels left, a gradient in bfloat16 was not the same twice on a CPU (torch 2.13).
"""
BRIGHTEST = 5.0
"""Times the head's mean, above which all is as bright."""
LEVEL = -0.5
"""Logit above which a voxel is brain: on the validation's heads the Dice is as good as at 0, and no more lesion is lost."""
LONGEST = 400.0
"""mm of a head; one that is longer by its header is no request for memory."""
AGREEMENT, WHOLE = 0.98, 0.98
"""Least values of a `Found` without doubt, chosen in validation: see ``benchmarks/brain_extractor.json``."""


class BrainNetwork(torch.nn.Module):
    """MONAI's `BasicUNet`, for which neighbouring voxels are channels of one, so that it is quick and yet finds edges sharply.

    Its norms take the statistics of the one volume that it is given, as instance norm does. They are batch norms, as PyTorch's
    instance norm leaves the layout that convolutions are fastest in.

    Args:
        features: of `BasicUNet`, six numbers.
    """

    def __init__(self, features: Sequence[int]) -> None:
        super().__init__()
        channels = FACTOR**3
        norm = ("batch", {"track_running_stats": False})
        # its weights are read from a file; what they are made with must not move the generator of the networks in training
        with torch.random.fork_rng(devices=[]):
            self.unet = BasicUNet(3, channels, channels, features, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(1, 1, X, Y, Z)`` of a volume likewise, see `as_input`.

        Raises:
            ValueError: more than one volume.
        """
        if x.shape[0] != 1:
            raise ValueError(f"takes one volume at a time, as its norms take the statistics of all; got {x.shape[0]}.")
        x = pixelunshuffle(x, 3, FACTOR).contiguous(memory_format=torch.channels_last_3d)
        return pixelshuffle(self.unet(x).contiguous(), 3, FACTOR)


def head_box(volume: torch.Tensor) -> tuple[slice, ...]:
    """The part of ``(1, X, Y, Z)`` that holds the head, with a margin of 3 voxels, to index it by."""
    # air around it costs time and shifts what intensities are compared with
    lower, upper = generate_spatial_bounding_box(volume, lambda v: v > v.mean() * 0.5, margin=3)
    return (slice(None), *(slice(max(a, 0), b) for a, b in zip(lower, upper, strict=True)))


def as_input(x: torch.Tensor) -> torch.Tensor:
    """What the network gets of ``(1, 1, X, Y, Z)`` on the grid of `SPACING`, air at 0.

    Returns:
        the head's mean at 1; zeros are added at the ends of axes that are shorter than `LEAST` or no multiple of `FACTOR`.
    """
    x = (x / x[x > x.mean() * 0.5].mean().clamp_min(1e-6)).clamp(0, BRIGHTEST)
    sizes = [max(least, n + -n % FACTOR) for n, least in zip(x.shape[2:], LEAST, strict=True)]
    return F.pad(x, [p for n, size in zip(reversed(x.shape[2:]), reversed(sizes), strict=True) for p in (0, size - n)])


@dataclass(frozen=True, eq=False)
class Found:
    """What `by_network` gives."""

    mask: torch.Tensor
    """The brain, bool ``(1, X, Y, Z)``, in one piece."""
    agreement: float
    """Dice of what the network finds in the volume and in its mirror image."""
    whole: float
    """The share of all that was found which that piece is."""
    sized: bool
    """Whether it is as large as whole brains are, see `plausibility`: what holds a part of one is left to HD-BET."""

    @property
    def doubt(self) -> str | None:
        """Why the mask should not be relied on; None where nothing speaks against it."""
        if not self.sized:
            return "no brain is so small or so large as what the light network found"
        if self.whole < WHOLE:
            return f"the light network found several pieces, the largest with {self.whole:.1%} of all"
        if self.agreement < AGREEMENT:
            return f"the light network finds another brain in the mirror image (Dice {self.agreement:.3f})"
        return None


def by_network(volume: torch.Tensor, pixdim: Sequence[float], network: torch.nn.Module, precision: str) -> Found:
    """The brain of ``(1, X, Y, Z)``: the mean of what the network finds in it and in its mirror image.

    Args:
        volume: a head; its axes to the left, posterior, superior; air at 0.
        pixdim: voxel size in mm.
        network: a `BrainNetwork` with its weights.
        precision: see `device.autocast`.
    """
    device = next(network.parameters()).device
    box = head_box(volume)
    head = volume[box][None].to(device)
    size = [max(1, round(n * s / to)) for n, s, to in zip(head.shape[2:], pixdim, SPACING, strict=True)]
    mask = torch.zeros_like(volume, dtype=torch.bool)
    if max(n * to for n, to in zip(size, SPACING, strict=True)) > LONGEST:
        return Found(mask, 0.0, 0.0, False)
    x = as_input(F.interpolate(head, size, mode="trilinear"))
    inside = (0, 0, *(slice(n) for n in size))
    with torch.inference_mode(), autocast(device, precision):
        direct, mirrored = (network(x).float()[inside], network(x.flip(2)).float().flip(2)[inside])
    logits = F.interpolate((direct + mirrored)[None, None] / 2, head.shape[2:], mode="trilinear")
    mask[box] = (logits[0] > LEVEL).cpu()
    found = int(mask.sum())
    if not found:
        return Found(mask, 0.0, 0.0, False)
    a, b = direct > LEVEL, mirrored > LEVEL
    agreement = 2 * float((a & b).sum()) / max(1.0, float(a.sum() + b.sum()))
    largest = largest_part(mask[0].numpy())
    brain = torch.from_numpy(largest)[None]
    sized = int(largest.sum()) * float(np.prod(pixdim)) / 1000 >= BRAIN_ML[0] and not size_warnings(largest, pixdim)
    return Found(brain, agreement, int(largest.sum()) / found, sized)
