"""The sequences of a study on one grid."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from monai.transforms import LoadImage, ResampleToMatch

from lib.grids import grid_of


@contextmanager
def on_one_grid(paths: Sequence[str]) -> Iterator[list[str]]:
    """Volumes on the grid of the first: itself, and for as long as this is open, copies of those that need it."""
    grids = [grid_of(path) for path in paths] if len(paths) > 1 else []
    if all(shape == grids[0][0] and np.allclose(affine, grids[0][1], atol=1e-3) for shape, affine in grids):
        yield list(paths)
        return
    from scripts.running.saving import save_nifti

    load = LoadImage(image_only=True, ensure_channel_first=True)
    first = load(paths[0])
    with tempfile.TemporaryDirectory(prefix="sequences-") as folder:
        placed = [paths[0]]
        for n, path in enumerate(paths[1:], start=1):
            image = ResampleToMatch(mode="bilinear", padding_mode="zeros")(load(path), img_dst=first)
            placed.append(str(Path(folder) / f"{n}.nii.gz"))
            save_nifti(image, path, Path(placed[-1]))
        yield placed
