"""Results as NIfTI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from ..images.geometry import affine_like, load_nifti
from .inputs import SUFFIXES

GRID = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""The fields of a NIfTI header that say where its voxels lie."""


def save_nifti(image: MetaTensor, source: str | Sequence[str], path: Path) -> None:
    """Save ``(C, X, Y, Z)`` on the grid of the file it came from, channels last if several.

    Affine, codes and units are those of the file; nothing else of its header is, as the other fields and the extensions may
    hold the patient's name.

    Args:
        image: with its affine in mm.
        source: the path of that file, or of one file a channel.
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
    if first.lower().endswith(SUFFIXES):
        original = load_nifti(first)
        affine = affine_like(affine, original)
        for field in GRID:
            header[field] = original.header[field]
    header.set_data_dtype(array.dtype)
    nib.save(nib.Nifti1Image(array, affine, header), path)
