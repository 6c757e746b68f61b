"""A volume's results as DICOM objects, beside its NIfTI files, for viewers and archives."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import bundle_version, pip_install
from ..images.formats import is_dicom
from ..learning.datalists import paths_of
from ..wording import shown
from .records import measured

SEGMENTATION, PARAMETRIC_MAP, OVERLAY = "segmentation.dcm", "anomaly_map.dcm", "overlay.dcm"


def check_dicom_inputs(items: Sequence[dict[str, Any]]) -> None:
    """Give every item that is no DICOM image nor a folder of a series its ``error``: no object can refer to it.

    Args:
        items: see `find_inputs`.

    Raises:
        ValueError: highdicom is not installed, or no item is such a one: nothing is touched then, older results neither.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise ValueError(f"--write_dicom true needs highdicom: {pip_install('highdicom')}")
    sound = [item for item in items if "error" not in item]
    for item in (others := [item for item in sound if _no_dicom(item)]):
        item["error"] = (
            f"{_no_dicom(item)}: is no DICOM image, nor a folder with a series of them; --write_dicom true needs one."
        )
    if others and len(others) == len(sound):
        raise ValueError(str(others[0]["error"]))


def write_dicom_objects(result: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Write `SEGMENTATION` and `PARAMETRIC_MAP`, of a radiograph `OVERLAY`, of the images on whose grid the results lie.

    Args:
        result: ``pred`` and ``anomaly_map``; ``input_image``, on whose grid they lie, and whose meta has as ``source`` the
            folder of its DICOM series, or the file of a radiograph; ``slices`` and ``warnings``.
        settings: of the run, kept as the algorithm's parameters.
        folder: to write in.

    Raises:
        ValueError: the images can't be read, or the results don't lie on their grid, see `read_images`.
    """
    from ..dicom.overlay import overlay
    from ..dicom.parametric_map import parametric_map
    from ..dicom.segmentation import segmentation
    from ..dicom.series import is_radiograph, read_images

    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it names every attribute that it copies
    images = read_images(result["input_image"].meta["source"])
    said = {"version": bundle_version(), "score": measured(result)["score"], "warnings": result["warnings"]}
    pred, anomaly_map = result["pred"], result["anomaly_map"]
    mask = pred[0].as_tensor().numpy().astype(np.uint8)
    parameters = {name: shown(value) for name, value in settings.items()}
    affine = pred.affine.numpy()
    found = segmentation(images, mask, affine, parameters=parameters, **said)
    found.save_as(folder / SEGMENTATION)
    if is_radiograph(images):
        overlay(images, mask, affine, **said).save_as(folder / OVERLAY)
    else:
        parametric_map(images, anomaly_map[0].as_tensor().numpy(), affine, **said).save_as(folder / PARAMETRIC_MAP)


def _no_dicom(item: Mapping[str, Any]) -> str | None:
    """The first of an item's images that is neither a DICOM image nor a folder."""
    return next((str(path) for path in paths_of(item) if not (Path(path).is_dir() or is_dicom(path))), None)
