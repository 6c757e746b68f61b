"""What a brain can be, and how warnings reach the reader."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.images.plausibility import CheckBraind
from tiny_run import datalist, run
from whole_head import BRAIN, HEAD, write


def signal(array: np.ndarray, brain: np.ndarray = BRAIN, spacing: tuple[float, ...] = (2, 2, 5)) -> list[str]:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    meta = {"filename_or_obj": "a", "input_affine": affine}
    d = {
        "image": MetaTensor(torch.from_numpy(np.asarray(array, np.float32))[None], affine=affine, meta=meta),
        "foreground": MetaTensor(torch.from_numpy(brain.astype(np.uint8))[None], affine=affine),
    }
    return CheckBraind("image")(d)["warnings"]


def test_signal_and_size_of_the_brain() -> None:
    assert signal(HEAD) == []
    gap = HEAD.copy()
    gap[:, :, 13:16] = 0
    assert "(13, 14, 15)" in signal(gap)[0]
    assert "saturated" in signal(HEAD.clip(0, 100))[0]
    assert "inverted" in signal(HEAD.max() - HEAD)[0]
    assert "too small" in signal(HEAD, spacing=(1, 1, 2))[0]
    assert "too large" in signal(HEAD, spacing=(4, 4, 10))[0]
    # one slice, or a few, of a normal brain
    for part in (slice(14, 15), slice(10, 15)):
        assert signal(HEAD[:, :, part], BRAIN[:, :, part]) == []
    # all slices of a clinical stack at 1 mm
    assert (
        "too small" in signal(np.repeat(HEAD[:, :, 14:15], 26, 2), np.repeat(BRAIN[:, :, 14:15], 26, 2), (2, 2, 1))[0]
    )


def test_warnings_reach_summary_picture_and_terminal(
    tmp_path: Path,
    weights: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = write(tmp_path, (HEAD - 1024).astype(np.int16), name="flair.nii.gz")
    mask = write(tmp_path, BRAIN.astype(np.uint8), name="brain.nii.gz")
    source = datalist(tmp_path, [{"image": image, "foreground": mask, "name": "p"}])
    assert run(weights, input=source, output_dir=str(tmp_path / "out")) == 0
    volume = json.loads((tmp_path / "out" / "summary.json").read_text())["volumes"][0]
    assert any("Air has the value -10" in w for w in volume["warnings"])
    assert "WARNING" in capsys.readouterr().out
    from matplotlib.image import imread

    picture = imread(tmp_path / "out" / "p" / "overview.png")[:90, :, :3]
    amber = np.abs(picture - np.array([1.0, 176 / 255, 0.0])).max(axis=2) < 0.05
    assert amber.sum() > 100
    # nothing is lost of the input's own intensities
    healthy = np.asarray(nib.load(tmp_path / "out" / "p" / "counterfactual.nii.gz").dataobj)
    np.testing.assert_allclose(
        healthy[~BRAIN][HEAD[~BRAIN] < 10].mean(), (HEAD - 1024)[~BRAIN][HEAD[~BRAIN] < 10].mean(), atol=1
    )
