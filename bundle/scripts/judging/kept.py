"""Cases on disk: written once a volume, read one volume after another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..weights import write_tensors
from .cases import SliceCase
from .readings import gated, probabilities


class KeptCases:
    """The cases of several volumes, read from disk one volume after another as often as they are asked for.

    Args:
        paths: of the volumes' files.
        temperature: of p(diseased), which gates maps and weighs scores.
        boxes_are_lesions: take the boxes' area for the lesion of diseased slices that have boxes and no mask.
        groups: of each volume, its ``groups`` in the datalist; by default none has any.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        temperature: float = 1.0,
        boxes_are_lesions: bool = False,
        groups: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.paths = list(paths)
        self.temperature = temperature
        self.boxes_are_lesions = boxes_are_lesions
        self.groups = [{} for _ in self.paths] if groups is None else list(groups)

    def __iter__(self) -> Iterator[SliceCase]:
        for path in self.paths:
            kept = _opened(path)
            probability = probabilities(kept["logits"], self.temperature, kept["counted"])
            for packed in kept["cases"]:
                case = SliceCase(**_unpacked(packed))
                if self.boxes_are_lesions and case.truth is None and case.boxes is not None:
                    case.truth = case.in_boxes().any(axis=0)
                yield gated(case, float(probability[case.slice]))

    def of(self, paths: Collection[Path]) -> KeptCases:
        """Those of some of the files alone."""
        return KeptCases([p for p in self.paths if p in paths], self.temperature, self.boxes_are_lesions)

    @property
    def logits(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each volume with cases, and the slices that count for their neighbours, see `readings.probabilities`."""
        opened = (_opened(path) for path in self.paths)
        return [(kept["logits"].clone(), kept["counted"].clone()) for kept in opened if kept["cases"]]

    @property
    def assessed(self) -> int:
        """How many slices the networks saw, those beside a labelled one too."""
        return sum(int((~_opened(path)["logits"].isnan()).sum()) for path in self.paths)

    @property
    def warnings(self) -> list[list[str]]:
        """Of each volume."""
        return [_opened(path)["warnings"] for path in self.paths]

    @property
    def without_foreground(self) -> list[int]:
        """The labels of slices that are left out, as no foreground was found in them."""
        return [label for path in self.paths for label in _opened(path)["without_foreground"].values()]

    @property
    def seconds(self) -> float:
        """That the networks took for all."""
        return sum(_opened(path)["seconds"] for path in self.paths)


@lru_cache(maxsize=128)
def _opened(path: Path) -> dict[str, Any]:
    # each is an open file, so that not all of a large set can be
    kept: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
    return kept


def keep(
    path: Path,
    cases: list[SliceCase],
    logits: torch.Tensor,
    counted: torch.Tensor,
    seconds: float,
    warnings: list[str],
    without_foreground: dict[int, int],
) -> None:
    """Write a volume's file, whole or not at all.

    Args:
        path: of the file.
        cases: with maps and scores as if p(diseased) were 1.
        logits: of all slices of the input's file, see `readings.probabilities`.
        counted: likewise.
        seconds: that the networks took.
        warnings: of the preprocessing, and of what is left out.
        without_foreground: see `on_input.cases_of`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = [_packed(vars(case)) for case in cases]
    known = {"logits": logits, "counted": counted, "seconds": seconds, "warnings": warnings}
    write_tensors(path, {"cases": packed, "without_foreground": without_foreground, **known})


def _packed(value: Any) -> Any:
    """Arrays as tensors of their own, also within dictionaries, for `torch.save`."""
    if isinstance(value, dict):
        return {k: _packed(v) for k, v in value.items()}
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _unpacked(value: Any) -> Any:
    """The arrays again, on the same memory."""
    if isinstance(value, dict):
        return {k: _unpacked(v) for k, v in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value
