"""What the name of a file or of a series says about the sequence that it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from .formats import stem as stem_of

RULES: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text())
"""Sequences, and the regular expressions that name them, any case; the first that is found decides.

They know the usual series descriptions of scanners, BIDS suffixes and the names of BraTS' files. "mask" is no image.
"""

PLANES = "(?<![a-z])(ax(ial)?|tra(nsversal)?|sag(ittal)?|cor(onal)?)(?![a-z])"
"""What a name says of the plane of the slices, any case."""


def sequence_of(name: str) -> str | None:
    """The sequence that a file's name or a series' description speaks of, by `RULES`; None if it speaks of none.

    Args:
        name: such as "sub-01_T1w", "BraTS-GLI-00000-000-t2f" or "t2_tirm_tra_dark-fluid"; of a path, give the file's name.
    """
    return next((sequence for sequence, rule in RULES.items() if re.search(rule, name, re.IGNORECASE)), None)


@lru_cache(maxsize=1 << 16)
def named_as(name: str, channels: tuple[str, ...] = ()) -> tuple[str | None, str]:
    """The sequence that an image file is named as, and its name without that, the same for all sequences of a study.

    Where a file's name says nothing, its folder's does if that is one word: "FLAIR", "T1w", "labelsTr".

    Args:
        name: its path in the folder of the studies.
        channels: of the models; those that are no MR sequences are the last words of a name.
    """
    path = Path(name)
    stem = stem_of(path.name)
    for channel in channels:
        words = "[-_. ]".join(map(re.escape, channel.split()))
        last = None if channel in RULES else re.search(f"(?:^|[-_. ]){words}$", stem, re.IGNORECASE)
        if last:
            return channel, str(path.parent / stem[: last.start()])
    sequence = sequence_of(stem)
    if sequence:
        rest = re.sub(f"(?:{RULES[sequence]})[a-z0-9]*", "", stem, flags=re.IGNORECASE)
        return sequence, str(path.parent / re.sub(PLANES, "", rest, flags=re.IGNORECASE).strip("-_. "))
    folder = path.parent.name
    # "lesion" may well be a folder of patients
    spoken = re.fullmatch("(?!lesion)[a-z0-9]+", folder, re.IGNORECASE)
    sequence = sequence_of(folder) if spoken else None
    return sequence, str(path.parent.parent / stem) if sequence else str(path.parent / stem)


class Candidate(NamedTuple):
    """An image of a study: what it is called, its number in the study (0 of a file), and where it is."""

    name: str
    number: int
    place: str


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Images of one sequence, the one to take first.

    That is the first by number, then by name, which is not called sagittal or coronal.
    """

    def key(candidate: Candidate) -> tuple[bool, int, str]:
        plane = re.search(PLANES, candidate.name, re.IGNORECASE)
        return plane is not None and plane[0].lower()[0] in "sc", candidate.number, candidate.name

    return sorted(candidates, key=key)


def choice(sequence: str, candidates: list[Candidate]) -> str:
    """What is said of a sequence that a study has several of, in the order of `in_order`."""
    others = ", ".join(candidate.name for candidate in candidates[1:])
    return f"Of {len(candidates)} {sequence} images of this study, {candidates[0].name} was taken and not {others}."
