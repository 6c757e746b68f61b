"""The labelled items that a model is judged on."""

from __future__ import annotations

from pathlib import Path

from ..learning.datalists import Item, entries, read_datalist


def items_of(datalist: str | None, split: str, needed: bool = False) -> list[Item]:
    """A section of a datalist; nothing where there is none and it isn't needed.

    Raises:
        ValueError: no datalist is given, see `read_datalist`, or the section is needed and has no item.
    """
    if datalist is None:
        raise ValueError("no datalist is given; name the JSON file with the labelled images as --datalist.")
    if not needed and all(section != split for _, section, _ in entries(Path(datalist))):
        return []
    return read_datalist(datalist, split)
