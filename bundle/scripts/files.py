"""Files that are written whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside a file, with its ending, to write the new file at: it takes the file's place once the block is done.

    What fails leaves the old one. Processes and threads that write one file do not meet.
    """
    partial = path.with_name(f".part-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)
