"""Datalists, and labelled slices read from disk.

A datalist is a list of items, one a volume: ``image`` (a path, or one path a channel), ``label`` for training (see
`SliceDataset`), and, where there are any, ``subject``, ``spacing`` (true voxel size in mm where the header's is wrong),
``brain`` (path of a brain mask) and ``mask`` (path of a lesion mask: for evaluation only, training never reads it).
Another data set is one function that returns such a list.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose
from torch.utils.data import Dataset, WeightedRandomSampler
from tqdm import tqdm

from .geometry import slice_numbers
from .preprocessing import assessed_slices

logger = logging.getLogger(__name__)

STACK_HEIGHT = 145.0
"""mm of head that an axial clinical stack covers; patient FG_6692's 26 slices are 5.5 mm apart."""


def brain_mr(
    root: str, split: str, sequences: Sequence[str] = ("flair",), brain_masks: bool = False
) -> list[dict[str, Any]]:
    """TCGA-LGG (Buda et al. 2019) as ``volumes/<patient>/<sequence>.nii.gz`` and ``slices.csv``, split by patient.

    The headers' 2 x 2 x 5 mm are nominal. The one patient whose true geometry is known (FG_6692) has 1.8 mm pixels and a
    stack of 143 mm, so pixels are taken as 1.8 mm and the slices as evenly spread over `STACK_HEIGHT`.

    Args:
        root: the folder with ``slices.csv``.
        split: "train", "val", "test" or "demo".
        sequences: one a channel.
        brain_masks: take the data set's own brain masks instead of HD-BET, which is faster, and leave out the patients
            whose mask it marks as not to be trusted.

    Raises:
        FileNotFoundError: there is no ``slices.csv``.
        ValueError: the split has no patient.
    """
    table = Path(root) / "slices.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table}: not found; give the folder of the data set as --dataset_dir.")
    slices: dict[str, list[dict[str, str]]] = defaultdict(list)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == split and not (brain_masks and row["brain_mask_trusted"] == "0"):
                slices[row["patient"]].append(row)
    if not slices:
        raise ValueError(f"{table}: no patient is in split {split!r}.")
    items = []
    for patient, rows in sorted(slices.items()):
        rows.sort(key=lambda r: int(r["z"]))
        folder = Path(root) / "volumes" / patient
        paths = [str(folder / f"{s}.nii.gz") for s in sequences]
        items.append(
            {
                "image": paths if len(paths) > 1 else paths[0],
                "mask": str(folder / "seg.nii.gz"),
                **({"brain": str(folder / "brain.nii.gz")} if brain_masks else {}),
                "subject": patient,
                "spacing": [1.8, 1.8, STACK_HEIGHT / len(rows)],
                "label": [int(r["has_tumour"]) if r["mid_slice"] == "1" else -1 for r in rows],
            }
        )
    return items


def fingerprint(items: Any, preprocessing: Compose) -> str:
    """A short hash that changes with the items and with what the preprocessing does to them."""
    steps = [
        (type(t).__name__, {k: v for k, v in sorted(vars(t).items()) if isinstance(v, (int, float, str, tuple))})
        for t in preprocessing.transforms
    ]
    return hashlib.sha256(json.dumps([items, steps], default=str).encode()).hexdigest()[:16]


def labelled_slices(
    image: MetaTensor, label: int | Sequence[int], min_area_fraction: float
) -> Iterator[tuple[int, int]]:
    """The index and the label of every slice of a preprocessed volume ``(C, H, W, D)`` that is to be trained on.

    Args:
        image: preprocessed, with ``input_affine`` in its meta.
        label: see `SliceDataset`.
        min_area_fraction: see `preprocessing.assessed_slices`.
    """
    wanted = assessed_slices(image.as_tensor(), min_area_fraction)
    for z, n in enumerate(slice_numbers(image)):
        of_slice = label if isinstance(label, int) else label[n]
        if wanted[z] and of_slice >= 0:
            yield z, of_slice


def augmented(item: dict[str, Any], transform: Callable[[dict[str, Any]], dict[str, Any]] | None) -> dict[str, Any]:
    """An item of a training set after its augmentation, if there is one.

    On plain tensors, as MONAI's record of what was done to them takes as long as doing it. And `transform` must not be asked
    whether it is true: a MONAI `Compose` seeds its transforms anew then, and every draw would be augmented alike.
    """
    if transform is None:
        return item
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        return transform(item)
    finally:
        set_track_meta(tracked)


class SliceDataset(Dataset):
    """Labelled axial slices of a datalist's volumes, memory-mapped from a cache that is made once.

    The preprocessing, the same as for inference, runs once a volume; the labelled slices within the trained range are
    written to one float16 file, from which items are read: memory is bounded by the batch, not by the data set.

    ``label`` of an item is 0 (healthy) or 1 (diseased) for all its slices, or a list with 0, 1, or -1 (leave out) for
    each slice of the file along its axis nearest to superior-inferior.

    Args:
        datalist: items with ``image`` and ``label``.
        preprocessing: dictionary transforms that make ``image`` ``(C, H, W, D)``.
        cache_dir: where the cache lies; it is found again by a hash of the datalist and the preprocessing.
        min_area_fraction: see `preprocessing.assessed_slices`.
        transform: applied to every item, for augmentation.

    Items are ``{"image": float32 (C, H, W), "label": int}``. A volume that can't be read is named in the log and left out.

    Raises:
        ValueError: no slice is left.
    """

    def __init__(
        self,
        datalist: Sequence[dict[str, Any]],
        preprocessing: Compose,
        cache_dir: str,
        min_area_fraction: float,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.transform = transform
        stem = Path(cache_dir) / f"slices-{fingerprint([list(datalist), min_area_fraction], preprocessing)}"
        index, array = stem.with_suffix(".json"), stem.with_suffix(".npy")
        if not index.is_file():
            self._build(datalist, preprocessing, min_area_fraction, index, array)
        self.path = array
        meta = json.loads(index.read_text())
        self.labels: list[int] = meta["labels"]
        self.subjects: list[str] = meta["subjects"]
        self._slices = np.load(array, mmap_mode="r")

    @staticmethod
    def _build(
        datalist: Sequence[dict[str, Any]], preprocessing: Compose, min_area_fraction: float, index: Path, array: Path
    ) -> None:
        index.parent.mkdir(parents=True, exist_ok=True)
        labels: list[int] = []
        subjects: list[str] = []
        raw = array.with_suffix(".part")
        shape: tuple[int, ...] = ()
        with raw.open("wb") as file:
            for item in tqdm(datalist, desc="preprocessing", unit="volume"):
                source = {k: v for k, v in item.items() if k in ("image", "spacing", "brain")}
                try:
                    image = preprocessing(source)["image"]
                except RuntimeError as error:  # MONAI wraps what a transform raises
                    logger.warning("left out: %s", error.__cause__ or error)
                    continue
                for z, label in labelled_slices(image, item["label"], min_area_fraction):
                    x = image[..., z].as_tensor().half().numpy()
                    shape = x.shape
                    file.write(x.tobytes())
                    labels.append(label)
                    subjects.append(str(item.get("subject", item["image"])))
        if not labels:
            raise ValueError("the datalist has no labelled slice within the trained range; see the warnings above.")
        data = np.memmap(raw, np.float16, "r", shape=(len(labels), *shape))
        partial = array.with_suffix(".tmp.npy")
        out = np.lib.format.open_memmap(partial, "w+", np.float16, data.shape)
        for i in range(0, len(data), 256):
            out[i : i + 256] = data[i : i + 256]
        out.flush()
        os.replace(partial, array)
        raw.unlink()
        partial_index = index.with_suffix(".tmp")
        partial_index.write_text(json.dumps({"labels": labels, "subjects": subjects}))
        os.replace(partial_index, index)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        item = {"image": torch.from_numpy(self._slices[i].astype(np.float32)), "label": self.labels[i]}
        return augmented(item, self.transform)


def random_sampler(dataset: Any, num_samples: int, balanced: bool, seed: int) -> WeightedRandomSampler:
    """Draw `num_samples` slices with replacement, each class of the dataset's ``labels`` equally often if `balanced`."""
    labels = torch.tensor(dataset.labels)
    weights = 1.0 / torch.bincount(labels)[labels] if balanced else torch.ones(len(labels))
    return WeightedRandomSampler(weights.tolist(), num_samples, generator=torch.Generator().manual_seed(seed))
