"""A series of images, or a radiograph, as objects can refer to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM, DSfloat

from ..errors import InvalidImageError
from ..images.dicom_pixels import read_dicom
from ..images.dicom_series import read_slices
from ..images.formats import takes_pictures

# what PS3.3 lets be empty but not absent, and what archives nevertheless drop
TYPE_2 = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
    "ReferringPhysicianName"
).split()
_SEXES = ("M", "F", "O")
# what objects take over and must be able to read; archives hold a sex of "U" and birth dates such as 19500000
_READ: dict[str, Callable[[str], Any]] = {
    "PatientBirthDate": DA,
    "PatientSex": _SEXES.index,
    "StudyDate": DA,
    "StudyTime": TM,
}
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def read_series(folder: str | Path) -> list[Dataset]:
    """The images of one series, in the order of their positions, see `read_slices`.

    Attributes that the standard requires at least empty and that a file lacks are added empty, and a missing Slice
    Thickness as the distance of the slices, so that objects can be derived. Sex, dates and times that are none of DICOM's are
    emptied.

    Raises:
        InvalidImageError: they are no volume, or lack what an object refers to them by; it names the file.
    """
    series, step = read_slices(folder)
    for dataset in series:
        _complete(dataset, (*_NEEDED, "FrameOfReferenceUID"))
        if not dataset.get("SliceThickness"):
            dataset.SliceThickness = DSfloat(step, auto_format=True)
    return series


def read_images(path: str | Path) -> list[Dataset]:
    """The images of a series in a folder, see `read_series`; or of a file the one radiograph, whose type 2 is added likewise.

    Raises:
        InvalidImageError: see `read_series`; the file is no DICOM image of one frame, or lacks what an object refers to it by.
    """
    if Path(path).is_dir():
        return read_series(path)
    dataset = read_dicom(path)
    _complete(dataset, _NEEDED)
    return [dataset]


def is_radiograph(images: Sequence[Dataset]) -> bool:
    """Whether images are one radiograph, which has no place in the body, by its modality."""
    return len(images) == 1 and takes_pictures([str(images[0].get("Modality"))])


def _complete(dataset: Dataset, needed: Sequence[str]) -> None:
    missing = [keyword for keyword in needed if not dataset.get(keyword)]
    if missing:
        raise InvalidImageError(f"{dataset.filename}: has no {', '.join(missing)}, by which objects refer to it.")
    for keyword in TYPE_2:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    for keyword, read in _READ.items():
        value = str(dataset.get(keyword) or "")
        try:
            if value:
                read(value)
        except ValueError:
            setattr(dataset, keyword, None)
    if not re.fullmatch("[0-9]{3}[DWMY]", str(dataset.get("PatientAge", ""))):
        dataset.pop("PatientAge", None)  # objects take it over, and some files say "77"
