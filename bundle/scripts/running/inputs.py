"""Which volumes to run: of a file, a folder or a datalist, and not what is no image of the model's."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..checks import is_true
from ..images.sequences import sequence_of
from ..learning.datalists import checked, entries, is_subject, paths_of
from .records import is_result

INPUTS = "an image, a folder of them or a JSON datalist"
SUFFIXES = (".nii.gz", ".nii")


OTHER_FORMATS = tuple(".mgh .mgz .mha .mhd .nrrd .nhdr .img .dcm .npy .npz .png .jpg .jpeg".split())


def stem(path: str) -> str:
    """A path without the suffix of a NIfTI file, in whatever case that is written."""
    suffix = next((s for s in SUFFIXES if path.lower().endswith(s)), "")
    return path[: len(path) - len(suffix)]


def find_inputs(
    path: Any,
    sequences: Sequence[str] = ("FLAIR",),
    allow_any_image: bool | str = False,
    datalist: str | None = None,
    split: str | None = None,
) -> list[dict[str, Any]]:
    """The volumes to process, each with a ``name`` for its output folder; says how many there are and what was left out.

    Of a folder, NIfTI files are taken at any depth, through links too, but not hidden ones, nor results of ours, nor what is
    named as another sequence or as a mask (see `sequence_of`). An item that can't be processed, of a datalist or named as
    another sequence, is there with its ``error``.

    Args:
        path: a NIfTI file, a folder, or a JSON datalist, see `read_datalist`; the ``subject`` of an item is its name.
        sequences: the model's, one a channel.
        allow_any_image: take a file or an item that is named as another sequence, with a warning in ``warnings``.
        datalist: a JSON datalist instead of `path`, for those who name it as training and evaluation do.
        split: of a datalist, such as "test"; by default all.

    Raises:
        ValueError: something else than a path, nothing there, or a datalist that can't be read.
    """
    if datalist is not None:
        if path is not None:
            raise ValueError(f"give --input or --datalist, not both; got {path!r} and {datalist!r}.")
        path = datalist
    if path is None:
        return []  # MONAI's tools build what a config declares without an input; `Report.run` asks for one
    if not isinstance(path, str):
        got = "no value" if path is True else f"{path!r}; of a path, write ./{path}"
        raise ValueError(f"--input PATH is needed: {INPUTS}, got {got}.")
    source = Path(path)
    if source.is_dir():
        return _of_folder(source, sequences)
    if source.suffix.lower() == ".json":
        items = _of_datalist(source, split)
    elif source.is_file():
        items = [{"image": path, "name": stem(source.name)}]
    else:
        raise ValueError(f"{path}: no such file or folder.")
    for item in items:
        named = None if "error" in item else _other_sequence(item["image"], sequences)
        if named and is_true(allow_any_image, "allow_any_image"):
            item["warnings"] = [f"The file is named as {named}, the model takes {' and '.join(sequences)}."]
        elif named:
            item["error"] = (
                f"{item['image']}: is named as {named}, the model takes {' and '.join(sequences)}; to run it all the same, "
                "give --allow_any_image true."
            )
    print(f"{len(items)} {'volume' if len(items) == 1 else 'volumes'} found in {path}.")
    return items


def _other_sequence(image: str | Sequence[str], sequences: Sequence[str]) -> str | None:
    """What an image is named as, if that is no sequence of the model's, or not that of its channel."""
    paths = [image] if isinstance(image, str) else image
    for n, path in enumerate(paths):
        allowed = sequences if len(paths) == 1 or len(paths) != len(sequences) else [sequences[n]]
        named = sequence_of(stem(Path(path).name))
        if named is not None and named not in allowed:
            return named
    return None


def _of_folder(source: Path, sequences: Sequence[str]) -> list[dict[str, Any]]:
    items = []
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    for file in _files(source, left_out):
        name = file.relative_to(source).as_posix()
        if not name.lower().endswith(SUFFIXES):
            if name.lower().endswith(OTHER_FORMATS):
                left_out["no NIfTI: name each, or a datalist of them, as --input"].append(name)
        elif named := _other_sequence(name, sequences):
            left_out[f"named as {named}"].append(name)
        else:
            items.append({"image": str(file), "name": stem(name).replace("/", "-")})
    print(f"{len(items)} {'volume' if len(items) == 1 else 'volumes'} found in {source}.")
    reasons = []
    for reason, names in left_out.items():
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        reasons.append(f"{len(names)} {reason} ({some})")
    if reasons:
        print("  Left out: " + "; ".join(reasons) + ".")
    if not items:
        raise ValueError(f"{source}: no NIfTI file (.nii, .nii.gz) in this folder" + "; ".join(["", *reasons]) + ".")
    return items


def _files(source: Path, left_out: defaultdict[str, list[str]]) -> Iterator[Path]:
    """All files in a folder in the order of their paths, through links, each folder once, but not what is hidden or ours."""
    seen = set()
    # folders proper come before links to them
    waiting = [source]
    linked: list[Path] = []
    found = []
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        name = folder.relative_to(source).as_posix()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            left_out["can't be read"].append(f"{name}: {error.strerror}")
            continue
        if (status.st_dev, status.st_ino) in seen:
            left_out["links to a folder that was searched"].append(name)
            continue
        seen.add((status.st_dev, status.st_ino))
        if folder != source and is_result(folder):
            left_out["of our own results"].append(name)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                if entry.name.lower().endswith(SUFFIXES) or os.path.isdir(entry.path):
                    left_out["hidden"].append(Path(name, entry.name).as_posix())
            elif os.path.isdir(entry.path):  # unlike the entry's own, of a link to itself too
                (linked if entry.is_symlink() else waiting).append(Path(entry.path))
            else:
                found.append(Path(entry.path))
    yield from sorted(found)


def _of_datalist(source: Path, split: str | None) -> list[dict[str, Any]]:
    items = []
    for n, (where, section, entry) in enumerate(entries(source, split)):
        if split not in (None, section):
            continue
        subject = entry.get("subject") if isinstance(entry, dict) else None
        item: dict[str, Any] = {"image": None, "name": str(subject) if is_subject(subject) else f"item-{n}"}
        try:
            item |= checked(entry, source)
            if "subject" not in item:
                item["name"] = stem(paths_of(entry if isinstance(entry, dict) else {"image": entry})[0])
        except ValueError as error:
            item["error"] = f"{source.name}, {where}: {error}"
        items.append(item)
    return items
