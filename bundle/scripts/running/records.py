"""The record that lies beside a volume's results, and the numbers in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..digests import digest_of, json_digest, source_digest
from ..images.restoring import LESION, NOT_ASSESSED

MADE_BY = "diffusion-anomaly-bundle"


RECORD = "result.json"
"""A volume's whole record: input, status, scores, settings, and the SHA-256 of every file that was written beside it."""


FILES = ("image", "foreground", "mask")
"""What an item may give as paths."""


def identify(item: dict[str, Any]) -> None:
    """Add what tells a volume from another, as its files are now.

    ``image_sha256``, of its image alone, and ``input_digest``, of all that its result comes from: the content of its files,
    of one that isn't there its path, and its options.
    """
    item["image_sha256"] = [source_digest(p) for p in paths_in(item, "image")]
    files = {key: [source_digest(p) or os.path.abspath(p) for p in paths_in(item, key)] for key in FILES}
    item["input_digest"] = json_digest([files, item.get("spacing"), item.get("warnings"), item.get("error")])


def is_result(folder: Path) -> bool:
    """Whether a folder is one that `Results` made."""
    return read_record(folder) is not None


def paths_in(item: Mapping[str, Any], key: str) -> list[str]:
    """What an item or a record gives under one of `FILES`; none where it gives nothing."""
    value = item.get(key)
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a folder; None if there is none of ours, or the folder is a link."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and record.get("made_by") == MADE_BY and isinstance(record.get("files"), dict)
    return record if ours and not folder.is_symlink() else None


def strangers_in(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """What lies in a result's folder that was not written by us, or was changed since."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name != RECORD
        and (
            entry.is_symlink()
            or not entry.is_file()
            or entry.name not in record["files"]
            or digest_of(Path(entry)) != record["files"][entry.name]
        )
    )


def intact(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether all that was written into a result's folder is there, unchanged."""
    return all(digest_of(folder / name) == digest for name, digest in record["files"].items())


def measured(result: Mapping[str, Any]) -> dict[str, float | None]:
    """``score``, ``p_diseased``, and how much is marked as lesion and as not assessed, after the postprocessing.

    That is ``lesion_ml`` and ``not_assessed_ml``; of a picture ``lesion_cm2``, or ``lesion_pixels`` where their size is not
    known, and likewise.
    """
    assessed = [s for s in result["slices"] if s["assessed"]]
    pred = result["pred"]
    unit = result["input_image"].meta.get("unit", "ml")
    edges = torch.linalg.norm(pred.affine[:3, :3], dim=0)
    volume = float(abs(torch.linalg.det(pred.affine[:3, :3])))
    voxel = {"ml": volume / 1000, "cm2": float(edges[0] * edges[1]) / 100, "pixels": 1.0}[unit]
    return {
        "score": max((s["score"] for s in assessed), default=None),
        "p_diseased": max((s["p_diseased"] for s in assessed), default=None),
        f"lesion_{unit}": float((pred == LESION).sum()) * voxel,
        f"not_assessed_{unit}": float((pred == NOT_ASSESSED).sum()) * voxel,
    }
