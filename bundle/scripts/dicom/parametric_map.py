"""An anomaly map as a DICOM Parametric Map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pydicom
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.sr.coding import Code

from .describing import AUTOMATIC_LABEL, LONG_STRING, NUMBERS, dated, described, new_series, regions_of
from .placing import on_series

NOT_ASSESSED = -1.0
"""The value in a parametric map of what was not assessed. A map is 0 or more, so it can't be mistaken for one."""
_NO_UNITS = Code("1", "UCUM", "no units")
_SCORE = Code("246262008", "SCT", "Score")
"""What the map is whatever the model: of several maps, one of them a probability, no physical quantity is left."""


def parametric_map(
    series: Sequence[pydicom.Dataset],
    array: NDArray[np.floating],
    affine: NDArray[np.floating],
    *,
    version: str,
    score: float | None,
    warnings: Sequence[str] = (),
    options: str = "",
) -> ParametricMap:
    """An anomaly map as a DICOM Parametric Map in 32-bit floats, in a series of its own in the images' study.

    NaN, what was not assessed, is stored as `NOT_ASSESSED`, named in Float Pixel Padding Value. The standard would
    allow NaN itself, but many viewers can't compute a window with it, and JSON, in which DICOMweb sends the padding
    value, has no NaN. The Modality is OT (other): the standard leaves it open, and with the images' own the map would
    be found where a server is asked for the MR series to work on.

    Args:
        series: as `read_series` gives it.
        array: ``(X, Y, Z)``, 0 or more, no unit; NaN where not assessed. On the series' grid, its axes in any order and
            direction.
        affine: ``(4, 4)`` from the map's indices to mm, RAS as in NIfTI.
        version: of the software.
        score: of the volume, 0 or more, for the descriptions; None where nothing was assessed.
        warnings: sentences that say why the map may be wrong; the series' description then begins with CHECK.
        options: other ones than the default, short, for the series' description.

    Returns:
        the object, referring to every instance of the series.

    Raises:
        ValueError: negative or infinite values, a map that doesn't lie on the series' grid.

    Source: PS3.3 A.75 (Parametric Map IOD), C.8.32.1 (Modality), C.7.6.24 (padding), C.7.6.16.2.11
    (real world values).
    """
    values = np.asarray(array, dtype=np.float32)
    if np.isinf(values).any() or (values < 0).any():
        raise ValueError("the map holds negative or infinite values; it must be 0 or more, or NaN where not assessed.")
    values = np.where(np.isnan(values), np.float32(NOT_ASSESSED), values)
    mapping = RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="How anomalous a voxel is, 0 or more, no unit",
        unit=_NO_UNITS,
        value_range=(0.0, max(1.0, float(values.max()))),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_SCORE,
    )
    dataset = ParametricMap(
        source_images=series,
        pixel_array=np.ascontiguousarray(on_series(series, values, affine)),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        # the same for all, so that patients can be compared
        window_center=0.5,
        window_width=1.0,
        content_label=AUTOMATIC_LABEL,
        content_description=" ".join(["Nothing was assessed." if score is None else f"Score {score:.3f}.", *warnings])[
            :LONG_STRING
        ],
        series_description=described("map", series, score, warnings, options),
        **new_series(NUMBERS["map"], version),
    )
    shared = dataset.SharedFunctionalGroupsSequence[0]
    # highdicom leaves out the mandatory Frame Anatomy, and its LINEAR makes a threshold of a window of width 1
    anatomy = pydicom.Dataset()
    anatomy.FrameLaterality = "U"
    anatomy.AnatomicRegionSequence = [CodedConcept.from_code(regions_of(series)[0])]
    shared.FrameAnatomySequence = [anatomy]
    shared.FrameVOILUTSequence[0].VOILUTFunction = "LINEAR_EXACT"
    dataset.FloatPixelPaddingValue = dataset.FloatPixelPaddingRangeLimit = NOT_ASSESSED
    return dated(dataset)
