"""Where the slices of a DICOM series lie, and whether they make a volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from ..errors import InvalidImageError

TOLERANCE = 0.05
"""How far a slice may lie off its place, as a part of the slices' distance or of a pixel: what rounding in headers makes."""


def orientation(dataset: Dataset) -> np.ndarray:
    """The direction of rows and that of columns, ``(2, 3)`` in LPS."""
    return np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)


def position(dataset: Dataset) -> np.ndarray:
    """The centre of the first pixel, ``(3,)`` in mm, LPS."""
    return np.array(dataset.ImagePositionPatient, dtype=np.float64)


def checked_step(folder: str | Path, series: Sequence[Dataset]) -> float:
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
    row, column = orientation(first)
    axes = np.stack([row, column, np.cross(row, column)])
    # mm along rows, columns and the normal, from the first slice
    offsets = np.stack([position(d) - position(first) for d in series]) @ axes.T
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
                f"{round(steps[k]) - 1} missing image(s) between instance numbers "
                f"{series[k].get('InstanceNumber')} and {series[k + 1].get('InstanceNumber')}"
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
