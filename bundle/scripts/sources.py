"""What an image is read from: one file, a header and the files that it names, or those in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import count, takewhile
from stat import S_ISDIR
from typing import Any, BinaryIO

_NUMBER = re.compile(r"%[-+ 0#]*\d{0,2}(?:\.\d{1,2})?[diouxX]")


def data_files(path: str) -> list[str]:
    """The files beside a header of MetaImage or NRRD that hold its voxels, as ITK finds them; none where it holds them itself.

    Of a list or numbered files, those up to the first that isn't there: ITK reads none behind it.

    Raises:
        OSError: the header can't be read, or the first file isn't there.

    Sources: MetaIO, metaImage.cxx (ElementDataFile: a name, LIST, or a pattern, least, most and step); NRRD,
    https://teem.sourceforge.net/nrrd/format.html#detached.
    """
    lower = path.lower()
    if not lower.endswith((".mhd", ".mha", ".nrrd", ".nhdr")):
        return []
    with open(path, "rb") as header:
        names = _of_nrrd(header) if lower.endswith((".nrrd", ".nhdr")) else _of_meta_image(header)
        if names is None:
            return []
        folder = os.path.dirname(path)
        # the reader follows a name wherever it leads; what is no plain file might never end
        found = list(takewhile(os.path.isfile, (os.path.join(folder, name) for name in names)))
    if not found:
        raise FileNotFoundError(f"{path}: the file of its voxels, which it names, is not there.")
    return found


def _of_meta_image(header: BinaryIO) -> Iterable[str] | None:
    for line in _lines(header):
        field, *rest = re.split("[=:]", line, maxsplit=1)
        if field.strip() != "ElementDataFile" or not rest:
            continue
        value = rest[0].strip()
        if value in ("LOCAL", "Local", "local"):
            return None
        if value.startswith("LIST"):
            return (name.rstrip() for name in _lines(header))
        return _numbered(value.split()) if "%" in value else [value]
    return None


def _of_nrrd(header: BinaryIO) -> Iterable[str] | None:
    for line in _lines(header):
        if not line.strip("\r\n"):
            return None
        field, _, value = line.partition(": ")
        value = value.lstrip().rstrip("\r\n")
        if field.lower() not in ("data file", "datafile"):
            continue
        if value.startswith("LIST"):
            return (name.rstrip("\r\n") for name in _lines(header))
        return _numbered(value.split()) if re.search(r"%\d*d", value) else [value]
    return None


def header_fields(path: str) -> set[str]:
    """The names of the fields in a header of MetaImage or NRRD, in small letters."""
    fields: set[str] = set()
    with open(path, "rb") as header:
        for line in _lines(header):
            field = re.split("[=:]", line, maxsplit=1)[0].strip().lower()
            if field == "elementdatafile" or (path.lower().endswith(".nrrd") and not field):
                break  # what follows are voxels
            fields.add(field)
    return fields


def _lines(header: BinaryIO) -> Iterator[str]:
    while line := header.readline(1 << 16):
        yield os.fsdecode(line)


def _numbered(words: list[str]) -> Iterator[str]:
    """The names that a pattern such as "slice%03d.raw" stands for, with the first number, the last and the step behind it."""
    pattern, numbers = words[0], [int(word) for word in words[1:4] if re.fullmatch(r"[-+]?\d{1,9}", word)]
    first, step = (numbers or [1])[0], (numbers[2:] or [1])[0]
    if pattern.count("%") != 1 or not _NUMBER.search(pattern) or not step:
        return
    for n in count(first, step):
        if numbers[1:] and (n - numbers[1]) * step > 0:
            return
        yield pattern % n


def visible_files(folder: str) -> list[os.DirEntry[str]]:
    """The files that lie in a folder, not deeper and not hidden, by name."""
    return sorted((e for e in os.scandir(folder) if e.name[0] != "." and e.is_file()), key=lambda e: e.name)


def state(path: str) -> list[Any]:
    """Sizes and times of change (ns) of all that an image is read from, by which another content is known.

    One of the same size and time, as ``cp -p`` or ``rsync -t`` may put in its place, is not. The time that the file system
    keeps of itself (ctime) would tell, but a data set that is copied or moved would be computed anew.

    Raises:
        OSError: there is no such file or folder.
    """
    status = os.stat(path)
    if S_ISDIR(status.st_mode):
        return [[e.name, e.stat().st_size, e.stat().st_mtime_ns] for e in visible_files(path)]
    try:
        parts = [os.stat(file) for file in data_files(path)]
    except OSError:  # the loader will say it
        parts = []
    return [status.st_size, status.st_mtime_ns, *([part.st_size, part.st_mtime_ns] for part in parts)]
