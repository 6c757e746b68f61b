"""The label of each slice of a study, from what its readers submitted."""

from __future__ import annotations

from typing import Any

UNKNOWN = -1
"""A slice's label that `scripts.learning.datasets.SliceDataset` leaves out."""


def class_names() -> dict[int, str]:
    """The names of the bundle's classes, by the labels of slices."""
    from scripts import DISEASED, HEALTHY

    return {HEALTHY: "healthy", DISEASED: "diseased"}


def tag_labels(image: str, tag: Any) -> list[int]:
    """The label of each slice of an image from its ``image_label``: "healthy", or a list with 0, 1 or -1 for each slice.

    Args:
        image: path of the image.
        tag: its ``image_label``.

    Raises:
        ValueError: the image can't be read, or the tag doesn't give a label for each slice.
    """
    from scripts import DISEASED, HEALTHY
    from scripts.images.geometry import axial
    from scripts.images.grids import image_grid

    depth = axial(image_grid(image)).shape[-1]
    if tag == "healthy":
        return [HEALTHY] * depth
    if isinstance(tag, list) and len(tag) == depth and all(label in (HEALTHY, DISEASED, UNKNOWN) for label in tag):
        return [int(label) for label in tag]
    if tag == "diseased":
        raise ValueError(f'{image}: "diseased" doesn\'t say which slices are; submit a mask, or give 0 or 1 a slice.')
    raise ValueError(
        f'{image}: image_label must be "healthy" or a list with 0, 1 or -1 for each of its {depth} slices, got {tag!r:.60}.'
    )
