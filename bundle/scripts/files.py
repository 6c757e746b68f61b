"""Files that are written whole or not at all, by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock, and hold it; it ends with the process at the latest.

    Raises:
        ValueError: there can be no such file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    except OSError as error:
        raise ValueError(
            f"{path.parent}: this cache can't be written ({error.strerror or error}); give a folder that can be as --cache_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    os.replace(partial, path)
