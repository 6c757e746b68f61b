"""Volumes from files: read whatever holds a volume with an orientation, and say clearly why another can't be used."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform

from ..checks import is_true
from .geometry import checked_spacing, load_nifti, millimetres

NIFTI = (".nii.gz", ".nii")


OTHERS = (".nrrd", ".mha", ".mhd")
"""Read by MONAI where ITK is installed."""


MAX_EXTENT = 1000.0
"""mm of any axis: more is a header with wrong units, and would be resampled to more voxels than memory holds."""


class InvalidImageError(ValueError):
    """An image that can't be processed. The message names the file, what was wrong and what is allowed."""


class LoadVolumed(MapTransform):
    """Load one volume per key as float32 ``(C, X, Y, Z)`` with its affine in mm, or say clearly why it can't be used.

    The value of a key is a path, or a list of paths with one file a channel. A 4D file holds its channels last. NaN and
    infinity stay as they are. Adds ``warnings``, a list of sentences for the reader of the result, to which the transforms
    that follow add theirs, and ``allow_any_image`` unless an item has it.

    Args:
        keys: the keys to load.
        channels: number of channels an image must have.
        min_size: fewest voxels along every in-plane axis.
        allow_any_image: whether the transforms that follow take what is no MR image of a head, with a warning.

    An item may carry ``spacing``, three voxel sizes in mm along the file's axes, for files whose header is known to be
    wrong; it replaces the header's and keeps its directions.

    Raises:
        InvalidImageError: missing or unreadable file, no orientation, colours or complex numbers, wrong number of dimensions
            or channels, channels on different grids, too few voxels, over a metre, nothing finite, a constant channel.
    """

    def __init__(
        self, keys: KeysCollection, channels: int = 1, min_size: int = 32, allow_any_image: bool | str = False
    ) -> None:
        super().__init__(keys)
        self.allow_any_image = is_true(allow_any_image, "allow_any_image")
        self.channels = channels
        self.min_size = min_size
        self._read = LoadImage(image_only=True, ensure_channel_first=False, dtype=np.float32)

    def _load(self, path: str) -> MetaTensor:
        if not Path(path).exists():
            raise InvalidImageError(f"{path}: no such file.")
        lower = path.lower()
        if not lower.endswith(NIFTI + OTHERS) and not Path(path).is_dir():
            raise InvalidImageError(
                f"{path}: is not of a format that holds a volume and its orientation; allowed are NIfTI "
                f"({', '.join(NIFTI)}), NRRD and MetaImage ({', '.join(OTHERS)}). Pictures, arrays (.npy) and Analyze "
                "(.hdr, .img) don't say where left and right are."
            )
        try:
            return self._nifti(path) if lower.endswith(NIFTI) else self._read(path)
        except InvalidImageError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise InvalidImageError(
                f"{path}: can't be read as an image ({reason[0] if reason else type(error).__name__})."
            ) from error

    @staticmethod
    def _nifti(path: str) -> MetaTensor:
        image = load_nifti(path)
        kind = image.get_data_dtype()
        if kind.kind == "c":
            raise InvalidImageError(
                f"{path}: holds complex numbers, of which the phase would be lost; give their magnitude."
            )
        if kind.fields:
            raise InvalidImageError(f"{path}: is a colour picture, not an MR image with one value a voxel.")
        if int(image.header["qform_code"]) == 0 and int(image.header["sform_code"]) == 0:
            raise InvalidImageError(
                f"{path}: its orientation is unknown (qform_code and sform_code are 0); set one of them."
            )
        array = np.asarray(image.dataobj).astype(np.float32)
        while array.ndim > 3 and array.shape[-1] == 1:
            array = array[..., 0]
        affine = np.array(image.affine, dtype=np.float64)
        affine[:3] *= millimetres(image.header)
        return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            paths = [str(p) for p in d[key]] if isinstance(d[key], (list, tuple)) else [str(d[key])]
            d[key] = self._assemble([self._load(p) for p in paths], paths, d.get("spacing"))
        d["warnings"] = list(d.get("warnings", []))
        d.setdefault("allow_any_image", self.allow_any_image)
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
        name = ", ".join(paths)
        if volume.shape[0] != self.channels:
            raise InvalidImageError(
                f"{name}: has {volume.shape[0]} channel(s), the model takes {self.channels}; "
                "give one file a channel, or one 4D file."
            )
        affine = torch.as_tensor(first.affine, dtype=torch.float64).clone()
        lengths = torch.linalg.norm(affine[:3, :3], dim=0)
        if (
            not bool(torch.isfinite(affine).all())
            or abs(float(torch.linalg.det(affine[:3, :3]))) < 1e-6 * float(lengths.max()) ** 3
        ):
            raise InvalidImageError(f"{name}: its affine is singular, so position and orientation are unknown.")
        header = {}
        if spacing is not None:
            header["header_affine"] = affine.clone()
            affine[:3, :3] *= checked_spacing(spacing) / lengths
            lengths = checked_spacing(spacing)
        if sorted(volume.shape[1:])[1] < self.min_size:
            raise InvalidImageError(
                f"{name}: is only {tuple(volume.shape[1:])} voxels, at least two axes need {self.min_size}."
            )
        extent = [float(n * s) for n, s in zip(volume.shape[1:], lengths, strict=True)]
        if max(extent) > MAX_EXTENT:
            raise InvalidImageError(
                f"{name}: measures {' x '.join(f'{e:.0f}' for e in extent)} mm by its header; at most {MAX_EXTENT:.0f} mm an "
                "axis are allowed. Are the voxel sizes in other units than the header says?"
            )
        for channel, path in zip(volume, paths * volume.shape[0], strict=False):
            finite = channel[torch.isfinite(channel)]
            if not len(finite):
                raise InvalidImageError(f"{path}: every voxel is NaN or infinite, there is no image in it.")
            if float(finite.min()) == float(finite.max()):
                raise InvalidImageError(
                    f"{path}: is constant ({float(finite[0]):g} everywhere), there is no image in it."
                )
        meta = {"filename_or_obj": name, "input_affine": affine.clone(), **header}
        return MetaTensor(volume, affine=affine, meta=meta)
