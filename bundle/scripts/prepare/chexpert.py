"""CheXpert, as it is published: ``train.csv``, ``valid.csv`` and the radiographs in the folders that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import DISEASED, HEALTHY
from .known import groups_of
from .options import HEALTHY_RULES, choice, folder_of, is_there, rows_of, texts
from .preparation import Preparation

COLUMNS = ("Path", "Frontal/Lateral", "AP/PA", "No Finding")
GROUPS = {"view": ["AP/PA"], "sex": ["Sex"], "age": ["Age"]}


def chexpert(
    *,
    root: str,
    output: str,
    finding: str = "Pleural Effusion",
    healthy: str = "no_finding",
    uncertain: str = "ignore",
    views: Any = "AP,PA",
    split: str | None = None,
    fractions: Any = (0.9, 0.1, 0),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """CheXpert: frontal radiographs with and without one finding. Lateral views are passed over.

    The patients of valid.csv, which radiologists labelled, are the test split. Those of train.csv are drawn.

    Args:
        root: the folder with train.csv or valid.csv or both, of the whole or of the small version.
        output: the datalist to write, a .json file.
        finding: the column whose 1 means diseased.
        healthy: no_finding (where "No Finding" is 1) or without_finding (where the finding is 0, whatever else there is).
        uncertain: what -1 is taken as: ignore (leave the image out), positive or negative.
        views: AP, PA or both.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients of train.csv in training, validation and test, where no split is given.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("chexpert", folder_of(root), dict(locals()))
    choice(healthy, HEALTHY_RULES, "healthy")
    uncertain_is = {"ignore": None, "positive": 1.0, "negative": 0.0}[
        choice(uncertain, ("ignore", "positive", "negative"), "uncertain")
    ]
    wanted = [choice(view, ("AP", "PA"), "views") for view in texts(views, "views")]
    tables = [name for name in ("train.csv", "valid.csv") if is_there(Path(root) / name)]
    for table in tables:
        section = "test" if table == "valid.csv" else None
        for row in tqdm(rows_of(Path(root) / table, (*COLUMNS, finding)), desc=table, unit="image"):
            path = _place(row["Path"])
            if row["Frontal/Lateral"] != "Frontal":
                made.passed("lateral views")
                continue
            if row["AP/PA"] not in wanted:
                made.passed(f"views other than {' and '.join(wanted)}")
                continue
            try:
                label = _label(row, finding, healthy, uncertain_is)
            except ValueError as error:
                made.damaged(path.as_posix(), str(error))
                continue
            if label is None:
                made.passed(f"neither healthy nor with {finding}, or uncertain")
            elif path.name not in made.names(Path(root) / path.parent):
                made.damaged(path.as_posix(), "no such file.")
            else:
                patient = next((part for part in path.parts if part.startswith("patient")), path.parts[0])
                item = {"image": path.as_posix(), "label": label, "subject": patient, **groups_of(row, GROUPS)}
                made.add(item, section)
    made.write("Expected are train.csv or valid.csv, and the folders train and valid.")


def _place(path: str) -> Path:
    """Where an image lies below the root: the table's paths begin with the name that the set's folder once had."""
    parts = Path(path).parts
    return Path(*parts[1:]) if parts and parts[0].startswith("CheXpert") else Path(path)


def _label(row: dict[str, str], finding: str, healthy: str, uncertain_is: float | None) -> int | None:
    """0, 1, or None if the image is to be left out. An empty field means that the report does not speak of it."""
    value = _value(row, finding)
    value = uncertain_is if value == -1 else value
    if value == 1:
        return DISEASED
    is_healthy = value == 0 if healthy == "without_finding" else _value(row, "No Finding") == 1
    return HEALTHY if is_healthy else None


def _value(row: dict[str, str], column: str) -> float | None:
    try:
        return float(row[column]) if row[column] else None
    except ValueError as error:
        raise ValueError(f"{column!r} must be 1, 0, -1 or empty, got {row[column]!r}.") from error
