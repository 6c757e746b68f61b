"""The student's network taught by readers' masks: a bound, not weakly supervised. It says what its labels cost the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from keeping import run_training
from packs import Slices, read_pack
from torch.utils.data import Dataset

from scripts.bundle import declared
from scripts.learning.seeding import Draw, augmented

SUPERVISED = "the student's network, taught by masks"


class ReadersMasks(Dataset):
    """The slices of a pack that a student learns from, with readers' masks instead of what counterfactuals gave.

    Args:
        slices: with masks.
        augmentation, seed: as `SliceDataset` has them.

    Items are ``{"image": float32 (C, H, W), "label": float32 (1, H, W)}``, labels 0 or 1; ``labels`` are the image-level ones.
    """

    def __init__(self, slices: Slices, augmentation: Any = None, seed: int = 0) -> None:
        if slices.lesion is None:
            raise ValueError("these slices have no masks.")
        self.slices, self.lesion = slices, slices.lesion
        self.labels = slices.labels.tolist()
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, drawn: int | Draw) -> dict[str, Any]:
        i, number = drawn if isinstance(drawn, tuple) else (drawn, None)
        item = {"image": self.slices.x[i], "label": self.lesion[i].float()}
        if number is None or self.augmentation is None:
            return item
        return augmented(item, self.augmentation, self.seed, number)


def masks_of(pack: str, split: str, augmentation: Any = None, seed: int = 0) -> ReadersMasks:
    """Those of a split of a pack, for a config."""
    return ReadersMasks(read_pack(Path(pack))[0][split], augmentation, seed)


def supervised(
    pack: Path, folder: Path, device: torch.device, seed: int, images: int | None, *overlays: str
) -> torch.nn.Module:
    """The student after its own training, but taught by the masks of the training patients. A stopped training goes on.

    Args:
        images: by default as many as the student's training takes.
    """
    # the bundle's datalist is not read, the pack's slices take its place
    masks = {"_target_": "taught.masks_of", "pack": str(pack)}
    values = {
        "datalist": "",
        "cache_dir": str(folder),
        "device": str(device),
        "seed": seed,
        "num_workers": 0,
        "train#dataset": masks | {"split": "training", "augmentation": "@train#augmentation", "seed": "@seed"},
        "validate#dataset": masks | {"split": "validation"},
        "checkpoint#settings#teacher": None,
        "checkpoint#settings#data": None,
        "checkpoint#record": None,
    }
    run_training(folder, images, *overlays, "train", "train_student", **values)
    return declared("student", *overlays, **{"device": str(device), "student#path": f"{folder}/model.pt"})
