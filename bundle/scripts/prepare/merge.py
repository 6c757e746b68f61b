"""Several datalists as one."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..checks import is_true
from ..learning.datalists import FILES, entries, paths_of, read_datalist, real_path
from ..wording import some
from .counting import Item
from .options import folder_of, texts
from .preparation import Preparation

TCGA = re.compile(r"TCGA[_-]([A-Z0-9]{2})[_-]([A-Z0-9]{4})(?:[_-].*)?", re.IGNORECASE)
"""Names that are one person's in whatever set they stand, of the person or of a sample, scan or date of theirs."""

Name = tuple[str, str]
"""Of a patient: the datalist, and the subject in it."""


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
            person's everywhere, however they are written. An image that stands in several lists is of one patient too.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("merge", folder_of(root), dict(locals()))
    same = None if same_patients is None else is_true(same_patients, "same_patients")
    folder = Path(os.path.realpath(root))
    lists = {name: read_datalist(folder / name) for name in texts(datalists, "datalists")}
    people = _people(lists, bool(same))
    doubtful = _in_several(people)
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
            first, subject = people[name, _subject(item)]
            if subject in doubtful:
                subject = f"{Path(first).with_suffix('').as_posix()}/{subject}"
            groups = {"datalist": own} | item.get("groups", {})
            made.add({**item, **paths, "subject": subject, "groups": groups}, section or None)
    made.write("Expected are datalists with items.")


def _subject(item: Item) -> str:
    return str(item.get("subject", item["image"]))


def _people(lists: Mapping[str, Sequence[Item]], same: bool) -> dict[Name, Name]:
    """Of each name in each list, the first one of that person.

    Names are one person's if they share an image, are TCGA's of one person, or, where `same` is true, are the same.
    """
    persons: dict[Any, set[Any]] = {}
    named = [((name, _subject(item)), item) for name, items in lists.items() for item in items]
    real_folder = cache(os.path.realpath)
    for name, item in named:
        signs: set[Any] = {name, *(real_path(path, real_folder) for path in paths_of(item))}
        if tcga := TCGA.fullmatch(name[1]):
            signs.add(("TCGA", *(part.upper() for part in tcga.groups())))
        if same:
            signs.add(("", name[1]))
        signs = signs.union(*(persons.get(sign, ()) for sign in signs))
        persons |= dict.fromkeys(signs, signs)
    first: dict[int, Name] = {}
    return {name: first.setdefault(id(persons[name]), name) for name, _ in named}


def _in_several(people: Mapping[Name, Name]) -> dict[str, list[str]]:
    """The names that are different people's, as far as is known, with a list of each of these."""
    found: defaultdict[str, dict[Name, str]] = defaultdict(dict)
    for (name, subject), person in people.items():
        found[subject].setdefault(person, name)
    return {subject: list(of.values()) for subject, of in found.items() if len(of) > 1}


def _relative(value: Any, folder: Path) -> Any:
    return [os.path.relpath(p, folder) for p in value] if isinstance(value, list) else os.path.relpath(value, folder)
