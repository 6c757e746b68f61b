"""Masks and maps as the DICOM objects that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset

from lib.grids import read_volume


def predicted(series: Sequence[Dataset], mask: str, params: Mapping[str, Any]) -> Dataset:
    """The mask in a file, as a model gave it for a series, as a DICOM Segmentation.

    Raises:
        MONAILabelException: INVALID_INPUT, it is no mask of lesions, or the series has other images by now.
    """
    from scripts.dicom.segmentation import segmentation

    array, affine = read_volume(mask)
    try:
        return segmentation(series, array.astype(np.uint8), affine, **_said_of(params))
    except ValueError as error:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"No Segmentation can be made of this result: {error}"
        ) from error


def predicted_map(series: Sequence[Dataset], anomaly_map: Path, params: Mapping[str, Any]) -> Dataset:
    """The anomaly map in a file as a DICOM Parametric Map.

    Raises:
        ValueError: it is none, or the series has other images by now.
    """
    from scripts.dicom.parametric_map import parametric_map

    return parametric_map(series, *read_volume(anomaly_map), **_said_of(params))


def predicted_overlay(images: Sequence[Dataset], mask: str, params: Mapping[str, Any]) -> Dataset:
    """The mask in a file over its radiograph, as a DICOM Secondary Capture.

    Raises:
        ValueError: it doesn't lie on the radiograph's pixels.
    """
    from scripts.dicom.overlay import overlay

    array, affine = read_volume(mask)
    return overlay(images, array.astype(np.uint8), affine, **_said_of(params))


def reviewed(series: Sequence[Dataset], mask: str, version: str) -> Dataset:
    """The lesions of a reader's mask in a file as a DICOM Segmentation.

    Args:
        series: its images.
        mask: the file.
        version: of the software.

    Raises:
        ValueError: it doesn't lie on the images' grid.
    """
    from scripts.dicom.segmentation import segmentation
    from scripts.images.restoring import LESION

    array, affine = read_volume(mask)
    return segmentation(series, array == LESION, affine, version=version, algorithm=False)


def _said_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the descriptions of a result's DICOM objects are made of."""
    kept = {name: params[name] for name in ("score", "version")}
    return {**kept, "warnings": params.get("warnings", ()), "options": params.get("changed_options", "")}
