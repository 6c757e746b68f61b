"""Preprocessed slices on disk: two files, written by one process at a time and read by many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..files import exclusive, write


@dataclass(frozen=True)
class Entry:
    """A volume in a cache.

    Args:
        volume: the hash by which it is found again.
        first: the row of its first slice.
        numbers: of its slices in the image's file.
        depth: slices of that file.
        digest: SHA-256 of its rows.
        warnings: of the preprocessing.
    """

    volume: str
    first: int
    numbers: tuple[int, ...]
    depth: int
    digest: str
    warnings: tuple[str, ...]


class SliceCache:
    """The slices of many volumes of one shape in ``slices.bin``, and which are whose in ``index.jsonl``.

    A row is a slice: ``image`` float16 ``(C, H, W)`` and ``foreground`` bool ``(1, H, W)``. A row is read by itself, so that a
    process holds neither open files nor pages of what it has read. A volume counts from its line in the index on, which is
    written after its rows; what a killed process left without one is written over.

    Args:
        folder: of this cache.
    """

    def __init__(self, folder: Path) -> None:
        self.index_path, self.rows_path = folder / "index.jsonl", folder / "slices.bin"
        self._shape: list[int] | None = None

    def entries(self) -> dict[str, Entry]:
        """The volumes that are there as a whole, by their hash."""
        self._shape = None
        try:
            lines = self.index_path.read_bytes().split(b"\n")[:-1]  # a line that wasn't finished is the last
            size = self.rows_path.stat().st_size
            head = json.loads(lines[0])
        except (OSError, IndexError, ValueError):
            return {}
        self._shape = head["shape"]
        rows = size // self._row.itemsize
        found = {}
        for line in lines[1:]:
            entry = Entry(**json.loads(line))
            if entry.first + len(entry.numbers) <= rows:
                found[entry.volume] = replace(entry, numbers=tuple(entry.numbers), warnings=tuple(entry.warnings))
        return found

    @property
    def _row(self) -> np.dtype:
        assert self._shape is not None
        channels, *size = self._shape
        return np.dtype([("image", "<f2", (channels, *size)), ("foreground", "?", (1, *size))])

    def read(self, row: int) -> np.ndarray:
        """A slice, as ``["image"]`` and ``["foreground"]``."""
        slice_: np.ndarray = np.fromfile(self.rows_path, self._row, 1, offset=row * self._row.itemsize)[0]
        return slice_

    @contextmanager
    def writing(self) -> Iterator[dict[str, Entry]]:
        """Hold the cache for `append`, after whoever held it; give the volumes that are there then.

        Raises:
            ValueError: it can't be written.
        """
        with exclusive(self.index_path.with_name("lock")):
            found = self.entries()
            self._next = max((e.first + len(e.numbers) for e in found.values()), default=0)
            # without what a killed process has left
            with self.rows_path.open("ab") as rows:
                rows.truncate(self._next and self._next * self._row.itemsize)
            if self._shape is not None:
                content = "".join(
                    f"{json.dumps(line)}\n" for line in ({"shape": self._shape}, *map(asdict, found.values()))
                )
                if self.index_path.read_bytes() != content.encode():
                    write(self.index_path, content.encode())
            yield found

    def append(
        self,
        volume: str,
        numbers: Sequence[int],
        depth: int,
        images: np.ndarray,
        foregrounds: np.ndarray,
        warnings: Sequence[str] = (),
    ) -> Entry:
        """Add a volume, within `writing`.

        Args:
            volume: see `Entry`.
            numbers: see `Entry`.
            depth: likewise.
            images: ``(N, C, H, W)``.
            foregrounds: bool ``(N, 1, H, W)``.
            warnings: see `Entry`.

        Raises:
            ValueError: its slices have another shape than those that are there.
            OSError: it can't be written.
        """
        shape = list(images.shape[1:])
        if self._shape is None:
            self._shape = shape
            write(self.index_path, (json.dumps({"shape": shape}) + "\n").encode())
        if shape != self._shape:
            raise ValueError(f"its slices have the shape {shape}, and those before it {self._shape}.")
        rows = np.empty(len(numbers), self._row)
        rows["image"], rows["foreground"] = images, foregrounds
        content = rows.tobytes()
        with self.rows_path.open("ab") as file:
            file.write(content)
        digest = hashlib.sha256(content).hexdigest()
        entry = Entry(volume, self._next, tuple(int(n) for n in numbers), depth, digest, tuple(warnings))
        with self.index_path.open("ab") as file:
            file.write((json.dumps(asdict(entry)) + "\n").encode())
        self._next += len(numbers)
        return entry
