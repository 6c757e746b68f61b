"""The sequences of a study on one grid: a motion that is known is found, what fits stays, what doesn't fit is refused."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InvalidImageError
from scripts.images.loading import LoadVolumed
from scripts.images.registering import LimitToCoveredd, RegisterChannelsd
from scripts.images.rigid import Motion, motion, to_itk
from study import GRIDS, MOTIONS, SEQUENCES, Grid, acquired, grid, moved, write_study

LPS = np.diag([-1.0, -1.0, 1.0])


def image(values: np.ndarray, on: Grid, name: str = "a.nii") -> MetaTensor:
    affine = torch.from_numpy(on.affine)
    return MetaTensor(
        torch.from_numpy(values)[None],
        affine=affine,
        meta={"filename_or_obj": name, "source": name, "input_affine": affine},
    )


def scan(sequence: str, on: Grid | None = None, by: np.ndarray | None = None) -> MetaTensor:
    on, by = on or GRIDS[sequence], MOTIONS[sequence] if by is None else by
    return image(acquired(sequence, on, by), on, f"{sequence}.nii")


def register(images: list[MetaTensor], **item: Any) -> dict[str, Any]:
    return RegisterChannelsd("image", SEQUENCES, "FLAIR")({"image": images, **item})


@pytest.mark.parametrize("sequence", ["T1", "T1ce", "T2"])
def test_a_known_motion_is_found(sequence: str) -> None:
    """On oblique grids of other voxels: half a voxel of the reference in the brain, and one degree."""
    found = motion(to_itk(scan("FLAIR")), to_itk(scan(sequence)))
    points = 60 * np.array([c for c in product((-1, 0, 1), repeat=3) if any(c)]) / np.sqrt(3)
    truth = points @ MOTIONS[sequence][:3, :3].T + MOTIONS[sequence][:3, 3]
    there = np.array([found.transform.TransformPoint(p) for p in (points @ LPS).tolist()]) @ LPS
    assert np.linalg.norm(there - truth, axis=1).max() < 1.0
    rotation = LPS @ np.reshape(found.transform.GetMatrix(), (3, 3)) @ LPS
    off = np.degrees(np.arccos(np.clip((np.trace(rotation.T @ MOTIONS[sequence][:3, :3]) - 1) / 2, -1, 1)))
    assert off < 1 and found.residual < 1.0
    assert found.moved > 5 and found.turned > 5
    again = motion(to_itk(scan("FLAIR")), to_itk(scan(sequence)))
    assert again.transform.GetParameters() == found.transform.GetParameters()


def test_channels_come_to_the_references_grid(tmp_path: Path) -> None:
    paths = write_study(tmp_path)
    load = LoadVolumed("image", channels=4, own_grids=True)
    d = RegisterChannelsd("image", SEQUENCES, "FLAIR")(load({"image": [paths[s] for s in SEQUENCES]}))
    result, flair = d["image"], scan("FLAIR")
    assert result.shape == (4, *GRIDS["FLAIR"].shape) and d["warnings"] == []
    torch.testing.assert_close(result.affine, flair.affine)
    torch.testing.assert_close(result.meta["input_affine"], flair.affine)
    assert torch.equal(result[3].as_tensor(), flair[0].as_tensor())
    assert result.meta["source"] == paths["FLAIR"] and result.meta["unit"] == "ml"
    assert result.meta["filename_or_obj"] == ", ".join(paths[s] for s in SEQUENCES)
    still = {s: acquired(s, GRIDS["FLAIR"], np.eye(4)) for s in SEQUENCES}
    brain = (still["T2"] > 60) & (still["FLAIR"] > 60) & (still["T1"] < 130)
    for n, sequence in enumerate(SEQUENCES[:3]):
        difference = result[n].numpy() - still[sequence]
        assert np.median(np.abs(difference[brain])) < 4, sequence  # of noise of 2
        unregistered = register_nothing(scan(sequence), flair) - still[sequence]
        assert np.abs(difference[brain]).mean() < 0.5 * np.abs(unregistered[brain]).mean(), sequence


def register_nothing(moving: MetaTensor, fixed: MetaTensor) -> np.ndarray:
    """By the scanner's coordinates alone."""
    from scripts.images.geometry import to_grid

    return to_grid(moving.as_tensor(), moving.affine, fixed.affine, fixed.shape[1:])[0].numpy()
