"""The grid that an image lies on, whatever holds it, for masks that are read beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from ..errors import InvalidImageError
from .formats import NIFTI, VOLUMES, VOLUMETRIC, is_picture
from .geometry import check_affine, load_nifti, millimetres
from .loading import LoadVolumed
from .pictures import read_picture
from .radiographs import read_radiograph
from .volume_files import read_volume


def image_grid(path: str | Path) -> MetaTensor:
    """The grid of an image of any kind: ``(C, X, Y, Z)`` as its file has it, with ``input_affine`` in its meta.

    Of a NIfTI only the header is read, as its voxels take time: what is returned has zeros in their place.

    Args:
        path: of a file, which may hold its channels last, or of a folder with one DICOM series.

    Raises:
        InvalidImageError: it can't be read, or has other than three dimensions beside that of the channels.
    """
    path = Path(path)
    if path.is_dir():
        load = LoadVolumed("image", min_size=1, allow_any_image=True, modalities=VOLUMETRIC)
        series: MetaTensor = load({"image": str(path)})["image"]
        return series
    try:
        if path.name.lower().endswith(NIFTI):
            image = load_nifti(str(path))
            voxels = torch.zeros(1).expand(image.shape)
            mm, has_size = millimetres(image.header), True
            affine = torch.from_numpy(np.diag([mm, mm, mm, 1.0]) @ image.affine)
        elif is_picture(str(path)):
            voxels, affine, _, has_size = read_picture(str(path), 3)
        elif path.name.lower().endswith(VOLUMES):
            voxels, affine, _, has_size = read_volume(str(path))
        else:
            voxels, affine, _, has_size = read_radiograph(str(path), ())
    except InvalidImageError:
        raise
    except Exception as error:
        raise InvalidImageError(f"{path}: can't be read ({error}).") from error
    while voxels.ndim > 4 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim not in (3, 4):
        raise InvalidImageError(f"{path}: has {voxels.ndim} dimensions, 3 or 4 are allowed.")
    check_affine(str(path), affine)
    meta = {"filename_or_obj": str(path), "input_affine": affine.clone(), "unit": "ml" if has_size else "pixels"}
    return MetaTensor(voxels.reshape(*voxels.shape[:3], -1).movedim(-1, 0), affine=affine, meta=meta)
