"""A volume's results as DICOM objects, beside its NIfTI files, for viewers and archives."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import bundle_version
from .predictor import measured

SEGMENTATION, PARAMETRIC_MAP = "segmentation.dcm", "anomaly_map.dcm"


def check_dicom_inputs(items: Sequence[dict[str, Any]]) -> None:
    """Give every item that is no folder of a DICOM series its ``error``: no object can refer to it.

    Args:
        items: see `find_inputs`.

    Raises:
        ValueError: highdicom is not installed, or no item is such a folder: nothing is touched then, older results neither.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise ValueError(
            "--write_dicom true needs highdicom: install the extra `dicom` of this project's pyproject.toml."
        )
    sound = [item for item in items if "error" not in item]
    for item in (others := [item for item in sound if _no_series(item)]):
        item["error"] = f"{_no_series(item)}: is no folder with a series of DICOM images; --write_dicom true needs one."
    if others and len(others) == len(sound):
        raise ValueError(str(others[0]["error"]))


def write_dicom_objects(
    item: Mapping[str, Any], result: Mapping[str, Any], settings: Mapping[str, float], folder: Path
) -> None:
    """Write `SEGMENTATION` and `PARAMETRIC_MAP`, which refer to the images on whose grid a volume's results lie.

    Args:
        item: its ``image`` is the folder of a DICOM series, or a list of such, one a channel.
        result: ``pred`` and ``anomaly_map``, on the grid of one series, ``input_image``, whose meta says which as ``source``,
            ``slices`` and ``warnings``.
        settings: of the run, kept as the algorithm's parameters.
        folder: to write in.

    Raises:
        ValueError: the series can't be read, or the results don't lie on its grid, see `read_series`.
    """
    from ..dicom.parametric_map import parametric_map
    from ..dicom.segmentation import segmentation
    from ..dicom.series import read_series

    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it names every attribute that it copies
    series = read_series(result["input_image"].meta["source"])
    said = {"version": bundle_version(), "score": measured(result)["score"], "warnings": result["warnings"]}
    pred, anomaly_map = result["pred"], result["anomaly_map"]
    mask = pred[0].as_tensor().numpy().astype(np.uint8)
    parameters = {name: f"{value:g}" for name, value in settings.items()}
    affine = pred.affine.numpy()
    objects = {
        SEGMENTATION: segmentation(series, mask, affine, label="anomaly", parameters=parameters, **said),
        PARAMETRIC_MAP: parametric_map(series, anomaly_map[0].as_tensor().numpy(), affine, **said),
    }
    for name, dataset in objects.items():
        dataset.save_as(folder / name)


def _no_series(item: Mapping[str, Any]) -> str | None:
    """The first of an item's images that is no folder."""
    paths = [item["image"]] if isinstance(item["image"], str) else item["image"]
    return next((str(path) for path in paths if not Path(path).is_dir()), None)
