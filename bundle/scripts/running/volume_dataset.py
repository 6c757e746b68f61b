"""Preprocessed volumes, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from monai.data import IterableDataset
from monai.transforms import Compose
from tqdm import tqdm

from ..ranks import each_once
from .report import Report

KEPT = ("image", "foreground", "roi", "input_image", "input_foreground", "bias_field")
"""What of a preprocessed volume the networks and the postprocessing need."""


class VolumeDataset(IterableDataset):
    """Preprocessed volumes, one after the other; one that fails is reported and the next one follows.

    Args:
        data: items, see `find_inputs`.
        transform: the preprocessing, dictionary transforms.
        report: told of every failure.

    Iterated again, it goes on where it was left, behind a volume whose networks failed. Of several ranks, each volume is one's.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Compose, report: Report) -> None:
        super().__init__(data)
        self._rest: Iterator[dict[str, Any]] | None = None
        self.preprocessing = transform
        self.report = report

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._rest is None:
            self._rest = iter(tqdm(each_once(self.data), desc="volumes", unit="volume", total=len(self.data)))
        for item in self._rest:
            if self.report.was_done(item):
                continue
            start = time.perf_counter()
            try:
                if "error" in item:
                    raise ValueError(item["error"])
                # a mask and the name are the report's business
                data = self.preprocessing({k: v for k, v in item.items() if k in ("image", "foreground", "spacing")})
            except Exception as error:
                self.report.failed(item, error)
                continue
            warnings = [*item.get("warnings", []), *data.get("warnings", [])]
            # sentences don't go through the loader, which makes batches of what it is given
            self.report.begin(item, time.perf_counter() - start, [*self.report.warnings, *warnings])
            yield {k: data[k] for k in KEPT if k in data}
        self.report.all_begun = True
