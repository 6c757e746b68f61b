"""The images of a series that were fetched, and the volume that they make."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
from monailabel.datastore.utils.convert import dicom_to_nifti
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset

from lib.grids import grid_of


def instances_in(folder: Path) -> set[str]:
    """The SOPInstanceUIDs of the images in a folder; none where it is not there."""
    return {path.name.removesuffix(".dcm") for path in folder.glob("*.dcm")}


def picture_of(folder: Path) -> Path:
    """The one radiograph that is fetched into a folder.

    Raises:
        ValueError: there are several.
    """
    files = sorted(folder.glob("*.dcm"))
    if len(files) != 1:
        raise ValueError(f"holds {len(files)} radiographs; allowed is a series of one.")
    return files[0]


def volume_of(image_id: str, folder: Path, picture: bool = False) -> str:
    """The path of a new NIfTI of fetched images, on whose grid objects can be written for them.

    Args:
        image_id: of the series, for messages.
        folder: of its images.
        picture: whether they are a radiograph, which is one slice without a place in the body.

    Raises:
        MONAILabelException: INVALID_INPUT, they are no volume; the message says why.
    """
    from scripts.dicom.placing import check_on_series
    from scripts.dicom.series import read_series
    from scripts.images.radiographs import read_radiograph

    series: list[Dataset] = []
    nifti = None
    try:
        if picture:
            return _written(read_radiograph(str(picture_of(folder)), ()))
        series = read_series(folder)
        nifti = dicom_to_nifti(str(folder))
        check_on_series(series, *grid_of(nifti))
    except Exception as error:
        if nifti:
            os.unlink(nifti)
        message = str(error).replace(f"{folder}{os.sep}", "").removeprefix(f"{folder}: ")
        compressed = {d.file_meta.TransferSyntaxUID for d in series} if series and not nifti else set()
        names = sorted(str(uid.name) for uid in compressed if uid.is_compressed)
        if names:
            message = f"its transfer syntax {', '.join(names)} can't be decoded; let the server send another one."
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"Series {image_id} can't be read as a volume: {message}"
        ) from error
    return str(nifti)


def _written(image: Any) -> str:
    handle, path = tempfile.mkstemp(suffix=".nii.gz")
    os.close(handle)
    nib.save(nib.Nifti1Image(image.voxels.numpy(), image.affine.numpy()), path)
    return path
