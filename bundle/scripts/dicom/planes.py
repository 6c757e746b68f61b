"""Where the slices of a series lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

TOLERANCE = 0.05
"""How far, in voxels, a mask's or a map's grid may be off the series': what the rounding in headers amounts to."""
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def orientation(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    """The direction of rows and that of columns, ``(2, 3)`` in LPS."""
    return np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)


def position(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    """The centre of the first pixel, ``(3,)`` in mm, LPS."""
    return np.array(dataset.ImagePositionPatient, dtype=np.float64)


def check_even(series: Sequence[pydicom.Dataset]) -> None:
    """See to it that sorted slices lie one step apart along their normal.

    Raises:
        ValueError: one is off by more than `TOLERANCE` of a step or of a pixel; the message says what is wrong.
    """
    if len(series) < 2:
        return
    first = series[0]
    row, column = orientation(first)
    axes = np.stack([row, column, np.cross(row, column)])
    # mm along rows, columns and the normal, from the first slice
    offsets = np.stack([position(d) - position(first) for d in series]) @ axes.T
    heights, number = offsets[:, 2], np.arange(len(series))
    step = heights[-1] / (len(series) - 1)
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
    if (np.abs(heights - number * step) > TOLERANCE * step).any():
        gaps = np.diff(heights)
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
        raise ValueError(
            f"{Path(first.filename).parent}: {'; '.join(wrong)}. Only evenly spaced slices, perpendicular to the axis "
            "they are stacked along, can be worked on; fetch what is missing or resample the series first."
        )
