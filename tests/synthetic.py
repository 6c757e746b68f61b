"""One factory of small NIfTI heads with known content: a bright ellipsoid brain in dim noise-free air, with a lesion."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

OBLIQUE = nib.affines.from_matvec(
    np.array([[0.96, 0.1, 0.05], [-0.09, 0.97, -0.2], [-0.08, 0.19, 0.98]]) @ np.diag([2.0, 2.2, 5.0]),
    (-80.0, -95.0, 12.0),
)
GRIDS: dict[str, tuple[tuple[int, int, int], np.ndarray]] = {
    "plain": ((64, 80, 6), np.diag([2.4, 2.4, 5.0, 1.0])),
    "anisotropic": ((160, 90, 5), np.diag([1.0, 2.0, 6.5, 1.0])),
    "flipped": ((80, 96, 6), nib.affines.from_matvec(np.diag([-2.0, -2.0, -5.0]), (70.0, 90.0, 40.0))),
    "oblique": ((84, 92, 7), OBLIQUE),
    "sagittal": (
        (6, 96, 80),
        np.array([[0, 0, -2.0, 80], [-2.0, 0, 0, 90], [0, 2.0, 0, -70], [0, 0, 0, 1.0]])[[2, 0, 1, 3]],
    ),
    "one slice": ((80, 96, 1), np.diag([2.0, 2.0, 5.0, 1.0])),
}


def head(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Intensities (air 0, brain 100, a lesion 170) and the brain mask, the two longest axes holding an ellipse."""
    grids = np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape], indexing="ij")
    brain = sum(g**2 for g in grids) < 0.7
    lesion = sum((g - c) ** 2 for g, c in zip(grids, (0.3, -0.2, 0.0), strict=True)) < 0.06
    image = 100.0 * brain
    image[lesion & brain] = 170.0
    return image.astype(np.float32), brain


def write_head(
    folder: Path, grid: str = "plain", name: str = "flair", channels: int = 1, dtype: Any = np.float32
) -> dict[str, Any]:
    """Write a head and its brain mask; return a datalist item."""
    shape, affine = GRIDS[grid]
    image, brain = head(shape)
    paths = []
    for c in range(channels):
        path = folder / (f"{name}.nii.gz" if channels == 1 else f"{name}{c}.nii.gz")
        nib.save(nib.Nifti1Image((image * (c + 1)).astype(dtype), affine), path)
        paths.append(str(path))
    mask = folder / f"{name}_brain.nii.gz"
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), affine), mask)
    return {"image": paths if channels > 1 else paths[0], "foreground": str(mask), "name": name}


def write_images(folder: Path, *names: str) -> None:
    """Write heads without brain masks, as a folder of studies has them."""
    folder.mkdir(exist_ok=True)
    for name in names:
        write_head(folder, "oblique", name)
        (folder / f"{name}_brain.nii.gz").unlink()


def header_alone(path: Path, shape: tuple[int, ...]) -> str:
    """A file of some bytes that claims to hold so many voxels."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    return str(path)
