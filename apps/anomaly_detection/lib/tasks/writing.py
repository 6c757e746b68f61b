"""Results as files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monailabel.transform.writer import write_itk

from lib.studies.tags import COUNTERFACTUAL_TAG, MAP_TAG


def write(image: MetaTensor, source: str, extension: str, dtype: str) -> str:
    """Write ``(1, X, Y, Z)`` on its grid to a new temporary file; NIfTI takes over the header of its source."""
    from scripts.running.saving import save_nifti

    handle, path = tempfile.mkstemp(suffix=extension)
    os.close(handle)
    try:
        image = image.to(getattr(torch, dtype))
        if extension in (".nii", ".nii.gz"):
            save_nifti(image, source, Path(path))
        else:
            write_itk(image[0].as_tensor().numpy(), path, image.affine.numpy(), None, compress=False)
    except BaseException:
        os.unlink(path)
        raise
    return path


def write_results(result: Mapping[str, Any], source: str, folder: Path) -> dict[str, Path]:
    """Write the float results on the grid of the input, as NIfTI, each under its tag."""
    from scripts.running.saving import save_nifti

    paths = {}
    for tag in (MAP_TAG, COUNTERFACTUAL_TAG):
        paths[tag] = folder / f"{tag}.nii.gz"
        save_nifti(result[tag], source, paths[tag])
    return paths
