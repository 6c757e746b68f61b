"""Several datalists as one."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import is_true
from ..learning.datalists import FILES, entries, read_datalist
from ..wording import some
from .counting import Item
from .options import folder_of, texts
from .preparation import Preparation

TCGA = re.compile(r"TCGA[_-]\w{2}[_-]\w{4}", re.IGNORECASE)
"""Names that are one person's in whatever set they stand."""


def merge(
    *, root: str, output: str, datalists: Any, same_patients: bool | str | None = None, overwrite: bool = False
) -> None:
    """Several datalists as one, such as those of several hospitals; each item stays in its split, and has its list as a group.

    Args:
        root: the folder that the datalists lie in.
        output: the datalist to write, a .json file.
        datalists: their names in `root`, such as a.json,b.json.
        same_patients: whether a name that stands in several lists is one patient's (true), or another one's in each (false),
            who is then named as a/001 and b/001. Needed where there is such a name, but for those of TCGA, which are one
            person's everywhere.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("merge", folder_of(root), dict(locals()))
    same = None if same_patients is None else is_true(same_patients, "same_patients")
    folder = Path(os.path.realpath(root))
    lists = {name: read_datalist(folder / name) for name in texts(datalists, "datalists")}
    doubtful = _in_several(lists)
    if doubtful and same is None:
        names = [f"{subject} in {' and '.join(where)}" for subject, where in doubtful.items()]
        raise ValueError(
            f"{len(doubtful)} names of patients stand in several lists: {some(names)}. Give --same_patients true if they are "
            "the same people, or --same_patients false if each list has its own."
        )
    for name, items in lists.items():
        sections = [section for _, section, _ in entries(folder / name)]
        own = Path(name).with_suffix("").as_posix()
        for item, section in zip(items, sections, strict=True):
            paths = {k: _relative(v, folder) for k, v in item.items() if k in FILES}
            subject = item.get("subject", str(item["image"]))
            if subject in doubtful and not same:
                subject = f"{own}/{subject}"
            groups = {"datalist": own} | item.get("groups", {})
            made.add({**item, **paths, "subject": subject, "groups": groups}, section or None)
    made.write("Expected are datalists with items.")


def _in_several(lists: Mapping[str, Sequence[Item]]) -> dict[str, list[str]]:
    """The patients' names that may be other people's in another list, with the lists that they stand in."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, items in lists.items():
        for subject in dict.fromkeys(item["subject"] for item in items if "subject" in item):
            found[subject].append(name)
    return {subject: where for subject, where in found.items() if len(where) > 1 and not TCGA.fullmatch(subject)}


def _relative(value: Any, folder: Path) -> Any:
    return [os.path.relpath(p, folder) for p in value] if isinstance(value, list) else os.path.relpath(value, folder)
