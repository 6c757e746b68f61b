"""Patients to train on and patients to validate on."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.fine_tuning.slice_classes import UNKNOWN, class_names


def classes_of(labels: Iterable[tuple[str, Iterable[int]]]) -> dict[str, set[int]]:
    """The classes of each patient's slices, from pairs of patient and labels."""
    classes: dict[str, set[int]] = defaultdict(set)
    for patient, values in labels:
        classes[patient] |= set(values) - {UNKNOWN}
    return dict(classes)


def require_both_classes(classes: Mapping[str, set[int]]) -> None:
    """Check that each class has two patients, one to train and one to validate.

    Args:
        classes: of each patient's slices, 0 (healthy) and 1 (diseased).

    Raises:
        MONAILabelException: INVALID_INPUT, it has not; the message says how many more are needed.
    """
    counts = {name: sum(label in c for c in classes.values()) for label, name in class_names().items()}
    if min(counts.values()) < 2:
        missing = [f"{2 - n} more with {name} slices" for name, n in counts.items() if n < 2]
        there = " and ".join(f"{n} with {name}" for name, n in counts.items())
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            "too few labelled patients: training and validation each need one with healthy and one with diseased slices. "
            f"There are {there} slices that can be used; label {' and '.join(missing)}.",
        )


def split_patients(classes: Mapping[str, set[int]], val_split: float, seed: int) -> set[str]:
    """Choose the patients for validation, by chance but so that both classes are on both sides.

    Args:
        classes: of each patient's slices, 0 (healthy) and 1 (diseased).
        val_split: share of the patients; more or fewer where both classes could not be on both sides otherwise.
        seed: of the shuffle; the same patients and seed give the same choice.

    Raises:
        MONAILabelException: see `require_both_classes`.
    """
    require_both_classes(classes)
    order = sorted(classes)
    random.Random(seed).shuffle(order)
    number = max(1, round(val_split * len(order)))
    chosen: set[str] = set()
    # a class that is still missing takes the next patient who has it; one always follows, as each class has two
    for patient in order:
        held = set[int]().union(*(classes[p] for p in chosen))
        left = set[int]().union(*(classes[p] for p in order if p != patient and p not in chosen))
        if left >= class_names().keys() and (len(chosen) < number or not classes[patient] <= held):
            chosen.add(patient)
    return chosen
