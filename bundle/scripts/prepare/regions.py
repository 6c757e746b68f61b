"""Regions that radiologists drew on radiographs, in pixels of the pictures that they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

GRID = 1024
"""Regions are in pixels of radiographs of this size."""


class Regions(NamedTuple):
    """Of one picture; nothing where it was looked at and the finding is not there."""

    boxes: list[list[float]]
    """``[x0, y0, x1, y1]`` in pixels of the picture."""
    mask: np.ndarray | None
    """Bool ``(H, W)``, what is half covered by outlines or more; None where no pixel is, or none is drawn."""


def regions_of(path: str, finding: str, size: Sequence[int]) -> dict[int, Regions]:
    """The regions of a finding, by the row of the picture.

    Args:
        path: a .json file, a list of ``row``, ``syms`` (the finding of each region), ``boxes`` and, where they were drawn,
            ``polygons``, in pixels of 1024 x 1024.
        finding: capitals don't count.
        size: of the pictures, ``(H, W)``.

    Raises:
        ValueError: it can't be read as such.
    """
    try:
        with open(path, "rb") as file:
            return {int(entry["row"]): _of_picture(entry, finding.lower(), size) for entry in json.load(file)}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: can't be read as regions with row, syms and boxes ({error!r}).") from error


def _of_picture(entry: Mapping[str, Any], finding: str, size: Sequence[int]) -> Regions:
    wanted = [n for n, name in enumerate(entry["syms"]) if name.lower() == finding]
    scale = (size[1] / GRID, size[0] / GRID) * 2
    boxes = [[v * s for v, s in zip(entry["boxes"][n], scale, strict=True)] for n in wanted]
    drawn = Image.new("L", (GRID, GRID))
    for n in wanted if entry.get("polygons") else ():
        ImageDraw.Draw(drawn).polygon([tuple(point) for point in entry["polygons"][n]], fill=255)
    mask = np.asarray(drawn.resize((size[1], size[0]), Image.Resampling.BOX)) >= 128
    return Regions(boxes, mask if mask.any() else None)
