"""Synthetic lesions for a network that restores what is healthy (after DISYRE v2 and REFLECT, MICCAI 2025).

Healthy slices are corrupted by patches of other slices' texture, pasted through a soft random mask; one network undoes it in
one step. It needs no diseased slice and knows no disease.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def soft_mask(shape: torch.Size, device: torch.device) -> torch.Tensor:
    """A random blob with soft rims, ``(N, 1, H, W)`` from 0 to 1: smooth noise above a random quantile of a random window."""
    n, _, height, width = shape
    coarse = torch.randn(n, 1, height // 8, width // 8)
    noise = F.interpolate(coarse, (height, width), mode="bicubic")
    middle = torch.rand(n, 2, 1, 1) * 1.2 - 0.6
    radius = 0.15 + 0.35 * torch.rand(n, 1, 1, 1)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    away = ((rows - middle[:, :1]) ** 2 + (columns - middle[:, 1:]) ** 2).sqrt()
    softness = 0.05 + 0.15 * torch.rand(n, 1, 1, 1)
    return torch.sigmoid((radius - away + 0.15 * noise) / softness.mul(0.5)).to(device)


def corrupted(x: torch.Tensor, foreground: torch.Tensor, strength: float) -> torch.Tensor:
    """Healthy slices ``(N, C, H, W)`` with a synthetic lesion each, in the foreground; a fifth stay as they are.

    Args:
        strength: how far the patch's intensities are shifted, up or down, at most; the whole range is 2.
    """
    n, _, height, width = x.shape
    other = x[torch.randperm(n)].roll((int(torch.randint(height, ())), int(torch.randint(width, ()))), (2, 3))
    other = other.flip(2) if torch.rand(()) < 0.5 else other
    gain = 0.5 + torch.rand(n, 1, 1, 1)
    inside = foreground.float()
    mean = (x * inside).sum(dim=(2, 3), keepdim=True) / inside.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    shift = strength * (2 * torch.rand(n, x.shape[1], 1, 1) - 1)
    # what was background in the other slice has no texture
    texture = torch.where(other > -0.99, other - mean, torch.zeros(()).to(x)) * gain.to(x)
    patch = (mean + texture + shift.to(x)).clamp(-1, 1)
    mask = soft_mask(x.shape, x.device) * inside * (torch.rand(n, 1, 1, 1) > 0.2).to(x)
    return (1 - mask) * x + mask * patch
