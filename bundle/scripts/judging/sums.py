"""Sums over slices, volumes and boxes, from which metrics and their intervals are made.

Masks and boxes are read for this alone. A lesion is segmented where the map is *above* a threshold, as in `restoring`. Cases
are read one after another, so that no more than a volume need be in the memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from skimage.filters import threshold_otsu

from .. import HEALTHY
from .cases import Array, Domain, SliceCase
from .lesions import Slices, counted
from .limited import shares_of
from .ranking import PixelCounts
from .scored import Scored

MIN_LESION_PIXELS = 20
"""A Dice of a single slice counts slices with more lesion pixels than this in the domain (the paper's protocol)."""
MIN_BOX_SHARE = 0.1
"""A box is found if so much of it is marked; a few pixels at its rim don't find it."""
LESION_ML = {"lesions_found_small": 1, "lesions_found_medium": 10, "lesions_found_large": np.inf}
"""Lesions of so many ml, each from the limit before it to under its own."""

Part = tuple[str, float, float]
"""Subject, numerator and denominator of a slice, volume or box."""
Parts = dict[str, list[Part]]
"""Of metrics that are quotients of sums, those of everything that is counted."""


@dataclass
class Sums:
    """What metrics and intervals are made from."""

    parts: Parts
    pixels: PixelCounts
    scored: Scored


def dice(predicted: Array, truth: Array) -> float:
    """Dice of two masks, bool, same shape, not both empty."""
    numerator, denominator = _dice_parts(predicted, truth)
    return numerator / denominator


def _dice_parts(predicted: Array, truth: Array) -> tuple[int, int]:
    """2 TP and 2 TP + FP + FN, whose quotient is Dice and which may be added up."""
    return 2 * int((predicted & truth).sum()), int(predicted.sum()) + int(truth.sum())


def sums(cases: Iterable[SliceCase], method: str, threshold: float | None, domain: Domain) -> Sums:
    """See `Sums`; without a threshold, nothing of what needs one.

    Args:
        cases: a volume's slices one after another.
        method: see `metrics`.
        threshold: likewise.
        domain: likewise.

    Raises:
        ValueError: as for `metrics`.
    """
    parts: Parts = defaultdict(list)
    scored = Scored(method)
    pixels = PixelCounts()
    volumes: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    subjects: dict[str, str] = {}
    wholes = _Wholes(parts)
    for case in cases:
        values, truth = case.values(method, domain), case.lesion(domain)
        scored.add(case)
        marked = None if threshold is None else values > threshold
        subjects[case.volume] = case.subject
        if truth is not None:
            pixels.add(values, truth, shares_of(case, domain))
            if marked is not None:
                wholes.add(case, domain, marked, truth)
                parts["dice_threshold"].append((case.subject, *_dice_parts(marked, truth)))
                volumes[case.volume].append((*_dice_parts(marked, truth), int(truth.sum())))
            if truth.sum() > MIN_LESION_PIXELS:
                by_otsu = dice(values > threshold_otsu(values), truth)
                parts["dice_otsu_slice"].append((case.subject, by_otsu, 1))
                if marked is not None:
                    overlap = dice(marked, truth)
                    parts["dice_threshold_slice"].append((case.subject, overlap, 1))
                    parts["iou_threshold_slice"].append((case.subject, overlap / (2 - overlap), 1))
        if case.diseased == HEALTHY and marked is not None:
            parts["healthy_area"].append((case.subject, int(marked.sum()), 1))
        _add_boxes(case, method, threshold, parts)
    wholes.end()
    if not scored.slices.score:
        raise ValueError("there are no cases to evaluate.")
    lesions = any(lesion for slices in volumes.values() for *_, lesion in slices)
    if not lesions:
        parts.pop("dice_threshold", None)
    for volume, slices in volumes.items():
        numerator, denominator, lesion = np.sum(slices, axis=0)
        if lesion and len(slices) > 1:
            parts["dice_threshold_volume"].append((subjects[volume], numerator / denominator, 1))
    return Sums(dict(parts), pixels, scored)


class _Wholes:
    """Adds what `lesions.counted` counts to the parts, of one volume after another."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._volume, self._subject = "", ""
        self._slices: Slices = {}
        self._voxel_ml: float | None = None

    def add(self, case: SliceCase, domain: Domain, marked: Array, truth: Array) -> None:
        if case.volume != self._volume:
            self.end()
        inside = case.inside(domain)
        on_grid = np.zeros((2, *inside.shape), bool)
        on_grid[:, inside] = marked, truth
        self._volume, self._subject, self._voxel_ml = case.volume, case.subject, case.voxel_ml
        self._slices[case.slice] = on_grid[0], on_grid[1]

    def end(self) -> None:
        """The volume is complete."""
        if self._slices:
            found, false = counted(self._slices)
            # where slices are left out, a lesion is in pieces
            whole = max(self._slices) - min(self._slices) + 1 == len(self._slices)
            for voxels, one in found:
                self._parts["lesions_found"].append((self._subject, one, 1))
                if self._voxel_ml is not None and whole:
                    size = next(name for name, most in LESION_ML.items() if voxels * self._voxel_ml < most)
                    self._parts[size].append((self._subject, one, 1))
            self._parts["false_lesions"].append((self._subject, false, 1))
        self._slices = {}


def _add_boxes(case: SliceCase, method: str, threshold: float | None, parts: Parts) -> None:
    boxes = case.in_boxes()
    if not len(boxes):
        return
    a = np.where(case.foreground, case.maps[method], -np.inf)
    points = a == a.max()
    # of a map with several highest pixels, one is pointed at by chance
    hit = 0.0 if points[case.foreground].all() else float(boxes.any(axis=0)[points].mean())
    parts["pointing"].append((case.subject, hit, 1))
    if threshold is not None:
        for box in boxes:
            found = (a > threshold)[box].mean() >= MIN_BOX_SHARE
            parts["box_recall"].append((case.subject, int(found), 1))
