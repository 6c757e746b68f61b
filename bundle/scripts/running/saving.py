"""Results as NIfTI, and as a picture of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from PIL import Image

from ..images.formats import NIFTI, VOLUMES
from ..images.geometry import affine_like, load_nifti
from ..images.restoring import COLOURS

GRID = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""The fields of a NIfTI header that say where its voxels lie."""


def save_nifti(image: MetaTensor, source: str | Sequence[str], path: Path) -> None:
    """Save ``(C, X, Y, Z)`` on the grid of the file it came from, channels last if several.

    Whatever the format of that file, this is a NIfTI file with the same affine. Of NIfTI files, codes and units are kept too;
    nothing else of their headers is, as the other fields and the extensions may hold the patient's name.

    Args:
        image: with its affine in mm.
        source: the path of that file or DICOM series' folder, or of one file a channel.
        path: what to write.
    """
    array = image.as_tensor().numpy()
    array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    affine = image.affine.numpy()
    first = source if isinstance(source, str) else source[0]
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_qform(affine, "unknown")  # the voxel sizes
    header.set_sform(affine, "aligned")
    if first.lower().endswith(NIFTI):
        original = load_nifti(first)
        affine = affine_like(affine, original)
        for field in GRID:
            header[field] = original.header[field]
    header.set_data_dtype(array.dtype)
    nib.save(nib.Nifti1Image(array, affine, header), path)


def is_of_picture(image: MetaTensor, source: str | Sequence[str]) -> bool:
    """Whether a result ``(C, X, Y, 1)`` is of a picture or a radiograph, not of a file of a volume or of a DICOM series."""
    first = Path(source if isinstance(source, str) else source[0])
    return image.shape[-1] == 1 and not first.is_dir() and not first.name.lower().endswith(VOLUMES)


def save_labels_png(labels: MetaTensor, path: Path) -> None:
    """Save the mask ``(1, X, Y, 1)`` of a picture as one of exactly as many pixels, to be laid over it.

    A pixel's value is its label, 0 to 2; a palette gives it `COLOURS`.
    """
    picture = Image.fromarray(labels[0, :, :, 0].as_tensor().numpy().astype(np.uint8).T, mode="P")
    picture.putpalette([v for label in range(max(COLOURS) + 1) for v in COLOURS.get(label, (0, 0, 0))])
    picture.save(path, transparency=0)
