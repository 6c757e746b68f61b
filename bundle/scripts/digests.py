"""The SHA-256 of files, of JSON and of the bundle's own code."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache, lru_cache
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from .sources import data_files, visible_files


def digest_of(path: Path) -> str | None:
    """The SHA-256 of a file's content; None if it can't be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError:
        return None
    return digest.hexdigest()


def json_digest(content: Any) -> str:
    """The SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1 << 17)
def _digest_of_state(path: str, size: int, changed: int) -> str:
    digest = digest_of(Path(path))
    if digest is None:  # raised, it is not kept: the next time it may be readable
        raise OSError(f"{path}: can't be read.")
    return digest


def _digest_as_it_is(path: str) -> str:
    status = os.stat(path)
    return _digest_of_state(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def source_digest(path: str) -> str | None:
    """As `digest_of`, of an input: read once, as long as it isn't changed.

    Of a folder, that of the files in it; of a header, that of the files of its voxels too.
    """
    try:
        if S_ISDIR(os.stat(path).st_mode):
            return json_digest([[e.name, source_digest(e.path)] for e in visible_files(path)])
        digests = [_digest_as_it_is(file) for file in (path, *data_files(path))]
    except OSError:
        return None
    return digests[0] if len(digests) == 1 else json_digest(digests)


@cache
def code_digest(folder: str = "") -> str:
    """Of the bundle's own code, which its version alone does not tell while it is worked on, or of a folder of it."""
    files = sorted(p for p in (Path(__file__).parent / folder).rglob("*") if p.suffix in (".py", ".json"))
    return json_digest([digest_of(path) for path in files])
