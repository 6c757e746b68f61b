"""An array with its affine, as a file that the loader reads like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidImageError


def save_array(image: NDArray[Any], affine: Any, path: Path) -> None:
    """Write an array ``(X, Y, Z)`` or ``(X, Y, Z, C)`` as a NIfTI file of float32.

    Args:
        image: real numbers.
        affine: ``(4, 4)`` in mm.
        path: of the file.

    Raises:
        InvalidImageError: another number of dimensions, no real numbers, or an affine that says of no voxel where it lies.
    """
    if image.dtype.kind not in "biuf":
        raise InvalidImageError(f"the array holds {image.dtype}; allowed are real numbers.")
    if image.ndim not in (3, 4):
        raise InvalidImageError(
            f"the array has the shape {image.shape}; allowed are (X, Y, Z), of a picture (X, Y, 1), and (X, Y, Z, channels)."
        )
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidImageError(f"the affine must be 4 x 4 numbers, got {affine!r}.") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise InvalidImageError(f"the affine must be 4 x 4 numbers, the last row 0 0 0 1, got {matrix.tolist()}.")
    if np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise InvalidImageError(f"the affine is singular, so position and orientation are unknown: {matrix.tolist()}.")
    nib.save(nib.Nifti1Image(image.astype(np.float32), matrix), path)
