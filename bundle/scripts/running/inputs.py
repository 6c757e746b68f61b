"""Which volumes to run: of a file, a folder or a datalist, and not what is no image of the model's."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..checks import is_true
from ..files import each_folder
from ..images.dicom_pixels import codes_in
from ..images.dicom_series import describe
from ..images.formats import (
    DICOM,
    OTHERS,
    PICTURES,
    VOLUMES,
    allowed_formats,
    dicom_files,
    is_dicom,
    stem,
    takes_pictures,
    takes_volumes,
)
from ..images.sequences import sequence_of
from ..learning.datalists import checked, entries, is_subject, paths_of
from ..ranks import join, of_first
from ..wording import some
from .records import is_result
from .studies import by_study

INPUTS = "an image, a folder of them or a JSON datalist"


def find_inputs(
    path: Any,
    sequences: Sequence[str] = ("FLAIR",),
    allow_any_image: bool | str = False,
    datalist: str | None = None,
    split: str | None = None,
    modalities: Sequence[str] = ("MR",),
) -> list[dict[str, Any]]:
    """The volumes to process, each with a ``name`` for its output folder; says how many there are and what was left out.

    Of a folder, images are taken at any depth, through links too, but not hidden ones, nor results of ours, nor what is named
    as another sequence or as a mask (see `sequence_of`). For a model of volumes, a folder that DICOM files lie in is one
    volume, unless its series is described as another sequence; for a model of pictures, each DICOM file is one. DICOM images of
    another modality are left out. For a model of several sequences, an item of a folder is a study, see `studies.by_study`. An
    item that can't be processed, of a datalist or named as another sequence, is there with its ``error``. Of several ranks,
    the first looks for all.

    Args:
        path: an image, a folder with one series of DICOM images or with images, or a JSON datalist, see `read_datalist`; the
            ``subject`` of an item is its name.
        sequences: the model's, one a channel.
        allow_any_image: take a file or an item that is named as another sequence, with a warning in ``warnings``. For a model
            of pictures, take DICOM images of any modality from a folder.
        datalist: a JSON datalist instead of `path`, for those who name it as training and evaluation do.
        split: of a datalist, such as "test"; by default all.
        modalities: what the model takes, see `LoadVolumed`.

    Raises:
        ValueError: something else than a path, nothing there, or a datalist that can't be read.
    """
    if datalist is not None:
        if path is not None:
            raise ValueError(f"give --input or --datalist, not both; got {path!r} and {datalist!r}.")
        if isinstance(datalist, str) and not datalist.lower().endswith(".json"):
            raise ValueError(
                f"--datalist must be a .json file, got {datalist!r}; images and folders are given as --input."
            )
        path = datalist
    if path is None:
        return []  # MONAI's tools build what a config declares without an input; `Report.run` asks for one
    join()
    return of_first(lambda: _found(path, sequences, is_true(allow_any_image, "allow_any_image"), split, modalities))


def _found(
    path: Any, sequences: Sequence[str], allow_any_image: bool, split: str | None, modalities: Sequence[str]
) -> list[dict[str, Any]]:
    if not isinstance(path, str) or not path:
        # pathlib takes an empty text for the current folder
        given = (
            "an empty text, as of a variable that isn't set" if path == "" else f"{path!r}; of a path, write ./{path}"
        )
        got = "no value" if path is True else given
        raise ValueError(f"--input PATH is needed: {INPUTS}, got {got}.")
    source = Path(path)
    if split is not None and source.suffix.lower() != ".json":
        raise ValueError(f"--split {split} is a part of a datalist, and {path} is none.")
    pictures = takes_pictures(modalities) and not takes_volumes(modalities)
    if source.is_dir() and not (takes_volumes(modalities) and _is_series(source)):
        return _of_folder(source, sequences, allow_any_image, modalities)
    if source.suffix.lower() == ".json":
        items = _of_datalist(source, split)
    elif source.exists():
        items = [{"image": path, "name": _name(source)}]
    else:
        raise ValueError(f"{path}: no such file or folder.")
    for item in items:
        named = None if "error" in item else _other_sequence(item["image"], sequences, pictures)
        if named and allow_any_image:
            item["warnings"] = [f"The file is named as {named}, the model takes {' and '.join(sequences)}."]
        elif named:
            item["error"] = (
                f"{item['image']}: is named as {named}, the model takes {' and '.join(sequences)}; to run it all the same, "
                "give --allow_any_image true."
            )
    print(f"{_counted(items, modalities)} found in {path}.")
    return items


def _counted(items: Sequence[dict[str, Any]], modalities: Sequence[str]) -> str:
    return f"{len(items)} {'volume' if takes_volumes(modalities) else 'image'}{'' if len(items) == 1 else 's'}"


def _name(path: Path) -> str:
    """What a file or a folder is called, "." too."""
    name = Path(os.path.abspath(path)).name
    return name if path.is_dir() else stem(name)


def _is_series(folder: Path) -> bool:
    """Whether nothing but DICOM images lies in a folder, besides what is no image at all."""
    entries = [path for path in folder.iterdir() if path.name[0] != "."]
    return bool(dicom_files(folder)) and not any(p.is_dir() or p.name.lower().endswith(VOLUMES) for p in entries)


def _other_sequence(image: str | Sequence[str], sequences: Sequence[str], pictures: bool = False) -> str | None:
    """What an image is named as, if that is no sequence of the model's, or not that of its channel.

    Args:
        image: one path, or one a channel; a folder is named by what its series is called.
        sequences: the model's.
        pictures: whether it is a model of pictures, whose files can't be named as a sequence but as a mask.
    """
    paths = [image] if isinstance(image, str) else image
    for n, path in enumerate(paths):
        allowed = sequences if len(paths) == 1 or len(paths) != len(sequences) else [sequences[n]]
        named = sequence_of((describe(path)[1] if os.path.isdir(path) else "") or stem(Path(path).name))
        if named is not None and named not in allowed and (not pictures or named == "mask"):
            return named
    return None


def _other_modality(image: Path, modalities: Sequence[str]) -> str | None:
    """The modality of a DICOM image or series, if the model takes another."""
    modality = describe(image)[0].upper()
    return modality if modality and not codes_in(modality) & set(modalities) else None


def _of_folder(
    source: Path, sequences: Sequence[str], allow_any_image: bool, modalities: Sequence[str]
) -> list[dict[str, Any]]:
    items = []
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    volumes, known = takes_volumes(modalities), VOLUMES + (PICTURES if takes_pictures(modalities) else ())
    pictures = not volumes
    unless = ", which --allow_any_image true takes" if pictures else ""
    seen: set[Path] = set()
    for file in _files(source, left_out):
        dicom = not file.name.lower().endswith(known) and is_dicom(file)
        image = file.parent if dicom and volumes else file
        if image in seen:
            continue
        seen.add(image)
        name = _name(source) if image == source else image.relative_to(source).as_posix()
        if not dicom and not name.lower().endswith(known):
            if name.lower().endswith(VOLUMES + PICTURES + OTHERS):
                left_out["of a format that the model does not take"].append(name)
        elif dicom and not (pictures and allow_any_image) and (modality := _other_modality(image, modalities)):
            left_out[f"of modality {modality}{unless}"].append(name)
        elif named := _other_sequence(str(image), sequences, pictures):
            left_out[f"named as {named}"].append(name)
        else:
            items.append({"image": str(image), "name": (name if image.is_dir() else stem(name)).replace("/", "-")})
    if len(sequences) > 1 and volumes:
        items = by_study(items, source, sequences)
    print(f"{_counted(items, modalities)} found in {source}.")
    reasons = []
    for reason, names in left_out.items():
        reasons.append(f"{len(names)} {reason} ({some(names)})")
    if reasons:
        print("  Left out: " + "; ".join(reasons) + ".")
    if not items:
        allowed = allowed_formats(modalities)
        raise ValueError(f"{source}: no image in this folder{'; '.join(['', *reasons])}. The model takes {allowed}.")
    return items


def _files(source: Path, left_out: defaultdict[str, list[str]]) -> Iterator[Path]:
    """All files in a folder in the order of their paths, through links, each folder once, but not what is hidden or ours."""
    found = []
    for folder, content in each_folder(source, lambda f, why: left_out[why].append(f.relative_to(source).as_posix())):
        if folder != source and is_result(folder):
            left_out["of our own results"].append(folder.relative_to(source).as_posix())
            content.clear()
        for entry in list(content):
            if entry.name.startswith("."):
                if entry.name.lower().endswith(VOLUMES + PICTURES + DICOM) or os.path.isdir(entry.path):
                    left_out["hidden"].append(Path(entry.path).relative_to(source).as_posix())
                content.remove(entry)
            elif not os.path.isdir(entry.path):
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
