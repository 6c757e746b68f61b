"""A one-slice volume from a picture: PNG, JPEG or TIFF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
import torch
from PIL import ExifTags, Image, ImageOps

from ..errors import InvalidImageError
from .volume_files import Loaded, read_by_itk

COLOURED = 16
"""Levels of 255 that red, green and blue of a grey pixel may differ by, as JPEG rounds."""

PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
"""TIFF's tag for what its values mean, and the one that means a negative."""

_AXES = {"L": (-1, 0, 0), "R": (1, 0, 0), "F": (0, -1, 0), "H": (0, 1, 0)}


def picture_affine(
    spacing: Sequence[float] = (1.0, 1.0), along_row: str = "L", along_column: str = "F"
) -> torch.Tensor:
    """The affine ``(4, 4)``, RAS in mm, of a picture ``(X, Y, 1)``: X counts its columns, Y its rows, from the top left.

    A picture has no place in the body. As in ITK and in most of the field it lies as an axial slice does: X to the patient's
    left, Y, which is downwards in the picture, where posterior is, so that the order "LPS" shows it upright. Its one slice is
    1 mm thick.

    Args:
        spacing: of columns and of rows.
        along_row: where X goes: to the patient's left ("L"), right ("R"), feet ("F") or head ("H").
        along_column: where Y goes, likewise.
    """
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(_AXES[along_row], spacing[0])
    affine[:3, 1] = np.multiply(_AXES[along_column], spacing[1])
    return torch.from_numpy(affine)


def read_picture(path: str, channels: int = 1, views: Sequence[str] = (), allow_any_image: bool = False) -> Loaded:
    """A picture as float32 ``(X, Y, 1)``, or its three colours as ``(X, Y, 1, 3)`` where a model takes three channels.

    It lies as its EXIF data wants it shown. Grey pictures may be stored as colours, with a palette or with an alpha channel,
    which is left aside. All of 16 bits is kept. The dots an inch that a file gives are those of a screen or of a printer, not
    of a detector, so the size of a pixel is unknown.

    Args:
        path: of the file.
        channels: that the model takes.
        views: that the model takes; none allows any. A picture says nothing of its view, but its name may.
        allow_any_image: take a coloured picture's brightness, or what is named as a lateral view, with a warning.

    Raises:
        InvalidImageError: several pages, a lateral view by its name, or colours for a model that takes no three channels.
        Exception: whatever Pillow says of a broken file.
    """
    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        number = getattr(image, "n_frames", 1)
        if number > 1:
            raise InvalidImageError(f"{path}: holds {number} pictures; allowed is one.")
        array = _array(path, image)
    warnings = view_by_name(path, views, allow_any_image)
    if array.ndim == 3 and channels != 3:
        levels = 65535 if array.dtype == np.uint16 else 255
        if np.ptp(array.astype(np.float32), axis=2).max() * 255 / levels > COLOURED:
            if not allow_any_image:
                raise InvalidImageError(
                    f"{path}: is a coloured picture; the model takes {channels} channel(s), one grey picture each."
                )
            warnings.append("The picture is coloured. Its brightness was taken.")
        array = array @ np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow
    voxels = torch.from_numpy(np.ascontiguousarray(array.swapaxes(0, 1)[:, :, None], dtype=np.float32))
    return Loaded(voxels, picture_affine(), tuple(warnings), has_size=False)


def view_by_name(path: str, views: Sequence[str], allow_any_image: bool) -> list[str]:
    """A warning on the view of a file that says nothing of it, as its name may; none where any view is allowed.

    Args:
        path: of the file.
        views: that the model takes; none allows any.
        allow_any_image: take what is named as a lateral view too.

    Raises:
        InvalidImageError: a lateral view by its name.
    """
    if not views:
        return []
    lateral = re.search("(?<![a-z])lat(eral)?(?![a-z])", Path(path).stem, re.IGNORECASE)
    if lateral and not allow_any_image:
        raise InvalidImageError(f"{path}: is named as a lateral view; the model takes {' or '.join(views)}.")
    said = "is named as a lateral view" if lateral else "doesn't name its view"
    return [f"The image {said}; whether it is {' or '.join(views)} was not checked."]


def _array(path: str, image: Image.Image) -> np.ndarray:
    """Grey ``(rows, columns)`` or colours ``(rows, columns, 3)``, upright."""
    with open(path, "rb") as file:
        header = file.read(26)
    if image.format == "PNG" and header[24] == 16 and header[25] != 0:
        # 16 bits of colours or alpha, of which Pillow keeps 8
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            raise InvalidImageError(f"{path}: is to be turned by its EXIF data; save it upright.")
        array = SimpleITK.GetArrayFromImage(read_by_itk(path, imageIO="PNGImageIO"))
        return array[..., 0] if array.shape[-1] == 2 else array[..., :3]
    # Pillow turns the grey of 8 bits only
    negative = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "LA":
        return np.asarray(upright)[..., 0]
    if upright.mode in ("1", "L", "I", "F") or upright.mode.startswith("I;16"):
        array = np.asarray(upright)
        return 65535 - array if negative else array
    return np.asarray(upright.convert("RGB"))
