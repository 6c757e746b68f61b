"""A series of images, as objects can refer to it."""

from __future__ import annotations

from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from ..errors import InvalidImageError
from ..images.dicom_series import read_slices

# what PS3.3 lets be empty but not absent, and what archives nevertheless drop
TYPE_2 = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
    "ReferringPhysicianName"
).split()
_NEEDED = ("StudyInstanceUID", "FrameOfReferenceUID")


def read_series(folder: str | Path) -> list[Dataset]:
    """The images of one series, in the order of their positions, see `read_slices`.

    Attributes that the standard requires at least empty and that a file lacks are added empty, and a missing Slice
    Thickness as the distance of the slices, so that objects can be derived.

    Raises:
        InvalidImageError: they are no volume, or lack what an object refers to them by; it names the file.
    """
    series, step = read_slices(folder)
    for dataset in series:
        missing = [keyword for keyword in _NEEDED if not dataset.get(keyword)]
        if missing:
            raise InvalidImageError(f"{dataset.filename}: has no {', '.join(missing)}, by which objects refer to it.")
        for keyword in TYPE_2:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
        if not dataset.get("SliceThickness"):
            dataset.SliceThickness = DSfloat(step, auto_format=True)
    return series
