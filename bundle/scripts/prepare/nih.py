"""NIH ChestX-ray14, as it is published."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import DISEASED, HEALTHY
from .known import groups_of
from .options import HEALTHY_RULES, choice, folder_of, is_there, rows_of, texts
from .preparation import Preparation

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
GROUPS = {"view": ["View Position"], "sex": ["Patient Gender", "Patient Sex"], "age": ["Patient Age"]}
BOXED = {"Infiltrate": "Infiltration"}
"""What BBox_List_2017.csv calls otherwise than the labels do."""


def nih(
    *,
    root: str,
    output: str,
    finding: str = "Effusion",
    healthy: str = "no_finding",
    views: Any = "AP,PA",
    split: str | None = None,
    fractions: Any = (0.8, 0.1, 0.1),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """NIH ChestX-ray14: radiographs with and without one finding.

    The images lie in images or in images_001/images to images_012/images. Where test_list.txt is there, its patients are the
    test split, and the others are drawn. The boxes of BBox_List_2017.csv are added, for evaluation.

    Args:
        root: the folder with Data_Entry_2017.csv or Data_Entry_2017_v2020.csv.
        output: the datalist to write, a .json file.
        finding: one of the set's labels, such as Effusion or Pneumothorax.
        healthy: no_finding, or without_finding (whatever else is found).
        views: AP, PA or both.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients in training, validation and test, where no split is given or published.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("nih", folder_of(root), dict(locals()))
    choice(healthy, HEALTHY_RULES, "healthy")
    wanted = [choice(view, ("AP", "PA"), "views") for view in texts(views, "views")]
    table = next((Path(root) / name for name in TABLES if is_there(Path(root) / name)), Path(root) / TABLES[0])
    rows = rows_of(table, COLUMNS)
    known = {label for row in rows for label in row["Finding Labels"].split("|")}
    if finding not in known:
        raise ValueError(f"--finding must be one of {', '.join(sorted(known - {'No Finding'}))}, got {finding!r}.")
    folders = ["images", *(f"images_{n:03d}/images" for n in range(1, 13))]
    places = {name: folder for folder in folders for name in made.names(Path(root) / folder)}
    boxes = _boxes(Path(root) / "BBox_List_2017.csv", finding)
    test, others = (_listed(Path(root) / name) for name in ("test_list.txt", "train_val_list.txt"))
    tests = {row["Patient ID"] for row in rows if row["Image Index"] in test}
    for row in tqdm(rows, desc=table.name, unit="image"):
        name, found = row["Image Index"], row["Finding Labels"].split("|")
        if row["View Position"] not in wanted:
            made.passed(f"views other than {' and '.join(wanted)}")
        elif finding not in found and found != ["No Finding"] and healthy == "no_finding":
            made.passed(f"with other findings than {finding}")
        elif test and others and name not in test and name not in others:
            made.passed("neither in train_val_list.txt nor in test_list.txt")
        elif name not in places:
            made.damaged(name, "no such file.")
        else:
            item = {
                "image": f"{places[name]}/{name}",
                "label": DISEASED if finding in found else HEALTHY,
                "subject": row["Patient ID"],
                **({"boxes": boxes[name]} if name in boxes else {}),
                **_spacing(row),
                **groups_of(row, GROUPS),
            }
            made.add(item, "test" if row["Patient ID"] in tests else None)
    made.write(f"Expected are {TABLES[1]} and the images in images or images_001/images to images_012/images.")


def _spacing(row: dict[str, str]) -> dict[str, list[float]]:
    """The mm of a pixel of the published images, which were scaled to 1024 x 1024, if the table says it."""
    try:
        width, height = (float(row[k]) for k in ("OriginalImage[Width", "Height]"))
        x, y = (float(row[k]) for k in ("OriginalImagePixelSpacing[x", "y]"))
    except (KeyError, ValueError):
        return {}
    return {"spacing": [round(x * width / 1024, 4), round(y * height / 1024, 4)]}


def _boxes(table: Path, finding: str) -> dict[str, list[list[float]]]:
    """The boxes of one finding by image, as x0, y0, x1, y1; the table's lines are image, finding, x, y, width, height."""
    boxes: defaultdict[str, list[list[float]]] = defaultdict(list)
    if not is_there(table):
        return boxes
    with table.open(newline="", encoding="utf-8-sig") as file:
        for n, row in enumerate(csv.reader(file), start=1):
            if n == 1 or not row or len(row) > 1 and BOXED.get(row[1], row[1]) != finding:
                continue
            try:
                x, y, width, height = map(float, row[2:6])
            except ValueError as error:
                raise ValueError(
                    f"{table}, line {n}: needs x, y, width and height of the box, got {row[2:]}."
                ) from error
            boxes[row[0]].append([x, y, x + width, y + height])
    return boxes


def _listed(path: Path) -> set[str]:
    return set(path.read_text("utf-8").split()) if is_there(path) else set()
