"""Datalists.

A datalist is a list of items, one a volume: ``image`` (a path, or one path a channel), ``label`` for training (see
`SliceDataset`), and, where there are any, ``subject``, ``spacing`` (true voxel size in mm where the header's is wrong),
``brain`` (path of a brain mask) and ``mask`` (path of a lesion mask: for evaluation only, training never reads it).
Another data set is one function that returns such a list.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
                **({"foreground": str(folder / "brain.nii.gz")} if brain_masks else {}),
                "subject": patient,
                "spacing": [1.8, 1.8, STACK_HEIGHT / len(rows)],
                "label": [int(r["has_tumour"]) if r["mid_slice"] == "1" else -1 for r in rows],
            }
        )
    return items


def read_datalist(path: str, split: str | None = None) -> list[dict[str, Any]]:
    """The items of a datalist file, of one section or of all, with absolute paths.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such section.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such datalist; give one as --datalist.")
    content = json.loads(file.read_text("utf-8"))
    if split is not None and not content.get(split):
        raise ValueError(f"{file}: has no section {split!r} with items.")
    items = content[split] if split is not None else [item for section in content.values() for item in section]
    return [{k: _absolute(v, file.parent) if k in ("image", "mask", "foreground") else v for k, v in item.items()} for item in items]


def _absolute(value: Any, folder: Path) -> Any:
    return [str(folder / v) for v in value] if isinstance(value, list) else str(folder / value)
