"""BraTS, 2017 to 2023, as it is published."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checks import check_number
from .known import groups_of
from .options import choice, folder_of, is_there, rows_of, texts
from .preparation import Preparation
from .slice_labels import NO_TUMOUR, checked_slices, labels_of, lesion_voxels
from .splitting import section_of

SEQUENCES = ("t1", "t1ce", "t2", "flair")
SINCE_2023 = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
FILE = re.compile(r"(.+)[_-](t1|t1ce|t2|flair|seg|t1n|t1c|t2w|t2f)\.nii(?:\.gz)?", re.IGNORECASE)
EXPECTED = (
    "Expected are folders such as BraTS2021_00000 with BraTS2021_00000_flair.nii.gz and BraTS2021_00000_seg.nii.gz."
)


def brats(
    *,
    root: str,
    output: str,
    sequences: Any = "flair",
    slices: Any = None,
    least_voxels: int = 1,
    every: int = 1,
    split: str | None = None,
    fractions: Any = (0.7, 0.1, 0.2),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """BraTS 2017 to 2023: folders of cases at any depth, with the names of any year.

    Slices are labelled by the expert's mask. A timepoint of 2023 is not a patient of its own. Where `root` has a
    ``cases.csv`` with the columns case and split, the published split is that. Its column tcga_patient, if there is one, names
    the patient as other data sets of TCGA do, so that nobody counts twice where lists are merged.

    Args:
        root: the folder of the data set.
        output: the datalist to write, a .json file.
        sequences: one a channel, of t1, t1ce, t2 and flair, such as t1,t1ce,t2,flair.
        slices: the first and the last to use, counted from 0 at the bottom; the paper's are 80,128 of 155. By default all.
        least_voxels: that make a slice diseased; slices with fewer, but some, are left out.
        every: 2 takes every second slice, and so on.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients in training, validation and test, where no split is given.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("brats", folder_of(root), dict(locals()))
    wanted = [choice(s, SEQUENCES, "sequences") for s in texts(sequences, "sequences")]
    between = checked_slices(slices)
    check_number("least_voxels", least_voxels, 1, 10**9, whole=True)
    check_number("every", every, 1, 10**3, whole=True)
    published = _published(Path(root) / "cases.csv")
    for folder, files in tqdm(list(_cases(Path(root))), desc="brats", unit="case"):
        name = folder.name
        missing = [part for part in (*wanted, "seg") if part not in files]
        if missing:
            made.damaged(name, f"has no {' and no '.join(missing)}.")
            continue
        images = [files[part] for part in wanted]
        try:
            lesion = made.reads.once([*images, files["seg"]], "lesion", partial(lesion_voxels, files["seg"], images))
        except (OSError, ValueError) as error:
            made.damaged(name, str(error))
            continue
        if not any(lesion["voxels"]):
            made.damaged(name, NO_TUMOUR)
            continue
        paths = [path.relative_to(root).as_posix() for path in images]
        row = published.get(name, {})
        made.add(
            {
                "image": paths if len(paths) > 1 else paths[0],
                "label": labels_of(lesion, between, least_voxels, every),
                "mask": files["seg"].relative_to(root).as_posix(),
                "subject": made.person(name, row.get("tcga_patient") or re.sub(r"(?<=-\d{5})-\d{3}$", "", name)),
                **_grade(folder, row),
            },
            section_of(row.get("split", "")) or None,
        )
    made.write(EXPECTED)


def _cases(root: Path) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Every folder that holds a case, with its files by what they are."""
    for place, folders, names in os.walk(root):
        folders.sort()
        files: dict[str, Path] = {}
        for name in sorted(names):
            match = FILE.fullmatch(name)
            if match and match[1] == Path(place).name:
                kind = match[2].lower()
                files[SINCE_2023.get(kind, kind)] = Path(place, name)
        if files and "seg" not in files:
            # in 2020, that of case 355 was called W39_1998.09.19_Segm.nii
            others = [n for n in names if re.search(r"seg.*\.nii(\.gz)?$", n, re.IGNORECASE) and n[0] != "."]
            if len(others) == 1:
                files["seg"] = Path(place, others[0])
        if files:
            yield Path(place), files


def _published(table: Path) -> dict[str, dict[str, str]]:
    """The lines of ``cases.csv``, if there is one."""
    return {row["case"]: row for row in rows_of(table, ("case", "split"))} if is_there(table) else {}


def _grade(folder: Path, row: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """High or low, as ``cases.csv`` says, or the folder that the case's lies in, until 2019."""
    by_folder = folder.parent.name if folder.parent.name in ("HGG", "LGG") else ""
    return groups_of({**row, "folder": by_folder}, {"grade": ["grade", "folder"]})
