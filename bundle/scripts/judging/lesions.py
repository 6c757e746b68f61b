"""Lesions of a volume as wholes: which are found, and what is marked where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import label

from .cases import Array

MIN_VOXELS = 3
"""Smaller components are neither lesions nor marks."""
MIN_SHARE = 0.1
"""A lesion is found if so much of it is marked (Commowick et al. 2018)."""
TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels that touch at a corner are of one component."""

Slices = dict[int, tuple[Array, Array]]
"""What is marked and the truth of a volume's slices, bool ``(H, W)`` each, by their numbers."""


def components(mask: Array) -> tuple[Array, Array]:
    """Components of a mask, as numbers from 1 on of its shape, and the voxels of each, of the smallest too; 0 is the rest."""
    numbers, _ = label(mask, TOUCHING)
    return numbers, np.bincount(numbers.ravel())


def cut(truth: Array, judged: Sequence[int]) -> bool:
    """Whether a lesion goes on from a volume's judged slices into others, so that they don't show how large it is.

    Args:
        truth: of the whole volume, bool ``(H, W, D)``.
        judged: slices.
    """
    lesions, sizes = components(truth)
    seen = np.bincount(lesions[..., judged].ravel(), minlength=len(sizes))
    return bool(((seen > 0) & (seen < sizes))[1:].any())


def counted(slices: Slices) -> tuple[list[tuple[int, int]], int]:
    """For each lesion of a volume its voxels, and 1 if it is found, else 0; and the number of false lesions, which touch none.

    A lesion, or a mark, is a component of at least `MIN_VOXELS` voxels. Slices that are left out are taken as empty.

    Args:
        slices: of the volume, those whose truth is known.
    """
    numbers = range(min(slices), max(slices) + 1)
    empty = np.zeros_like(slices[min(slices)][0])
    marked, truth = (np.stack([slices.get(n, (empty, empty))[i] for n in numbers]) for i in (0, 1))
    lesions, sizes = components(truth)
    covered = np.bincount(lesions[marked], minlength=len(sizes))
    each = zip(covered[1:].tolist(), sizes[1:].tolist(), strict=True)
    found = [(voxels, int(part >= MIN_SHARE * voxels)) for part, voxels in each if voxels >= MIN_VOXELS]
    marks, sizes = components(marked)
    on_lesions = np.bincount(marks[truth], minlength=len(sizes))
    return found, int(((sizes >= MIN_VOXELS) & (on_lesions == 0))[1:].sum())
