"""The record that lies beside a volume's results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..digests import digest_of, json_digest, source_digest

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
    item["image_sha256"] = [source_digest(p) for p in _paths(item, "image")]
    files = {key: [source_digest(p) or os.path.abspath(p) for p in _paths(item, key)] for key in FILES}
    item["input_digest"] = json_digest([files, item.get("spacing"), item.get("warnings"), item.get("error")])


def is_result(folder: Path) -> bool:
    """Whether a folder is one that `Results` made."""
    return _read(folder) is not None


def _paths(item: Mapping[str, Any], key: str) -> list[str]:
    value = item.get(key)
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and record.get("made_by") == MADE_BY and isinstance(record.get("files"), dict)
    return record if ours and not folder.is_symlink() else None


def _strangers(folder: Path, record: Mapping[str, Any]) -> list[str]:
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


def _intact(folder: Path, record: Mapping[str, Any]) -> bool:
    return all(digest_of(folder / name) == digest for name, digest in record["files"].items())
