"""Files that are written whole or not at all, by one process at a time, and folders that are searched once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
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

    Raises:
        OSError: it can't be written; the error names a file.
    """
    partial = path.with_name(f".part-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno and error.filename is None:  # as of a full disk
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            partial.unlink()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def each_folder(
    source: Path, passed_over: Callable[[Path, str], None]
) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """A folder and all in it at any depth, through links, each real folder once, with what lies in it by name.

    Folders proper come before links to folders. What is taken out of a list of entries is not searched, as of `os.walk`.

    Args:
        source: where to begin.
        passed_over: is told each folder that can't be read or was searched before, and why.
    """
    seen = set()
    waiting = [source]
    linked: list[Path] = []
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            passed_over(folder, f"can't be read ({error.strerror})")
            continue
        if (status.st_dev, status.st_ino) in seen:
            passed_over(folder, "links to a folder that was searched")
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder, entries
        for entry in entries:
            if os.path.isdir(entry.path):  # unlike the entry's own, of a link to itself too
                (linked if entry.is_symlink() else waiting).append(Path(entry.path))
