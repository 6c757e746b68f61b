"""NIfTI files that a command makes of a data set's own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from ..files import replacing


def save(image: nib.Nifti1Image, path: Path, may_replace: bool) -> None:
    """Write a NIfTI file (.nii.gz) whole or not at all; one with the same voxels and affine stays, with its time of change.

    Args:
        image: to write.
        path: of the file.
        may_replace: whether another volume there may be written over.

    Raises:
        ValueError: another volume, or no volume, is there, and may not.
    """
    if path.exists():
        if _is(image, path):
            return
        if not may_replace:
            raise ValueError(
                f"{path}: is there already and is another volume; give another --images, or --overwrite true."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        nib.save(image, partial)


def _is(image: nib.Nifti1Image, path: Path) -> bool:
    try:
        there = nib.load(path)
        return np.allclose(there.affine, image.affine) and np.array_equal(there.dataobj, image.dataobj)
    except Exception:  # whatever it is, nibabel can't read it
        return False
