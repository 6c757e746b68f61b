"""A volume from a folder with one series of DICOM images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import torch
from pydicom.dataset import Dataset

from ..errors import InvalidImageError
from .dicom_pixels import modality_values, read_dicom, stored_values
from .dicom_planes import checked_step, orientation, position
from .formats import dicom_files
from .volume_files import TO_RAS, Loaded

_NEEDED = "SeriesInstanceUID ImageOrientationPatient ImagePositionPatient PixelSpacing".split()
_ALIKE = "Rows Columns PixelSpacing ImageOrientationPatient FrameOfReferenceUID".split()


def describe(path: str | Path) -> tuple[str, str]:
    """The Modality of a DICOM file, or of a folder's first, and what its series is called; "" for what it doesn't say."""
    try:
        file = dicom_files(path)[0] if Path(path).is_dir() else path
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
    except Exception:  # the loader will say it
        return "", ""
    return str(dataset.get("Modality") or ""), _name(dataset)


def study_of(folder: str | Path) -> tuple[str, int]:
    """Of a series in a folder, by its first file: the UID of its study ("" if unknown), and its number."""
    try:
        dataset = pydicom.dcmread(dicom_files(folder)[0], stop_before_pixels=True)
        return str(dataset.get("StudyInstanceUID") or ""), int(dataset.get("SeriesNumber") or 0)
    except Exception:  # the loader will say it
        return "", 0


def read_dicom_series(folder: str, modalities: Sequence[str], allow_any_image: bool = False) -> Loaded:
    """The volume of a series: its columns, rows and slices, in the modality's own unit, and their affine.

    Args:
        folder: its DICOM files are those of one series, one image a file; other files, and folders in it, are passed over.
        modalities: those allowed (0008,0060).
        allow_any_image: take others, with a warning.

    Raises:
        InvalidImageError: another modality, or see `read_slices`.
    """
    modality, _ = describe(folder)
    warnings = []
    if modality and modality not in modalities:
        if not allow_any_image:
            raise other_modality(folder, modality, modalities)
        warnings.append(f"The modality is {modality}, the model takes {' and '.join(modalities)}.")
    series, step = read_slices(folder)
    row, column = orientation(series[0])
    down, across = (float(s) for s in series[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([row * across, column * down, np.cross(row, column) * step, position(series[0])], axis=1)
    slices = [modality_values(d, stored_values(d)).T.astype(np.float32) for d in series]
    return Loaded(torch.from_numpy(np.stack(slices, axis=-1)), torch.from_numpy(TO_RAS @ affine), tuple(warnings))


def other_modality(path: str, modality: str, modalities: Sequence[str]) -> InvalidImageError:
    """The refusal of an image that is of another modality than the model's."""
    return InvalidImageError(f"{path}: its modality is {modality}; the model takes {' and '.join(modalities)}.")


def read_slices(folder: str | Path) -> tuple[list[Dataset], float]:
    """The images of a series, in the order of their positions along their normal, and their distance in mm.

    The normal is the cross product of the row's and the column's direction.

    Args:
        folder: its DICOM files are those of one series, one image a file; other files, and folders in it, are passed over.

    Raises:
        InvalidImageError: no DICOM file, several series, images that are broken or not single slices with a position, two at
            one position, or slices that are no even grid (an image is missing, a gantry tilt); it names them.

    Source: PS3.3 C.7.6.2.1.1 (Image Position and Image Orientation).
    """
    paths = dicom_files(folder) if Path(folder).is_dir() else []
    if not paths:
        raise InvalidImageError(f"{folder}: no DICOM file lies in this folder; give the folder of one series.")
    series = [_read_slice(path) for path in paths]
    _check_alike(folder, series)
    normal = np.cross(*orientation(series[0]))
    series.sort(key=lambda d: float(normal @ position(d)))
    return series, checked_step(folder, series)


def _name(dataset: Dataset) -> str:
    return str(dataset.get("SeriesDescription") or dataset.get("ProtocolName") or "").strip()


def _read_slice(path: Path) -> Dataset:
    dataset = read_dicom(path)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        # what is bright and what is dark would be exchanged, and no MR image of a scanner is stored so
        raise InvalidImageError(
            f"{path}: shows high values dark (MONOCHROME1); allowed are slices that show them bright."
        )
    missing = [keyword for keyword in _NEEDED if keyword not in dataset or dataset[keyword].is_empty]
    if missing:
        raise InvalidImageError(
            f"{path}: is not a slice with a position in space (no {', '.join(missing)}); a volume is made of such only."
        )
    # pydicom returns what there is of pixels that end too early
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    if not compressed and len(dataset.PixelData) < dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8:
        raise InvalidImageError(f"{path}: ends before its last pixel; the file is not complete, fetch it again.")
    return dataset


def _check_alike(folder: str | Path, series: Sequence[Dataset]) -> None:
    several = defaultdict(list)
    for dataset in series:
        several[dataset.SeriesInstanceUID].append(dataset)
    if len(several) > 1:
        names = [f"{_name(group[0]) or uid!r} ({len(group)} images)" for uid, group in several.items()]
        raise InvalidImageError(
            f"{folder}: holds {len(several)} series: {', '.join(names)}; move each to a folder of its own and give the one "
            "that is meant."
        )
    first = series[0]
    for dataset in series:
        for keyword in _ALIKE:
            a, b = dataset.get(keyword), first.get(keyword)
            if not (
                a == b if a is None or b is None or isinstance(a, (str, int)) else np.allclose(a, b, rtol=0, atol=1e-4)
            ):
                raise InvalidImageError(
                    f"{dataset.filename}: its {keyword} {a} differs from {b} of {Path(first.filename).name}; slices must be "
                    "alike."
                )
