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
from .formats import dicom_files
from .volume_files import TO_RAS, Loaded

TOLERANCE = 0.05
"""How far a slice may lie off its place, as a part of the slices' distance or of a pixel: what rounding in headers makes."""

_NEEDED = "SeriesInstanceUID ImageOrientationPatient ImagePositionPatient PixelSpacing".split()
_ALIKE = "Rows Columns PixelSpacing ImageOrientationPatient FrameOfReferenceUID".split()


def describe(folder: str | Path) -> tuple[str, str]:
    """The Modality of a folder's first DICOM file, and what its series is called; "" for what it doesn't say."""
    try:
        dataset = pydicom.dcmread(dicom_files(folder)[0], stop_before_pixels=True)
    except Exception:  # the loader will say it
        return "", ""
    return str(dataset.get("Modality") or ""), _name(dataset)


def read_dicom_series(folder: str, modalities: Sequence[str], allow_any_image: bool = False) -> Loaded:
    """The volume of a series: its columns, rows and slices, in the modality's own unit, and their affine.

    Args:
        folder: its DICOM files are those of one series, one image a file; other files, and folders in it, are passed over.
        modalities: those allowed (0008,0060).
        allow_any_image: take others, with a warning.

    Raises:
        InvalidImageError: no DICOM file, several series, another modality, images that are not single slices with a position,
            two at one position, or slices that are no even grid (an image is missing, a gantry tilt); it names them.

    Source: PS3.3 C.7.6.2.1.1 (Image Position and Image Orientation).
    """
    paths = dicom_files(folder)
    if not paths:
        raise InvalidImageError(f"{folder}: no DICOM file lies in this folder; give the folder of one series.")
    series = [_read_slice(path) for path in paths]
    _check_alike(folder, series)
    warnings = []
    modality = str(series[0].get("Modality") or "")
    if modality and modality not in modalities:
        if not allow_any_image:
            raise InvalidImageError(
                f"{folder}: its modality is {modality}; the model takes {' and '.join(modalities)}."
            )
        warnings.append(f"The modality is {modality}, the model takes {' and '.join(modalities)}.")
    row, column = _orientation(series[0])
    normal = np.cross(row, column)
    series.sort(key=lambda d: float(normal @ _position(d)))
    step = _checked_step(folder, series)
    down, across = (float(s) for s in series[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([row * across, column * down, normal * step, _position(series[0])], axis=1)
    slices = [modality_values(d, stored_values(d)).T.astype(np.float32) for d in series]
    return Loaded(torch.from_numpy(np.stack(slices, axis=-1)), torch.from_numpy(TO_RAS @ affine), tuple(warnings))


def _name(dataset: Dataset) -> str:
    return str(dataset.get("SeriesDescription") or dataset.get("ProtocolName") or "").strip()


def _read_slice(path: Path) -> Dataset:
    dataset = read_dicom(path)
    missing = [keyword for keyword in _NEEDED if keyword not in dataset or dataset[keyword].is_empty]
    if missing:
        raise InvalidImageError(
            f"{path}: is not a slice with a position in space (no {', '.join(missing)}); a volume is made of such only."
        )
    return dataset


def _check_alike(folder: str, series: Sequence[Dataset]) -> None:
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


def _orientation(dataset: Dataset) -> np.ndarray:
    """The direction of rows and that of columns, ``(2, 3)`` in LPS."""
    return np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)


def _position(dataset: Dataset) -> np.ndarray:
    return np.array(dataset.ImagePositionPatient, dtype=np.float64)


def _checked_step(folder: str, series: Sequence[Dataset]) -> float:
    """The distance in mm of slices sorted along their normal.

    Raises:
        InvalidImageError: one lies off its place; the message says what is wrong.
    """
    first = series[0]
    if len(series) == 1:
        thickness = first.get("SpacingBetweenSlices") or first.get("SliceThickness")
        if not thickness:
            raise InvalidImageError(f"{first.filename}: is a single slice without a Slice Thickness; set it.")
        return float(thickness)
    row, column = _orientation(first)
    axes = np.stack([row, column, np.cross(row, column)])
    # mm along rows, columns and the normal, from the first slice
    offsets = np.stack([_position(d) - _position(first) for d in series]) @ axes.T
    heights, gaps = offsets[:, 2], np.diff(offsets[:, 2])
    if gaps.min() < 1e-3:
        a, b = series[int(gaps.argmin())], series[int(gaps.argmin()) + 1]
        raise InvalidImageError(
            f"{b.filename}: lies at the position of {Path(a.filename).name}; give one volume a folder."
        )
    step = float(heights[-1]) / (len(series) - 1)
    pixel = np.array([float(first.PixelSpacing[1]), float(first.PixelSpacing[0])])
    wrong = []
    if (np.abs(offsets[:, :2]) > TOLERANCE * pixel).any():
        shift = offsets[-1, :2] / heights[-1]
        straight = (np.abs(offsets[:, :2] - heights[:, None] * shift) <= TOLERANCE * pixel).all()
        wrong.append(
            f"a gantry tilt of {np.degrees(np.arctan(np.linalg.norm(shift))):.1f} degrees"
            if straight
            else f"slices shifted sideways by up to {np.linalg.norm(offsets[:, :2], axis=1).max():.1f} mm"
        )
    if (np.abs(heights - np.arange(len(series)) * step) > TOLERANCE * step).any():
        steps = gaps / np.median(gaps)
        if (np.abs(steps - np.rint(steps)) < 2 * TOLERANCE).all() and np.rint(steps).max() > 1:
            wrong += [
                f"{round(steps[k]) - 1} missing image(s) between {_slice_name(series[k])} and {_slice_name(series[k + 1])}"
                for k in np.flatnonzero(np.rint(steps) > 1)
            ]
        else:
            wrong.append(f"uneven spacing, from {gaps.min():.2f} to {gaps.max():.2f} mm")
    if wrong:
        raise InvalidImageError(
            f"{folder}: {'; '.join(wrong)}. Only evenly spaced slices, perpendicular to the axis they are stacked along, can "
            "be worked on; fetch what is missing or resample the series first."
        )
    return step


def _slice_name(dataset: Dataset) -> str:
    return f"{Path(dataset.filename).name} (number {dataset.get('InstanceNumber')})"
