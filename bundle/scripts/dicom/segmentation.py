"""A mask as a DICOM Segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.sr.coding import Code

from ..images.restoring import LESION, NOT_ASSESSED
from .describing import (
    ALGORITHM,
    AUTOMATIC_LABEL,
    NUMBERS,
    REVIEWED_LABEL,
    SHORT_TEXT,
    dated,
    described,
    new_series,
    regions_of,
    shortened,
    source_of,
)
from .placing import on_images
from .series import is_radiograph

# PS3.16 CID 7150, 7151, 4, 7162, 7181, 7180
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_LESION_CODE = Code("52988006", "SCT", "Lesion")
_ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
_CONCEPT = Code("309825002", "SCT", "Spatial and Relational Concept")
# private: no standard code says that software did not look at a region
_NOT_ASSESSED_CODE = Code("NOT_ASSESSED", "99DAB", "Not assessed by the algorithm")
_MARKED = "anomaly"
# of sRGB (68, 230, 42) and (211, 211, 211)
_GREEN, _GREY = CIELabColor(80.7, -72.4, 71.6), CIELabColor(84.6, 0.0, 0.0)


def segmentation(
    series: Sequence[pydicom.Dataset],
    mask: NDArray[np.bool_] | NDArray[np.uint8],
    affine: NDArray[np.floating],
    *,
    version: str,
    score: float | None = None,
    algorithm: bool = True,
    warnings: Sequence[str] = (),
    options: str = "",
    parameters: Mapping[str, str] | None = None,
) -> Segmentation:
    """A mask as a binary DICOM Segmentation, in a series of its own in the images' study.

    Its first segment is what is marked; where an algorithm did not assess everything, a second one says what.

    Every slice has a frame, also those without a marked pixel: readers that take the extent of the frames for that of
    the volume then get the images' grid, and a mask without any marked pixel is an object like others.

    A radiograph has no plane in space. Its mask's pixels are those of the image that the object refers to.

    Args:
        series: as `read_images` gives it.
        mask: ``(X, Y, Z)``, 1 marked, 2 not assessed (not in a reader's), else 0; on the series' grid, its axes in any
            order and direction.
        affine: ``(4, 4)`` from the mask's indices to mm, right, anterior, superior (RAS) as in NIfTI.
        version: of the software.
        score: of the volume, 0 or more, for the series' description; None where nothing was assessed.
        algorithm: whether an algorithm made the mask (Content Label `AUTOMATIC_LABEL`) or a reader drew or submitted it
            (`REVIEWED_LABEL`).
        warnings: sentences that say why the mask may be wrong; the series' description then begins with CHECK.
        options: other ones than the default, short, for the series' description.
        parameters: of the algorithm, by their names.

    Returns:
        the object, referring to every instance of the series.

    Raises:
        ValueError: other values, a mask that doesn't lie on the series' grid.

    Source: PS3.3 A.51 (Segmentation IOD), A.51.5.1 (without a frame of reference), C.8.20.2 (Segmentation Image), 10.16
    (Algorithm Identification).
    """
    allowed = (0, LESION, NOT_ASSESSED) if algorithm else (0, LESION)
    if not np.isin(mask, allowed).all():
        given = np.setdiff1d(mask, allowed)[:5].tolist()
        raise ValueError(f"the mask holds other values than {', '.join(map(str, allowed))}: {given}.")
    content_label = AUTOMATIC_LABEL if algorithm else REVIEWED_LABEL
    if algorithm:
        description = described(_MARKED, series, score, warnings, options)
        made_by = AlgorithmIdentificationSequence(
            ALGORITHM, _ARTIFICIAL_INTELLIGENCE, version, parameters=dict(parameters) if parameters else None
        )
    else:
        description, made_by = shortened(_MARKED, source_of(series), " (reviewed)"), None
    dataset = Segmentation(
        source_images=[_without_place(series[0])] if is_radiograph(series) else series,
        pixel_array=on_images(series, np.asarray(mask), affine).astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=_segments(series, np.asarray(mask), made_by),
        content_label=content_label,
        content_description=description,
        omit_empty_frames=False,
        series_description=description,
        **new_series(NUMBERS[content_label], version),
    )
    if is_radiograph(series):
        dataset.PatientOrientation = series[0].get("PatientOrientation")
        if series[0].get("FrameOfReferenceUID"):
            dataset.FrameOfReferenceUID = series[0].FrameOfReferenceUID
            dataset.PositionReferenceIndicator = series[0].get("PositionReferenceIndicator")
    if warnings:
        dataset.SegmentSequence[0].SegmentDescription = " ".join(warnings)[:SHORT_TEXT]
    return dated(dataset)


def _segments(
    series: Sequence[pydicom.Dataset],
    mask: NDArray[np.generic],
    made_by: AlgorithmIdentificationSequence | None,
) -> list[SegmentDescription]:
    """What is marked and, where there is such, what was not assessed; by an algorithm, or by hand where it is None."""
    said = [(_MARKED, _ABNORMAL, _LESION_CODE, _GREEN)]
    if (mask == NOT_ASSESSED).any():
        said.append(("not assessed", _CONCEPT, _NOT_ASSESSED_CODE, _GREY))
    how = SegmentAlgorithmTypeValues.MANUAL if made_by is None else SegmentAlgorithmTypeValues.AUTOMATIC
    segments = []
    for number, (name, category, kind, colour) in enumerate(said, start=1):
        segment = SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type=how,
            algorithm_identification=made_by,
            anatomic_regions=regions_of(series) or None,
        )
        segment.RecommendedDisplayCIELabValue = list(colour.value)
        segments.append(segment)
    return segments


def _without_place(image: pydicom.Dataset) -> pydicom.Dataset:
    """A radiograph without what highdicom would make a plane in space of, or ask for one."""
    plain = copy(image)
    for keyword in ("FrameOfReferenceUID", "PixelSpacing"):
        plain.pop(keyword, None)
    return plain
