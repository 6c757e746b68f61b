"""A head as networks that look for the brain get it: the box around it, coarser, with its own mean at 0."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms.utils import generate_spatial_bounding_box

MAX_VOXELS = 200**3
"""A head of 30 cm at 1.5 mm. One that is larger by its header is taken as smaller, not as a request for memory."""

Box = tuple[slice, ...]


def boxed(image: MetaTensor, spacing: float, device: torch.device | str) -> tuple[torch.Tensor, Box]:
    """The head of a volume ``(1, X, Y, Z)``, its mean at 0 and its standard deviation 1.

    The head alone, as air around it costs time and shifts mean and deviation.

    Args:
        image: one channel.
        spacing: of the result in mm, the same along all axes.
        device: of the result.

    Returns:
        ``(1, 1, x, y, z)``, and the box in the volume that it fills.
    """
    volume = image.as_tensor()
    lower, upper = generate_spatial_bounding_box(volume, lambda v: v > v.mean() * 0.5, margin=3)
    box = (slice(None), *(slice(max(a, 0), b) for a, b in zip(lower, upper, strict=True)))
    x = volume[box][None].to(device)
    extent = [n * s for n, s in zip(x.shape[2:], image.pixdim.tolist(), strict=True)]
    spacing = max(spacing, (float(np.prod(extent)) / MAX_VOXELS) ** (1 / 3))
    x = F.interpolate(x, [max(1, round(e / spacing)) for e in extent], mode="trilinear")
    return (x - x.mean()) / x.std().clamp_min(1e-6), box


def unboxed(p: torch.Tensor, box: Box, image: MetaTensor) -> torch.Tensor:
    """The mask of what is above one half in ``(1, 1, x, y, z)``, bool, on the grid of the volume ``(1, X, Y, Z)``."""
    mask = torch.zeros(image.shape, dtype=torch.bool)
    p = F.interpolate(p, mask[box].shape[1:], mode="trilinear")
    mask[box] = (p[0] > 0.5).cpu()
    return mask


def padded(x: torch.Tensor, divisor: int) -> torch.Tensor:
    """``(N, C, x, y, z)`` with zeros behind each axis up to a multiple of `divisor`."""
    return F.pad(x, [p for n in reversed(x.shape[2:]) for p in (0, -n % divisor)])
