"""A series of single-frame images, read from its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.valuerep import DSfloat, format_number_as_ds

from .planes import check_even, orientation, position

# what PS3.3 lets be empty but not absent, and what archives nevertheless drop
TYPE_2 = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
    "ReferringPhysicianName"
).split()
_NEEDED = (
    "StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID ImageOrientationPatient ImagePositionPatient PixelSpacing "
    "Rows Columns BitsAllocated PixelData"
).split()


def read_series(folder: str | Path) -> list[pydicom.Dataset]:
    """Read the single-frame images of one series, in the order of their positions.

    Attributes that the standard requires at least empty and that a file lacks are added empty, and a missing Slice
    Thickness as the distance of the slices, so that objects can be derived.

    Args:
        folder: holds the files of one series and nothing else; hidden files and folders in it are passed over.

    Returns:
        one dataset a slice, along the normal of the slices (the cross product of the row's and column's direction).

    Raises:
        ValueError: no file, a file that isn't DICOM or is broken, not a single-frame image, several series, slices of
            several shapes or orientations, two slices at one position, slices that are not evenly spaced along their
            normal (a missing image, a gantry tilt). The message names the file or what was found.

    Source: PS3.3 C.7.6.2.1.1 (Image Position and Image Orientation).
    """
    folder = Path(folder)
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != ".") if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder}: there are no files; give the folder of one series of DICOM images.")
    series = [_read(path) for path in paths]
    first = series[0]
    for dataset, path in zip(series, paths, strict=True):
        if dataset.SeriesInstanceUID != first.SeriesInstanceUID:
            raise ValueError(f"{path}: belongs to another series than {paths[0].name}; give a folder a series.")
        for keyword in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "FrameOfReferenceUID"):
            a, b = dataset[keyword].value, first[keyword].value
            if not (a == b if isinstance(a, (str, int)) else np.allclose(a, b, rtol=0, atol=1e-4)):
                raise ValueError(
                    f"{path}: its {keyword} {a} differs from {b} of {paths[0].name}; slices must be alike."
                )
    normal = np.cross(*orientation(first))
    series.sort(key=lambda d: float(normal @ position(d)))
    gaps = np.diff([float(normal @ position(d)) for d in series])
    if len(gaps) and gaps.min() < 1e-3:
        a, b = series[int(gaps.argmin())], series[int(gaps.argmin()) + 1]
        raise ValueError(f"{b.filename}: lies at the position of {Path(a.filename).name}; give one volume a series.")
    check_even(series)
    for dataset in series:
        for keyword in TYPE_2:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
        if not dataset.get("SliceThickness"):
            distance = gaps[0] if len(gaps) else dataset.get("SpacingBetweenSlices")
            if not distance:
                raise ValueError(f"{dataset.filename}: is a single slice without Slice Thickness; set it.")
            dataset.SliceThickness = as_ds(distance)
    return series


def as_ds(value: float) -> DSfloat:
    """`value` with all the digits that the 16 characters of a decimal string hold."""
    return DSfloat(format_number_as_ds(float(value)))


def _read(path: Path) -> pydicom.Dataset:
    try:
        dataset = pydicom.dcmread(path)
        missing = [keyword for keyword in _NEEDED if keyword not in dataset or dataset[keyword].is_empty]
        compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    except InvalidDicomError as error:
        raise ValueError(f"{path}: is not a DICOM file; give a folder with the files of one series only.") from error
    except Exception as error:
        raise ValueError(f"{path}: can't be read ({error or type(error).__name__}); is the file complete?") from error
    if missing:
        raise ValueError(
            f"{path}: is not a single-frame image with a position in space (no {', '.join(missing)}); only such images "
            "can be worked on."
        )
    # pydicom returns what there is of pixels that end too early
    if not compressed and len(dataset.PixelData) < dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8:
        raise ValueError(f"{path}: ends before its last pixel; the file is not complete, fetch it again.")
    return dataset
