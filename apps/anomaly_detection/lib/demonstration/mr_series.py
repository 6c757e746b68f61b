"""A NIfTI volume as a series of MR images, for demonstrations and tests."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

# the bundle has the same, but `serve.py` makes its sample without loading the bundle
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# what PS3.3 lets be empty but not absent
_TYPE_2 = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime ReferringPhysicianName "
    "PatientPosition PositionReferenceIndicator Manufacturer ScanOptions MRAcquisitionType RepetitionTime EchoTime "
    "EchoTrainLength"
).split()


def series_from_nifti(
    path: str | Path,
    folder: str | Path,
    *,
    modality: str = "MR",
    series_description: str,
    patient_id: str,
    patient_name: str,
    study_uid: str | None = None,
    series_uid: str | None = None,
    series_number: int = 1,
) -> list[Path]:
    """Write a NIfTI volume as a series of MR images, one file for each slice along its third axis.

    It makes demonstration and test data: what only a scanner knows (sequence, echo time, date) is left empty. Integers
    from 0 to 65535 are stored as they are. Other intensities are scaled to 16 bits, with Rescale Slope and Intercept
    that give them back; where none is negative the intercept is 0, so that readers which do not apply a rescale to MR
    see the same image in another unit.

    Args:
        path: of a 3D volume ``(X, Y, Z)`` with perpendicular axes, in any orientation, voxel sizes in mm.
        folder: where the files go; made if it doesn't exist.
        modality: Modality (0008,0060) of the series.
        series_description: at most 64 characters.
        patient_id: series with the same one share a study, unless `study_uid` is given.
        patient_name: as DICOM writes it, ``Family^Given``.
        study_uid: by default derived from the patient's ID. The Frame of Reference UID is derived from it.
        series_uid: by default derived from the study and the description.
        series_number: within the study.

    Returns:
        the files, in the order of the volume's third axis.

    Raises:
        ValueError: not a 3D volume, an unknown orientation, axes that aren't perpendicular, NaN or infinity.

    Source: PS3.3 A.4 (MR Image IOD), C.7.6.2 (Image Plane), C.8.3.1 (MR Image).
    """
    values, lps = _volume(path)
    stored, slope, intercept = _stored(values)
    study_uid = study_uid or _uid(patient_id, "study")
    series_uid = series_uid or _uid(study_uid, series_description)
    shared = _of_a_nifti()
    shared.PatientID = patient_id
    shared.PatientName = patient_name
    shared.StudyInstanceUID = study_uid
    shared.SeriesInstanceUID = series_uid
    shared.SeriesNumber = series_number
    shared.SeriesDescription = series_description
    shared.Modality = modality
    shared.FrameOfReferenceUID = _uid(study_uid, "frame of reference")
    _place(shared, lps)
    _describe_pixels(shared, stored, slope, intercept)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(stored.shape[2]):
        dataset = deepcopy(shared)
        dataset.SOPInstanceUID = _uid(series_uid, str(k))
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [_ds(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        paths.append(folder / f"IM{k + 1:04d}.dcm")
        dataset.save_as(paths[-1], write_like_original=False)
    return paths


def _volume(path: str | Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """The voxels of a NIfTI that a series can hold, and their affine in mm to the left, posterior, superior."""
    image = nib.load(path)
    header = image.header
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        raise ValueError(f"{path}: its orientation is unknown (qform_code and sform_code are 0); set one of them.")
    values = np.asanyarray(image.dataobj)
    if values.ndim != 3:
        raise ValueError(f"{path}: has {values.ndim} dimensions {values.shape}; a series is made from a 3D volume.")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: holds NaN or infinity; every voxel must be finite.")
    lps = TO_LPS @ image.affine
    axes = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    if not np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4:
        raise ValueError(f"{path}: its axes are not perpendicular, which DICOM can't express; resample it first.")
    return values, lps


def _of_a_nifti() -> pydicom.Dataset:
    """What all such series say, and leave empty as the file doesn't say it."""
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    dataset.SOPClassUID = MRImageStorage
    for keyword in _TYPE_2:
        setattr(dataset, keyword, None)
    dataset.StudyDescription = "Brain MR, converted from NIfTI"
    dataset.BodyPartExamined = "BRAIN"
    dataset.BurnedInAnnotation = "NO"
    # RM: the file doesn't tell the sequence, and the standard asks for one
    dataset.ScanningSequence = "RM"
    dataset.SequenceVariant = "NONE"
    return dataset


def _place(dataset: pydicom.Dataset, lps: NDArray[np.float64]) -> None:
    """Enter how the slices of an affine lie, all but where each begins."""
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    dataset.SliceThickness = _ds(spacing[2])
    dataset.SpacingBetweenSlices = _ds(spacing[2])
    dataset.PixelSpacing = [_ds(spacing[1]), _ds(spacing[0])]
    dataset.ImageOrientationPatient = [_ds(v) for v in (*axes[:, 0], *axes[:, 1])]


def _describe_pixels(dataset: pydicom.Dataset, stored: NDArray[np.uint16], slope: float, intercept: float) -> None:
    """Enter what the numbers stored mean, and the window to see them in."""
    low, high = np.percentile(stored, (0.5, 99.5)) * slope + intercept
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Columns, dataset.Rows = stored.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    if (slope, intercept) != (1.0, 0.0):
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = _ds(slope), _ds(intercept), "US"
    # LINEAR, the default, has no meaning for a width under 1, which intensities in [0, 1] need
    dataset.VOILUTFunction = "LINEAR_EXACT"
    dataset.WindowCenter = _ds((low + high) / 2)
    dataset.WindowWidth = _ds(high - low if high > low else 1.0)


def _uid(*sources: str) -> str:
    # pydicom joins them without a separator
    return str(generate_uid(entropy_srcs=["\n".join(sources)]))


def _ds(value: float) -> DSfloat:
    """`value` with all the digits that the 16 characters of a decimal string hold."""
    return DSfloat(float(value), auto_format=True)


def _stored(values: NDArray[np.generic]) -> tuple[NDArray[np.uint16], float, float]:
    """Values as 16-bit integers, with the slope and intercept, as rounded for DICOM, that give them back."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535 and bool((values == np.rint(values)).all()):
        return values.astype(np.uint16), 1.0, 0.0
    intercept = float(_ds(min(low, 0.0)))
    # a constant volume has no range
    slope = float(_ds((high - intercept) / 65535 or 1.0))
    return np.rint((values.astype(np.float64) - intercept) / slope).clip(0, 65535).astype(np.uint16), slope, intercept
