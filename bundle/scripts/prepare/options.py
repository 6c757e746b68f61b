"""What the commands are given: folders, words and tables, checked."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

HEALTHY_RULES = ("no_finding", "without_finding")
"""Which radiographs of a set with many findings count as healthy: those without any, or those without the one asked for."""


def folder_of(root: Any) -> Path:
    """The option ``--root``, a data set's folder.

    Raises:
        ValueError: it is no text or an empty one, or there is no such folder.
    """
    folder = path_of(root, "root", "a folder")
    if not folder.is_dir():
        raise ValueError(f"{root}: no such folder; give the data set's as --root.")
    return folder


def path_of(value: Any, name: str, kind: str) -> Path:
    """An option that is a path.

    Args:
        value: what was given.
        name: of the option.
        kind: what is allowed, in words.

    Raises:
        ValueError: it is no text, or an empty one, as of a shell's variable that isn't set: pathlib takes that for the
            current folder.
    """
    if not isinstance(value, str) or not value:
        hint = ", as of a variable that isn't set." if value == "" else f"; of a path, write ./{value}"
        raise ValueError(f"--{name} must be {kind}, got {value!r}{hint}")
    return Path(value)


def links_to_nothing(path: Path | os.DirEntry[str]) -> bool:
    """Whether a path is a link whose file isn't there, as of git-annex and DataLad before it is fetched."""
    return path.is_symlink() and not os.path.exists(path)


def is_there(table: Path) -> bool:
    """Whether a data set has a table that it may lack.

    Raises:
        ValueError: it has it, but the file that it links to isn't there.
    """
    if links_to_nothing(table):
        raise ValueError(f"{table}: links to a file that isn't there.")
    return table.is_file()


def texts(value: Any, name: str) -> list[str]:
    """An option that is a text or several, such as ``t1,flair``.

    Raises:
        ValueError: it is neither.
    """
    values = value.split(",") if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not values or not all(isinstance(v, str) and v for v in values):
        raise ValueError(f"--{name} must be a text, or several with commas between them, got {value!r}.")
    return [v.strip() for v in values]


def choice(value: Any, allowed: Sequence[str], name: str) -> str:
    """An option that is one of several words.

    Raises:
        ValueError: it is none of them.
    """
    if value not in allowed:
        raise ValueError(f"--{name} must be one of {', '.join(allowed)}, got {value!r}.")
    return str(value)


def rows_of(table: Path, columns: Collection[str], numbers: Collection[str] = ()) -> list[dict[str, str]]:
    """The lines of a CSV that has these columns, those of `numbers` too, which hold a number in each line.

    Raises:
        ValueError: it can't be read, or a column or a value is missing, or is no number.
    """
    columns = [*columns, *numbers]
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                got = ", ".join(reader.fieldnames or ())
                raise ValueError(f"{table}: has no column {' and no '.join(map(repr, missing))}; it has {got}.")
            rows = list(reader)
            # such as the last one of a download that broke off
            short = next(
                (n for n, row in enumerate(rows, start=2) if any(row[column] is None for column in columns)), None
            )
            if short is not None:
                raise ValueError(f"{table}: row {short} ends too early; is the file complete?")
            for n, row in enumerate(rows, start=2):
                for column in numbers:
                    if not _is_number(row[column]):
                        raise ValueError(f"{table}: row {n} must have a number as {column!r}, got {row[column]!r}.")
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: can't be read as a CSV ({error}).") from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
