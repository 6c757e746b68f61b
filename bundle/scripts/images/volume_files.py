"""Voxels and affine from the files of volumes."""

from __future__ import annotations

import gzip
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK
import torch

from ..errors import InvalidImageError
from ..sources import header_fields
from .formats import NIFTI
from .geometry import load_nifti, millimetres

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the axes of ITK and DICOM (left, posterior, superior) to those of NIfTI (right, anterior, superior), and back."""

SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior")
"""What the axes of a NRRD file may be. Others say nothing of the patient, or have time and ITK takes them for the first."""

DIRECTIONS = {"space directions", "transformmatrix", "rotation", "orientation"}
"""Fields of a header that say where the axes go, of NRRD and of MetaImage. Without one, ITK takes the patient's own axes."""

EXCHANGED = "The file's sform and qform exchange left and right. The sform was taken; check the side of what is marked."


class Loaded(NamedTuple):
    """What a file holds: float32 ``(X, Y, Z)`` or, of several channels, ``(X, Y, Z, C)``, and its affine in mm, RAS.

    Where the file does not say how large a pixel is, `has_size` is False and its edge counts as 1 mm.
    """

    voxels: torch.Tensor
    affine: torch.Tensor
    warnings: tuple[str, ...] = ()
    has_size: bool = True


def read_volume(path: str) -> Loaded:
    """A volume of NIfTI, MGZ, NRRD or MetaImage.

    Raises:
        InvalidImageError: no orientation, colours or complex numbers.
        Exception: whatever the library says of a broken file.
    """
    lower = path.lower()
    warnings: tuple[str, ...] = ()
    if lower.endswith(NIFTI):
        array, affine, warnings = _nifti(path)
    else:
        array, affine = _mgz(path) if lower.endswith(".mgz") else _itk(path)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Loaded(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), torch.from_numpy(affine), warnings)


def _nifti(path: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    image = load_nifti(path)
    kind = image.get_data_dtype()
    if kind.kind == "c":
        raise InvalidImageError(
            f"{path}: holds complex numbers, of which the phase would be lost; give their magnitude."
        )
    if kind.fields:
        raise InvalidImageError(f"{path}: is a colour picture, not an image with one value a voxel.")
    if int(image.header["qform_code"]) == 0 and int(image.header["sform_code"]) == 0:
        raise InvalidImageError(
            f"{path}: its orientation is unknown (qform_code and sform_code are 0); set one of them."
        )
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= millimetres(image.header)
    warnings = (EXCHANGED,) if _sides_differ(image) else ()
    return np.asarray(image.dataobj).astype(np.float32), affine, warnings


def _sides_differ(image: nib.Nifti1Image) -> bool:
    """Whether what one of the file's two affines calls left is rather right by the other."""
    try:
        affines = [affine for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)) if code]
    except ValueError:  # of a broken qform nothing is taken
        return False
    # one without length is refused later
    left = [(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0).clip(1e-9))[0] for affine in affines]
    return len(left) == 2 and float(left[0] @ left[1]) < 0


def _mgz(path: str) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    with gzip.open(path) as file:  # nibabel makes up an orientation where there is none
        known = file.read(30)[28:] != b"\0\0"
    if not known:
        raise InvalidImageError(f"{path}: its orientation is unknown (goodRASFlag is 0); set it.")
    return np.asarray(image.dataobj).astype(np.float32), np.array(image.affine, dtype=np.float64)


def read_by_itk(path: str, **options: Any) -> SimpleITK.Image:
    """A file as ITK reads it.

    Raises:
        ValueError: it can't; ITK's own words are of its source code.
    """
    try:
        return SimpleITK.ReadImage(path, **options)
    except RuntimeError as error:
        raise ValueError("is it complete, and is the file of its voxels beside it?") from error


def _check_space(path: str, image: SimpleITK.Image) -> None:
    space = image.GetMetaData("NRRD_space") if image.HasMetaDataKey("NRRD_space") else None
    if space not in (*SPACES, f"{SPACES[0]}-time"):
        said = "it has no field 'space'" if space is None else f"its field 'space' is {space}"
        raise InvalidImageError(f"{path}: its orientation is unknown ({said}); set it to one of {', '.join(SPACES)}.")


def _itk(path: str) -> tuple[np.ndarray, np.ndarray]:
    image = read_by_itk(path)
    if "complex" in image.GetPixelIDTypeAsString():
        raise InvalidImageError(
            f"{path}: holds complex numbers, of which the phase would be lost; give their magnitude."
        )
    if path.lower().endswith(".nrrd"):
        _check_space(path, image)
    dimension = image.GetDimension()
    if dimension >= 3 and not header_fields(path) & DIRECTIONS:
        field = "space directions" if path.lower().endswith(".nrrd") else "TransformMatrix"
        raise InvalidImageError(f"{path}: its orientation is unknown (its header has no field '{field}'); set it.")
    array = SimpleITK.GetArrayFromImage(image)
    # ITK's arrays have the first axis last, but for components
    components = image.GetNumberOfComponentsPerPixel() > 1
    array = array.transpose(*reversed(range(dimension)), *([dimension] if components else []))
    affine = np.eye(4)
    if dimension >= 3:
        directions = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3]
        affine[:3, :3] = directions * image.GetSpacing()[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
    return array, TO_RAS @ affine
