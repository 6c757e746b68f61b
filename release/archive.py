"""A zip that is the same, byte for byte, wherever and whenever it is made of the same files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

MAX_BYTES = 25 * 10**6
"""The zoo takes no larger file without ``large_files.yml``."""
TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can hold."""


def write_zip(path: Path, folder: str, files: Mapping[str, bytes]) -> None:
    """Write a zip with one folder: names sorted, one time and one mode for all.

    Nothing is compressed: weights hardly shrink, and what zlib gives depends on its version.

    Args:
        path: of the zip; its folder must be there.
        folder: in it.
        files: what lies in that folder, by paths with forward slashes.

    Raises:
        ValueError: a file is larger than `MAX_BYTES`.
    """
    for name, content in files.items():
        if len(content) > MAX_BYTES:
            raise ValueError(f"{name}: has {len(content) / 1e6:.1f} MB, {MAX_BYTES / 1e6:.0f} are allowed.")
    part = path.with_name(f"{path.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", TIME)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    part.replace(path)
