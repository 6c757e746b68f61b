"""Volumes from files: read whatever holds an image of the model's, and say clearly why another can't be used."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..checks import is_true
from ..errors import InvalidImageError
from .assembling import assemble, on_one_grid
from .dicom_series import describe, other_modality, read_dicom_series
from .formats import VOLUMES, allowed_formats, is_dicom, is_picture, takes_pictures, takes_volumes
from .pictures import read_picture, view_by_name
from .radiographs import read_radiograph
from .volume_files import Loaded, read_volume


class LoadVolumed(MapTransform):
    """Load one volume per key as float32 ``(C, X, Y, Z)`` with its affine in mm, or say clearly why it can't be used.

    The value of a key is a path, or a list of paths with one file a channel. A 4D file holds its channels last. A model of
    volumes takes files of volumes, and a folder with one series of DICOM images. A model of pictures takes radiographs in
    DICOM, pictures, and files of a volume of one slice; a picture is ``(C, X, Y, 1)``, see `pictures.picture_affine`. NaN and
    infinity stay as they are. Its meta says in which ``unit`` what is marked in it is measured: "ml", of a picture "cm2", or
    "pixels" where their size is not known. Adds ``warnings``, a list of sentences for the reader of the result, to which the
    transforms that follow add theirs, and ``allow_any_image`` unless an item has it.

    Args:
        keys: the keys to load.
        channels: number of channels an image must have.
        min_size: fewest voxels along every in-plane axis.
        allow_any_image: whether this and the transforms that follow take what the model was not made for, with a warning.
        modalities: what the model takes, in DICOM's words, such as "MR", or "CR" and "DX".
        own_grids: let each channel lie on a grid of its own; the key then holds a list of images ``(1, X, Y, Z)``, one a
            channel, for `registering.RegisterChannelsd`.
        body_parts, views, doubtful_views: of radiographs, such as "CHEST", and "AP" and "PA"; see
            `radiographs.read_radiograph`.

    An item may carry ``spacing``, three voxel sizes in mm along the file's axes (of a picture, two), for files whose header is
    known to be wrong; it replaces the header's and keeps its directions. Several files must lie on one grid then.

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
        own_grids: bool = False,
        doubtful_views: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(keys)
        self.allow_any_image = is_true(allow_any_image, "allow_any_image")
        self.channels = channels
        self.min_size = min_size
        self.own_grids = own_grids
        self.modalities, self.body_parts, self.views = tuple(modalities), tuple(body_parts), tuple(views)
        self.doubtful_views = dict(doubtful_views or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        warnings = list(d.get("warnings", []))
        any_image = is_true(d.setdefault("allow_any_image", self.allow_any_image), "allow_any_image")
        for key in self.key_iterator(d):
            paths = [str(p) for p in d[key]] if isinstance(d[key], (list, tuple)) else [str(d[key])]
            images = [self._load(path, any_image) for path in paths]
            warnings += [warning for image in images for warning in image.warnings]
            has_size = images[0].has_size or d.get("spacing") is not None
            unit = "ml" if self._is_volume(paths[0]) else "cm2" if has_size else "pixels"
            d[key] = self._assembled(images, paths, unit, d.get("spacing"))
            if not has_size:
                warnings.append(
                    "The file doesn't say how large a pixel is: areas are in pixels, and no length is known."
                )
        d["warnings"] = list(dict.fromkeys(warnings))
        return d

    def _assembled(
        self, images: Sequence[Loaded], paths: Sequence[str], unit: str, spacing: Sequence[float] | None
    ) -> MetaTensor | list[MetaTensor]:
        if self.own_grids and len(paths) == self.channels:
            for image, path in zip(images, paths, strict=True):
                if spacing is not None and not on_one_grid(image, images[0]):
                    raise InvalidImageError(
                        f"{path}: lies on another grid than {paths[0]}, so one spacing can't be that of both; correct the "
                        "header that is wrong, or resample the sequences to one grid first."
                    )
            found = [assemble([i], [p], 1, self.min_size, spacing) for i, p in zip(images, paths, strict=True)]
        else:
            found = [assemble(images, paths, self.channels, self.min_size, spacing)]
        for image in found:
            image.meta["unit"] = unit
        if not self.own_grids:
            return found[0]
        return found if len(found) > 1 else [found[0][n : n + 1] for n in range(self.channels)]

    def _is_volume(self, path: str) -> bool:
        """Whether a file has a thickness; of what a model of pictures takes, none does."""
        return takes_volumes(self.modalities) and (path.lower().endswith(VOLUMES) or Path(path).is_dir())

    def _load(self, path: str, any_image: bool) -> Loaded:
        # pathlib takes an empty text for the current folder
        if not path or not Path(path).exists():
            raise InvalidImageError(f"{path or 'an empty path'}: no such file.")
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
            volume = read_volume(path)
            return volume._replace(warnings=(*volume.warnings, *view_by_name(path, self.views, any_image)))
        if takes_volumes(self.modalities) and Path(path).is_dir():
            return read_dicom_series(path, self.modalities, any_image)
        if takes_pictures(self.modalities) and is_picture(path):
            return read_picture(path, self.channels, self.views, any_image)
        if takes_pictures(self.modalities) and is_dicom(path):
            return read_radiograph(path, self.modalities, self.body_parts, self.views, any_image, self.doubtful_views)
        if is_dicom(path):
            modality, _ = describe(path)
            if modality and modality not in self.modalities:
                raise other_modality(path, modality, self.modalities)
            raise InvalidImageError(f"{path}: is one image of a series; give the folder that the series lies in.")
        why = " Pictures, arrays (.npy) and Analyze (.hdr, .img) don't say where left and right are."
        raise InvalidImageError(
            f"{path}: is not of a format that the model takes; allowed are {allowed_formats(self.modalities)}."
            + (why if takes_volumes(self.modalities) else "")
        )
