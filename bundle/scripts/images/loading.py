"""Volumes from files: read whatever holds an image of the model's, and say clearly why another can't be used."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..checks import is_true
from ..errors import InvalidImageError
from .dicom_series import read_dicom_series
from .formats import VOLUMES, allowed_formats, is_dicom, is_picture, takes_pictures, takes_volumes
from .geometry import checked_spacing
from .pictures import read_picture
from .radiographs import read_radiograph
from .volume_files import Loaded, read_volume

MAX_EXTENT = 1000.0
"""mm of any axis: more is a header with wrong units, and would be resampled to more voxels than memory holds."""


class LoadVolumed(MapTransform):
    """Load one volume per key as float32 ``(C, X, Y, Z)`` with its affine in mm, or say clearly why it can't be used.

    The value of a key is a path, or a list of paths with one file a channel. A 4D file holds its channels last. A model of
    volumes takes files of volumes, and a folder with one series of DICOM images. A model of pictures takes radiographs in
    DICOM, pictures, and files of a volume of one slice; a picture is ``(C, X, Y, 1)``, see `pictures.picture_affine`. NaN and
    infinity stay as they are. Adds ``warnings``, a list of sentences for the reader of the result, to which the transforms
    that follow add theirs, and ``allow_any_image`` unless an item has it.

    Args:
        keys: the keys to load.
        channels: number of channels an image must have.
        min_size: fewest voxels along every in-plane axis.
        allow_any_image: whether this and the transforms that follow take what the model was not made for, with a warning.
        modalities: what the model takes, in DICOM's words, such as "MR", or "CR" and "DX".
        body_parts, views: of radiographs, such as "CHEST", and "AP" and "PA"; see `radiographs.read_radiograph`.

    An item may carry ``spacing``, three voxel sizes in mm along the file's axes (of a picture, two), for files whose header is
    known to be wrong; it replaces the header's and keeps its directions.

    Raises:
        InvalidImageError: missing or unreadable file, no orientation, colours or complex numbers, wrong number of dimensions
            or channels, channels on different grids, too few voxels, over a metre, nothing finite, a constant channel; of
            DICOM, see `dicom_series.read_dicom_series` and `radiographs.read_radiograph`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        channels: int = 1,
        min_size: int = 32,
        allow_any_image: bool | str = False,
        modalities: Sequence[str] = ("MR",),
        body_parts: Sequence[str] = (),
        views: Sequence[str] = (),
    ) -> None:
        super().__init__(keys)
        self.allow_any_image = is_true(allow_any_image, "allow_any_image")
        self.channels = channels
        self.min_size = min_size
        self.modalities, self.body_parts, self.views = tuple(modalities), tuple(body_parts), tuple(views)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        warnings = list(d.get("warnings", []))
        any_image = is_true(d.setdefault("allow_any_image", self.allow_any_image), "allow_any_image")
        for key in self.key_iterator(d):
            paths = [str(p) for p in d[key]] if isinstance(d[key], (list, tuple)) else [str(d[key])]
            images = [self._load(path, any_image) for path in paths]
            d[key] = self._assemble(images, paths, d.get("spacing"))
            warnings += [warning for image in images for warning in image.warnings]
            if not images[0].has_size and d.get("spacing") is None:
                warnings.append(
                    "The file doesn't say how large a pixel is. It was taken as 1 mm: lengths and volumes are wrong."
                )
        d["warnings"] = list(dict.fromkeys(warnings))
        return d

    def _load(self, path: str, any_image: bool) -> Loaded:
        if not Path(path).exists():
            raise InvalidImageError(f"{path}: no such file.")
        try:
            loaded = self._read(path, any_image)
        except InvalidImageError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise InvalidImageError(
                f"{path}: can't be read as an image ({reason[0] if reason else type(error).__name__})."
            ) from error
        if not takes_volumes(self.modalities) and loaded.voxels.ndim > 2 and loaded.voxels.shape[2] != 1:
            raise InvalidImageError(
                f"{path}: is a volume of {tuple(loaded.voxels.shape[:3])} voxels; the model takes pictures, or one slice."
            )
        return loaded

    def _read(self, path: str, any_image: bool) -> Loaded:
        if path.lower().endswith(VOLUMES):
            return read_volume(path)
        if takes_volumes(self.modalities) and Path(path).is_dir():
            return read_dicom_series(path, self.modalities, any_image)
        if takes_pictures(self.modalities) and is_picture(path):
            loaded = read_picture(path, self.channels, any_image)
            unchecked = (
                "A picture doesn't name its view; whether it is " + " or ".join(self.views) + " was not checked."
            )
            return loaded._replace(warnings=(*loaded.warnings, *([unchecked] if self.views else [])))
        if takes_pictures(self.modalities) and is_dicom(path):
            return read_radiograph(path, self.modalities, self.body_parts, self.views, any_image)
        if is_dicom(path):
            raise InvalidImageError(f"{path}: is one image of a series; give the folder that the series lies in.")
        why = " Pictures, arrays (.npy) and Analyze (.hdr, .img) don't say where left and right are."
        raise InvalidImageError(
            f"{path}: is not of a format that the model takes; allowed are {allowed_formats(self.modalities)}."
            + (why if takes_volumes(self.modalities) else "")
        )

    def _assemble(self, images: list[Loaded], paths: list[str], spacing: Sequence[float] | None) -> MetaTensor:
        for image, path in zip(images, paths, strict=True):
            shape, size = tuple(image.voxels.shape), tuple(images[0].voxels.shape[:3])
            if len(shape) not in ((3, 4) if len(paths) == 1 else (3,)):
                raise InvalidImageError(
                    f"{path}: has {len(shape)} dimensions {shape}; allowed are a 3D volume (a radiograph: one "
                    "slice) or, for several channels, one 3D file each or one 4D file with the channels last."
                )
            if shape[:3] != size or not np.allclose(image.affine, images[0].affine, atol=1e-3):
                raise InvalidImageError(
                    f"{path}: lies on another grid than {paths[0]} (shape {shape[:3]} against {size}, or "
                    f"another affine); resample the sequences to one grid first."
                )
        first = images[0]
        channels_last = first.voxels.ndim == 4
        volume = first.voxels.movedim(-1, 0).contiguous() if channels_last else torch.stack([i.voxels for i in images])
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
            if isinstance(spacing, (list, tuple)) and len(spacing) == 2 and volume.shape[3] == 1:
                spacing = [*spacing, float(lengths[2])]
            header["header_affine"] = affine.clone()
            affine[:3, :3] *= checked_spacing(spacing) / lengths
            lengths = checked_spacing(spacing)
        if sorted(volume.shape[1:])[1] < self.min_size:
            raise InvalidImageError(
                f"{name}: is only {tuple(volume.shape[1:])} voxels, at least two axes need {self.min_size}."
            )
        extent = [float(n * s) for n, s in zip(volume.shape[1:], lengths, strict=True)]
        if max(extent) > MAX_EXTENT and (first.has_size or spacing is not None):
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
