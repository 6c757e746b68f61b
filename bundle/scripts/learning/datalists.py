"""Datalists: which images there are, and what is known of each.

A datalist is a JSON file in the form of the Medical Segmentation Decathlon, ``{"training": [...], "validation": [...], "test":
[...]}``, with an item an image::

    {"image": "p1/flair.nii.gz", "label": [0, 0, 1, -1], "subject": "p1", "mask": "p1/seg.nii.gz", "spacing": [1, 1, 5]}

``python -m scripts.prepare`` writes one for the published data sets and for a folder of images.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILES = ("image", "mask", "foreground")
"""What an item gives as paths, which are relative to the file."""

FIELDS = (*FILES, "label", "boxes", "subject", "spacing", "groups")

Item = dict[str, Any]


def read_datalist(path: str | Path, split: str | None = None, labelled: bool = False) -> list[Item]:
    """The items of a datalist, checked, with paths made absolute; that the files are there is not checked.

    Unlike `monai.data.load_decathlon_datalist`, which takes every text that happens to name a file for a path, asks the disk
    about each, and checks nothing.

    An item has

    - ``image``: a path, or a list with one a channel. An item that is nothing but a path is its image.
    - ``label``: 0 (healthy), 1 (diseased) or -1 (leave out) for the whole image, or a list with one a slice of the file.
    - ``mask``: the path of a lesion mask, and ``boxes``: ``[[x0, y0, x1, y1], ...]`` in pixels of the file. Both are for
      evaluation only: training never sees them.
    - ``foreground``: the path of a mask of what is to be looked at, such as the brain.
    - ``subject``: the patient. No patient may be in two splits.
    - ``spacing``: mm a voxel along the file's three axes (of a picture, two), where the header's are wrong or missing.
    - ``groups``: what an evaluation reports by, such as ``{"sex": "F", "hospital": "A"}``.

    Only ``image`` is needed.

    Args:
        path: the JSON file. A plain list of items is allowed where `split` is None.
        split: its section, such as "training", "validation" or "test"; None for the items of all.
        labelled: refuse an item without ``label``.

    Raises:
        ValueError: it names the file, the entry, what was wrong, what is allowed and what was given. Two entries with the
            same image, a file of two subjects or a subject or file in two splits are refused too, whichever split is asked
            for; links to a file are that file.
    """
    source = Path(path)
    wanted: list[Item] = []
    images: dict[tuple[str, ...], str] = {}
    owners: dict[str, tuple[str, str, str | None]] = {}
    splits: dict[str, str] = {}
    real_folder = cache(os.path.realpath)
    for where, section, entry in entries(source, split):
        try:
            item = checked(entry, source)
            if labelled and split in (None, section) and "label" not in item:
                raise ValueError("has no 'label'; training needs 0, 1 or -1, or a list with one a slice.")
            files = tuple(real_path(p, real_folder) for p in paths_of(item))
            if files in images:
                raise ValueError(f"has the same image as {images[files]} ({files[0]}).")
            images[files] = where
            for file in files:
                owner = owners.setdefault(file, (where, section, item.get("subject")))
                subjects = {owner[2], item.get("subject")} - {None}
                if owner[1] != section or len(subjects) > 1:
                    raise ValueError(f"{file} is in {owner[0]} too, in another split or of another subject.")
            before = splits.setdefault(item["subject"], section) if "subject" in item else section
            if before != section:
                raise ValueError(
                    f"subject {item['subject']!r} is in {before!r} too; what is learned of a patient must not be tested on it."
                )
        except ValueError as error:
            raise ValueError(f"{source}, {where}: {error}") from error
        if split in (None, section):
            wanted.append(item)
    if not wanted:
        raise ValueError(f"{source}: no item is in {'it' if split is None else repr(split)}.")
    return wanted


def entries(source: Path, split: str | None = None) -> Iterator[tuple[str, str, Any]]:
    """Every entry of a datalist as it is written, with its place, such as "training[3]", and its section ("" of a plain list).

    Raises:
        ValueError: the file can't be read, is no datalist, or has no section `split`.
    """
    try:
        # of bytes, it knows the byte order marks and the UTF-16 of Windows' programs
        content = json.loads(source.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{source}: can't be read as a JSON datalist ({error}).") from error
    if isinstance(content, list) and split is None:
        content = {"": content}
    # beside its sections, the Decathlon's files hold a name, a licence and the like
    sections = {k: v for k, v in content.items() if isinstance(v, list)} if isinstance(content, dict) else {}
    if not any(sections.values()):
        raise ValueError(
            f'{source}: holds no items; a datalist is {{"training": [...], "validation": [...], "test": [...]}} with items '
            f'such as {{"image": "flair.nii.gz", "label": 0}}.'
        )
    if split is not None and split not in sections:
        raise ValueError(f"{source}: has no {split!r}; it has {' and '.join(map(repr, sections))}.")
    for section, items in sections.items():
        for n, entry in enumerate(items):
            yield f"{section}[{n}]" if section else f"item {n}", section, entry


def checked(entry: Any, source: Path) -> Item:
    """An entry of the datalist `source` as an item whose paths are absolute, see `read_datalist`.

    Raises:
        ValueError: what was wrong, what is allowed and what was given.
    """
    if isinstance(entry, str):
        entry = {"image": entry}
    if not isinstance(entry, dict):
        raise ValueError(f'must be an item such as {{"image": "flair.nii.gz"}}, got {_shown(entry)}.')
    for field in entry:
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1, cutoff=0.8)
            near = ["foreground"] if field == "brain" else near  # as it was called in 0.1
            hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(FIELDS)}."
            raise ValueError(f"{field!r} is no field; {hint}")
    item = {field: value for field, value in entry.items() if value is not None and value != ""}
    for field, (is_right, allowed) in RULES.items():
        if field == "image" or field in item:
            if not is_right(item.get(field)):
                hint = ""
                if field == "label" and isinstance(item[field], str):
                    hint = "; a mask is given as 'mask'"
                raise ValueError(f"{field!r} must be {allowed}, got {_shown(item.get(field))}{hint}.")
    folder = os.path.abspath(source.parent)
    for field in FILES:
        if field in item:
            value = item[field]
            absolute = [os.path.join(folder, p) for p in ([value] if isinstance(value, str) else value)]
            item[field] = absolute[0] if isinstance(value, str) else absolute
    if "subject" in item:
        item["subject"] = str(item["subject"])
    return item


def paths_of(item: Mapping[str, Any]) -> list[str]:
    """The files of an item's image, one a channel."""
    return [item["image"]] if isinstance(item["image"], str) else item["image"]


def real_path(path: str, real_folder: Callable[[str], str] = os.path.realpath) -> str:
    """Where a file lies, whatever links lead there.

    Args:
        path: of the file.
        real_folder: of a folder; where one is remembered, each file costs one look at the disk.
    """
    folder, name = os.path.split(path)
    real = os.path.join(real_folder(folder), name)
    return os.path.realpath(real) if name in ("", ".", "..") or os.path.islink(real) else real


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_path(value: Any) -> bool:
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value) and value != ""
    except UnicodeEncodeError:
        return False


def _is_image(value: Any) -> bool:
    return _is_path(value) or isinstance(value, list) and bool(value) and all(map(_is_path, value))


def _is_label(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(v) is int and v in (-1, 0, 1) for v in value)
    return type(value) is int and value in (-1, 0, 1)


def is_subject(value: Any) -> bool:
    """Whether a value can name a patient."""
    return isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != ""


def _is_spacing(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (2, 3) and all(_is_number(v) and v > 0 for v in value)


def _are_groups(value: Any) -> bool:
    if not isinstance(value, dict) or any(":" in name for name in value):
        return False
    return all(isinstance(v, str) and v.strip() and v.isprintable() for both in value.items() for v in both)


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return False
    x0, y0, x1, y1 = value
    return bool(x0 < x1 and y0 < y1)


def _are_boxes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_box, value))


RULES = {
    "image": (_is_image, "a path, or a list of paths, one a channel"),
    "mask": (_is_path, "a path"),
    "foreground": (_is_path, "a path"),
    "label": (_is_label, "0 (healthy), 1 (diseased) or -1 (leave out), or a list with one a slice"),
    "boxes": (_are_boxes, "a list of boxes [x0, y0, x1, y1], four numbers with x0 < x1 and y0 < y1"),
    "subject": (is_subject, "a text"),
    "spacing": (_is_spacing, "three voxel sizes in mm above 0 (of a picture, two)"),
    "groups": (_are_groups, 'names without a colon, each with a text, such as {"sex": "F"}'),
}
"""For each field whether a value is right, and what is allowed in words."""
