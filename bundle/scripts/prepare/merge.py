"""Several datalists as one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..learning.datalists import FILES, entries, read_datalist
from .options import folder_of, texts
from .preparation import Preparation


def merge(*, root: str, output: str, datalists: Any, overwrite: bool = False) -> None:
    """Several datalists as one, such as those of several hospitals; each item stays in its split, and has its list as a group.

    Args:
        root: the folder that the datalists lie in.
        output: the datalist to write, a .json file.
        datalists: their names in `root`, such as a.json,b.json.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("merge", folder_of(root), dict(locals()))
    folder = Path(os.path.realpath(root))
    for name in texts(datalists, "datalists"):
        sections = [section for _, section, _ in entries(folder / name)]
        items = read_datalist(folder / name)
        for item, section in zip(items, sections, strict=True):
            paths = {k: _relative(v, folder) for k, v in item.items() if k in FILES}
            groups = {"datalist": Path(name).with_suffix("").as_posix()} | item.get("groups", {})
            made.add({"subject": str(item["image"]), **item, **paths, "groups": groups}, section or None)
    made.write("Expected are datalists with items.")


def _relative(value: Any, folder: Path) -> Any:
    return [os.path.relpath(p, folder) for p in value] if isinstance(value, list) else os.path.relpath(value, folder)
