"""Which images of a folder belong together: the sequences of one study, for a model that takes several."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..images.dicom_series import describe, study_of
from ..images.formats import stem
from ..images.sequences import Candidate, choice, in_order, named_as, sequence_of


def by_study(items: Sequence[dict[str, Any]], source: Path, sequences: Sequence[str]) -> list[dict[str, Any]]:
    """One item a study, with an image a sequence, in the place of the items of its images.

    Files belong together whose names are alike but for the sequence; series of DICOM images, by their Study Instance UID. Of
    several images of a sequence, the first by `in_order` is taken, with a warning. A study that lacks one has an
    ``error``. Images whose names say no sequence stay as they are: one file may hold all channels.

    Args:
        items: see `inputs.find_inputs`, each of one path.
        source: the folder that they lie in.
        sequences: the model's, one a channel.
    """
    studies: defaultdict[tuple[str, str], defaultdict[str, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    found: dict[Any, dict[str, Any]] = {}
    for item in items:
        path = Path(item["image"])
        name = os.path.relpath(path, source)
        sequence, case, number = (*named_as(name), 0)
        if path.is_dir():
            called = describe(path)[1]
            sequence = sequence_of(called or path.name)
            study, number = study_of(path)
            case = study or str(path.parent)
            name = f"{name} ({', '.join(filter(None, (called, f'series {number}')))})"
        if sequence not in sequences:
            found[item["image"]] = item
            continue
        key = ("series" if path.is_dir() else "files", case)
        studies[key][str(sequence)].append(Candidate(name, number, item["image"]))
        found.setdefault(key, {})
    for key, of_sequence in studies.items():
        found[key] |= _item(key, of_sequence, source, sequences)
    return list(found.values())


def _item(
    key: tuple[str, str], found: dict[str, list[Candidate]], source: Path, sequences: Sequence[str]
) -> dict[str, Any]:
    found = {sequence: in_order(candidates) for sequence, candidates in found.items()}
    places = [candidate.place for candidates in found.values() for candidate in candidates]
    common = os.path.commonpath(places) if key[0] == "series" else os.path.join(source, key[1])
    name = stem(os.path.relpath(common, source)).replace("/", "-").strip("-_. ") or Path(os.path.abspath(source)).name
    images = [found[sequence][0].place for sequence in sequences if sequence in found]
    item: dict[str, Any] = {"image": images if len(images) > 1 else images[0], "name": name}
    missing = [sequence for sequence in sequences if sequence not in found]
    if missing:
        there = ", ".join(f"{sequence} ({candidates[0].name})" for sequence, candidates in found.items())
        item["error"] = (
            f"{name}: the model takes {', '.join(sequences)} of one study; {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Found: {there}."
        )
    warnings = [choice(sequence, candidates) for sequence, candidates in found.items() if len(candidates) > 1]
    return item | ({"warnings": warnings} if warnings else {})
