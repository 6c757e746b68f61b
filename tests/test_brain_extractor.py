"""What the light brain network learns from, with known answers; a training goes on as if it had not been broken off."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from whole_head import AFFINE, BRAIN, HEAD

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import brain_extractor
import brain_training


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A datalist of one head with its T1 beside it, and twelve of other people; HD-BET's brain is the true one."""

    def save(path: Path, array: np.ndarray) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), path)
        return str(path)

    brain = torch.from_numpy(BRAIN[::-1, ::-1].copy())[None]
    monkeypatch.setattr("scripts.images.brain.by_hd_bet", lambda *_: brain)
    flair = save(tmp_path / "a" / "flair.nii.gz", HEAD)
    save(tmp_path / "a" / "t1.nii.gz", 2 * HEAD)
    for n in range(12):
        save(tmp_path / "others" / "elderly" / f"Subj{n}_flair.nii.gz", HEAD + n)
    save(tmp_path / "others" / "ms" / "ms0_flair.nii.gz", HEAD)
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [flair]}))
    return {"datalist": str(tmp_path / "datalist.json"), "others": str(tmp_path / "others")}


def test_eight_of_the_others_are_learned_from_and_the_rest_is_not(data: dict[str, str]) -> None:
    training = list(brain_training.heads(**data, split="training"))
    sources = [item["source"] for item in training]
    assert sources == ["TCGA-LGG", *["elderly"] * 8]
    again = list(brain_training.heads(**data, split="training"))
    assert again == training


def test_an_example_is_a_head_and_its_brain_on_one_grid(data: dict[str, str], tmp_path: Path) -> None:
    """Whatever was done to the head: inside the brain it is bright, and around the brain lies the dark skull."""
    items = list(brain_training.heads(**data, split="training"))[:1]
    heads = brain_training.Heads(items, str(tmp_path / "cache"), 0)
    images, mask, spacing = heads.heads["TCGA-LGG"][0]
    assert len(images) == 2 and int(mask.sum()) == BRAIN.sum() and spacing == pytest.approx([2, 2, 5])
    for step in range(3):
        x, target = heads(step)
        again, target_again = heads(step)
        assert torch.equal(x, again) and torch.equal(target, target_again)
        brain = x[(..., *(slice(n) for n in target.shape[2:]))][target > 0.9]
        assert 0 <= float(target.min()) and float(target.max()) < 1 + 1e-5 and len(brain) > 1000
        assert float(brain.median()) > 0.6


def test_thicker_slices_are_means_and_a_cut_loses_slices_at_an_end() -> None:
    x = torch.arange(8.0).expand(1, 2, 2, 8)
    image, brain, thickness = brain_training.thicker(x, (x > 2).float(), 1.5, 4)
    assert image[0, 0, 0].tolist() == [1.5, 5.5] and brain[0, 0, 0].tolist() == [0, 1] and thickness == 6
    for seed in range(20):
        kept, same = brain_training.cut(x, x, np.random.default_rng(seed))
        assert torch.equal(kept, same) and kept.shape[-1] >= 4
        assert kept[0, 0, 0, 0] == 0 or kept[0, 0, 0, -1] == 7


def test_a_training_goes_on_as_if_it_had_not_been_broken_off(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_training, "CHECKPOINT", 1)
    options: dict[str, Any] = {**data, "steps": 3, "cache_dir": str(tmp_path / "cache")}
    brain_training.train(**options, output=str(tmp_path / "whole.pt"))
    loss = brain_training.loss_of
    calls: list[torch.Tensor] = []

    def broken(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(logits)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(logits, target)

    monkeypatch.setattr(brain_training, "loss_of", broken)
    with pytest.raises(KeyboardInterrupt):
        brain_training.train(**options, output=str(tmp_path / "broken.pt"))
    monkeypatch.setattr(brain_training, "loss_of", loss)
    brain_training.train(**options, output=str(tmp_path / "broken.pt"))
    whole, went_on = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "broken"))
    assert not (tmp_path / "broken.pt.training").exists()
    assert all(torch.equal(whole[name], went_on[name]) and whole[name].dtype == torch.float16 for name in whole)


def test_spoiled_heads_keep_the_brain_that_is_known() -> None:
    image, brain = torch.from_numpy(HEAD.astype(np.float32))[None], torch.from_numpy(BRAIN)[None]
    cases = {name: rest for name, *rest in brain_extractor.spoiled(image, brain, [2.0, 2.0, 5.0], 0)}
    volume, mask, pixdim = cases["axes exchanged"]
    assert volume.shape == mask.shape == (1, 28, 100, 120) and pixdim == [5.0, 2.0, 2.0]
    assert int(mask.sum()) == BRAIN.sum() and cases["noise alone"][1] is None
    assert cases["0.6 times as large"][2] == pytest.approx([1.2, 1.2, 3.0])
    assert cases["shading of 1 to 10 from left to right"][0][0, -1, 60, 14] == pytest.approx(HEAD[-1, 60, 14] * 10**0.5)
