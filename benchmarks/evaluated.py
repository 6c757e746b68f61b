"""The tables of results in README and cards, from what `evaluate.json` wrote of the networks of today: which cell is which.

A part is the stem of the files of an evaluation in benchmarks, such as "brain_flair/whole". What it has in ``_foreground.csv``
and in ``_scores.csv`` is one row a method.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.judging.readings import COUNTERFACTUAL, OURS, P_DISEASED, PAPER, STUDENT

BRIGHTNESS = "FLAIR minus slice median, 3x3 median"
PLAIN = ("FLAIR intensity", "T2 intensity", "Grad-CAM of the classifier")
"""What needs no counterpart, besides."""
SHIPPED = "at the bundle's threshold"
AP, DICE, AUROC, PER_VOLUME, PER_SLICE = (
    *("pixel AP", "Dice pooled", "image AUROC"),
    *("Dice per volume", "Dice per slice, Otsu per slice"),
)
GENERAL = {"pixel AP": AP, "pooled Dice": DICE, "image AUROC": AUROC}
LESIONS = {
    "Dice a volume": PER_VOLUME,
    "lesions found": "lesions found",
    "false lesions a volume": "false lesions per volume",
    "AUPRO, FPR to .3": "AUPRO, FPR to 0.3",
    "AUPIMO, FPR .0001 to .01": "AUPIMO, FPR 0.0001 to 0.01",
}


DECISIONS = (
    "slices called diseased where p(diseased) is above .5",
    {name: f"{name}, p above 0.5" for name in ("sensitivity", "specificity")},
)
"""The heading and the columns of a table of what p(diseased) decides."""


@dataclass(frozen=True)
class Row:
    """A row: its name in the table, the method in the files of its part, and the columns that it leaves empty."""

    name: str
    part: str
    method: str
    without: Sequence[str] = ()


@dataclass(frozen=True)
class Evaluated:
    """A table: the heading of its names, its columns as they are called here and in the files, and its rows.

    A column of two parts, separated by a colon, is that of another method.
    """

    heading: str
    columns: dict[str, str]
    rows: Sequence[Row]


def _flair(part: str) -> list[Row]:
    return [
        Row("ours, default", part, f"{OURS}, {SHIPPED}"),
        Row("ours, student", part, STUDENT),
        Row("ours, counterfactual alone", part, COUNTERFACTUAL),
        Row(BRIGHTNESS, part, BRIGHTNESS),
        Row("our networks, read as in the paper", part, PAPER),
    ]


_LIKEWISE = [
    Row("ours, student, likewise", "brats/test", STUDENT),
    Row("ours, counterfactual alone, likewise", "brats/test", COUNTERFACTUAL),
    Row("the paper's map, likewise", "brats/test", PAPER),
    *(Row(f"{name}, likewise", "brats/test", name) for name in (BRIGHTNESS, *PLAIN)),
]
_OTHERS = {
    "glioma, 7 test patients of BraTS, every second slice": "brats",
    "tumour, one patient, slices of 6 mm": "tumour",
    "white-matter lesions, 2 patients": "wmh",
}
_RADIOGRAPHS = {
    "the map": (COUNTERFACTUAL, "score: the map's mean, times p"),
    "the paper's map": (PAPER, "the paper's map"),
    "intensity above the healthy mean": ("intensity above the healthy mean", "intensity above the healthy mean"),
    "the lowest third, a blind guess": ("lowest third, a blind guess", ""),
    "Grad-CAM of the classifier": ("Grad-CAM of the classifier", "Grad-CAM of the classifier"),
}
_CHESTS = {
    "nih": "NIH split, 101 images, 47 with effusion",
    "patients": "other patients, 231 images, 74 with effusion",
}
TABLES = {
    "flair": Evaluated("all slices with brain", GENERAL, _flair("brain_flair/whole")),
    "flair_first": Evaluated(
        "all slices with brain", GENERAL, [r for r in _flair("brain_flair/whole") if r.method != COUNTERFACTUAL]
    ),
    "flair_lesions": Evaluated("all slices with brain", LESIONS, _flair("brain_flair/whole")),
    "flair_middle": Evaluated("slices from the middle", GENERAL, _flair("brain_flair/middle")),
    "flair_others": Evaluated(
        "whole volumes",
        {
            "pixel AP: ours": AP,
            BRIGHTNESS: f"{BRIGHTNESS}: {AP}",
            "pooled Dice at the shipped threshold": DICE,
            "image AUROC": AUROC,
        },
        [Row(name, f"brain_flair/{part}", f"{OURS}, {SHIPPED}") for name, part in _OTHERS.items()],
    ),
    "flair_decisions": Evaluated(
        *DECISIONS,
        [
            Row("glioma, 14 test patients of TCGA-LGG", "brain_flair/whole", P_DISEASED),
            *(Row(name, f"brain_flair/{part}", P_DISEASED) for name, part in _OTHERS.items()),
        ],
    ),
    "brats_decisions": Evaluated(
        *DECISIONS,
        [
            Row("whole volumes, every second slice", "brats/test", P_DISEASED),
            Row("the paper's slices, 80 to 128", "brats/paper_slices", P_DISEASED),
        ],
    ),
    "brats": Evaluated(
        "whole volumes",
        {"pixel AP": AP, "pooled Dice": DICE, "Dice a volume": PER_VOLUME, "image AUROC": AUROC},
        [
            Row("ours, default, at the shipped threshold", "brats/test", f"{OURS}, {SHIPPED}"),
            Row(
                "ours, default, threshold of the best Dice on validation",
                *("brats/test", OURS, ("pixel AP", "image AUROC")),
            ),
            *_LIKEWISE,
            Row("FLAIR's networks, at their shipped threshold", "brain_flair/brats", f"{OURS}, {SHIPPED}"),
        ],
    ),
    "brats_slices": Evaluated(
        "the paper's slices, 80 to 128: 343, 213 with tumour",
        {
            "pixel AP": AP,
            "pooled Dice": DICE,
            "Dice a slice, Otsu's threshold of each": PER_SLICE,
            "image AUROC": AUROC,
        },
        [
            Row("ours, default, at the shipped threshold", "brats/paper_slices", f"{OURS}, {SHIPPED}"),
            *(
                Row(name, "brats/paper_slices", method, ("pooled Dice",))
                for name, method in (
                    ("ours, student", STUDENT),
                    ("ours, counterfactual alone", COUNTERFACTUAL),
                    ("the paper's map", PAPER),
                    *((name, name) for name in (BRIGHTNESS, *PLAIN)),
                )
            ),
            Row(
                *(
                    "FLAIR's networks, at their shipped threshold",
                    "brain_flair/brats_paper_slices",
                    f"{OURS}, {SHIPPED}",
                )
            ),
        ],
    ),
    "chest": Evaluated(
        "other patients: where it is, 16 images with radiologists' regions",
        {"pixel AP": AP, "pointing game": "pointing game", "boxes found": "boxes found", "IoU": "IoU per slice"},
        [Row(name, "chest_effusion/patients", method) for name, (method, _) in _RADIOGRAPHS.items()],
    ),
    "chest_decisions": Evaluated(
        "images called diseased where p(effusion) is above .5",
        DECISIONS[1],
        [Row(whose, f"chest_effusion/{part}", P_DISEASED) for part, whose in _CHESTS.items()],
    ),
    **{
        f"chest_{part}": Evaluated(
            f"image-level, {whose}",
            {"AUROC": AUROC, "AP": "image AP"},
            [
                Row("p(effusion)", f"chest_effusion/{part}", P_DISEASED),
                *(Row(score, f"chest_effusion/{part}", method) for method, score in _RADIOGRAPHS.values() if score),
            ],
        )
        for part, whose in _CHESTS.items()
    },
}
"""The tables by the names that documents give them."""


def methods(part: str, folder: Path) -> dict[str, dict[str, str]]:
    """What a part has of each method. What the default has at no threshold counts at the shipped one."""
    rows: dict[str, dict[str, str]] = {}
    for kind in ("scores", "foreground"):
        path = folder / f"{part}_{kind}.csv"
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                name = next(iter(row.values()))
                known = rows.get(name, rows.get(name.removesuffix(f", {SHIPPED}"), {}))
                rows[name] = known | {column: value for column, value in row.items() if value}
    return rows


def cells(table: Evaluated, folder: Path) -> list[list[str]]:
    """The cells of a table, a row a list, the names first."""
    found = []
    for row in table.rows:
        of_part = methods(row.part, folder)
        values = []
        for title, column in table.columns.items():
            *other, metric = column.split(": ")
            values.append("" if title in row.without else of_part[other[0] if other else row.method][metric])
        found.append([row.name, *values])
    return found
