"""The images of a series that were fetched, and the volume that they make."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nibabel as nib
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException


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
    """The path of a new NIfTI beside the folder of fetched images, on whose grid objects can be written for them.

    Args:
        image_id: of the series, for messages.
        folder: of its images.
        picture: whether they are a radiograph, which is one slice without a place in the body.

    Raises:
        MONAILabelException: INVALID_INPUT, they are no volume; the message says why.
    """
    from scripts.dicom.series import read_series
    from scripts.images.dicom_series import read_dicom_series
    from scripts.images.radiographs import read_radiograph

    try:
        if picture:
            image = read_radiograph(str(picture_of(folder)), ())
        else:
            read_series(folder)  # refuses what no object could refer to
            image = read_dicom_series(str(folder), (), allow_any_image=True)
    except Exception as error:
        message = str(error).replace(f"{folder}{os.sep}", "").removeprefix(f"{folder}: ")
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"Series {image_id} can't be read as a volume: {message}"
        ) from error
    handle, path = tempfile.mkstemp(suffix=".nii.gz", dir=folder.parent)
    os.close(handle)
    try:
        nib.save(nib.Nifti1Image(image.voxels.numpy(), image.affine.numpy()), path)
    except BaseException:
        os.unlink(path)
        raise
    return path
