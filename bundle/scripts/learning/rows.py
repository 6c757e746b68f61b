"""What is made of slices, on disk: one row a slice, made once, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..files import exclusive


class Rows:
    """Float16 arrays of one shape in a file, read one by one.

    Args:
        path: of the file.
        shape: of a row.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.path, self.shape = path, tuple(shape)
        self._values = int(np.prod(self.shape))

    def __getitem__(self, n: int) -> np.ndarray:
        """The row `n`, float16."""
        return np.fromfile(self.path, np.float16, self._values, offset=2 * self._values * n).reshape(self.shape)

    def are_made(self, number: int) -> bool:
        """Whether so many rows are there, and no more."""
        return self.path.is_file() and self.path.stat().st_size == 2 * self._values * number

    def make(self, number: int, size: int, batch: Callable[[range], torch.Tensor], what: str) -> None:
        """Write the rows that aren't there, by one process at a time; one that was stopped goes on.

        Args:
            number: of rows.
            size: rows a batch.
            batch: makes those of a range, ``(N, *shape)``.
            what: they are, for the bar.
        """
        if self.are_made(number):
            return
        with exclusive(self.path.with_suffix(".lock")), self.path.open("ab") as file:
            done = file.tell() // (2 * self._values)
            if done < number:
                # a batch is made as a whole, so that its bits don't depend on where it was stopped
                done -= done % size
            file.truncate(2 * self._values * min(done, number))
            for begin in tqdm(range(done, number, size), what, unit="batch"):
                rows = batch(range(begin, min(begin + size, number)))
                file.write(rows.half().cpu().numpy().tobytes())
