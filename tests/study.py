"""One study as a scanner gives it: four sequences of a head, each on a grid of its own, the patient moved in between."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

SEQUENCES = ("T1", "T1Gd", "T2", "FLAIR")
# half axes and middle in mm, and what each sequence shows there
PARTS: list[tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float, float]]] = [
    ((84, 104, 88), (0, 0, 0), (180, 180, 80, 90)),  # skin
    ((77, 96, 80), (0, 0, 0), (10, 10, 10, 10)),  # skull
    ((70, 88, 72), (0, 0, 0), (40, 45, 190, 20)),  # fluid
    ((66, 84, 68), (0, 0, 0), (110, 115, 80, 100)),  # brain
    ((9, 28, 12), (14, 4, 8), (30, 32, 200, 20)),  # ventricles
    ((9, 28, 12), (-14, 4, 8), (30, 32, 200, 20)),
    ((22, 18, 14), (0, -52, -38), (95, 100, 95, 115)),  # cerebellum
    ((16, 18, 15), (34, 24, 20), (80, 90, 150, 170)),  # oedema
    ((8, 8, 8), (34, 24, 20), (80, 200, 140, 150)),  # core
]


class Grid(NamedTuple):
    """Shape and affine, RAS in mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], angles: tuple[float, float, float]) -> Grid:
    """Around the origin, turned by angles in degrees about x, y and z; its axes are left, posterior, superior."""
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([-1, -1, 1]) @ np.diag(spacing)
    return Grid(shape, nib.affines.from_matvec(matrix, -matrix @ (np.array(shape) - 1) / 2))


GRIDS = {
    "FLAIR": grid((96, 112, 28), (2.0, 2.0, 6.0), (12, 0, -4)),
    "T1": grid((120, 120, 40), (1.6, 1.9, 4.5), (-3, 4, 0)),
    "T1Gd": grid((80, 104, 80), (2.4, 2.2, 2.2), (0, 0, 0)),
    "T2": grid((104, 112, 28), (1.9, 2.0, 6.0), (12, 0, -4)),
}
"""Oblique, with slices of other thicknesses and voxels that are no squares."""


def moved(angles: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    """A rigid motion ``(4, 4)`` about the origin, in mm."""
    return nib.affines.from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), shift)


MOTIONS = {
    "T1": moved((4, -3, 5), (6, -3, 8)),
    "T1Gd": moved((-6, 2, -7), (-5, 4, -6)),
    "T2": moved((2, 0, 9), (3, 2, -2)),
    "FLAIR": np.eye(4),
}


def acquired(sequence: str, on: Grid, motion: np.ndarray) -> np.ndarray:
    """A sequence of the head after a motion: float32 ``(X, Y, Z)`` with noise, each voxel the mean over its thickness."""
    to_head = np.linalg.inv(motion) @ on.affine
    values = np.zeros(on.shape)
    for part in (-0.3, 0.0, 0.3):
        voxels = np.meshgrid(*map(np.arange, on.shape), indexing="ij")
        x, y, z = (
            to_head[n, 0] * voxels[0] + to_head[n, 1] * voxels[1] + to_head[n, 2] * (voxels[2] + part) + to_head[n, 3]
            for n in range(3)
        )
        head = np.zeros(on.shape)
        for (a, b, c), (i, j, k), shown in PARTS:
            distance = ((x - i) / a) ** 2 + ((y - j) / b) ** 2 + ((z - k) / c) ** 2
            inside = np.clip((1 - np.sqrt(distance)) * min(a, b, c) / 2 + 0.5, 0, 1)
            head += inside * (shown[SEQUENCES.index(sequence)] - head)
        head *= 1 + 0.3 * np.sin(x / 7 + y / 11) * np.sin(y / 8 - z / 9 + 1) * np.sin(z / 10 + x / 13 + 2)  # gyri
        values += head / 3
    noise = np.random.default_rng(SEQUENCES.index(sequence)).normal(0, 2, on.shape)
    return np.abs(values + noise).astype(np.float32)


def write_study(folder: Path, sequences: tuple[str, ...] = SEQUENCES, subject: str = "p1") -> dict[str, str]:
    """Write a NIfTI a sequence on its own grid; return their paths."""
    paths = {}
    for sequence in sequences:
        on = GRIDS[sequence]
        paths[sequence] = str(folder / f"{subject}_{sequence}.nii.gz")
        image = nib.Nifti1Image(acquired(sequence, on, MOTIONS[sequence]), on.affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, paths[sequence])
    return paths
