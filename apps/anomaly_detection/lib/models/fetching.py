"""A bundle fetched, checked before it is unpacked."""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from pathlib import Path

from monai.apps.utils import HashCheckError, download_url, extractall

MAX_BUNDLE_BYTES = 4 * 2**30
"""A fetched bundle is refused if it unpacks to more."""


def fetch_bundle(url: str, sha256: str, folder: Path) -> Path:
    """Download a zipped bundle and check it before it is unpacked.

    Args:
        url: of the zip, which holds the bundle's folder or its content.
        sha256: of the zip, 64 hexadecimal digits. A bundle holds code, so it is never fetched unchecked.
        folder: where bundles are kept; one that is there already is not fetched again.

    Raises:
        ValueError: the file is another one than expected, or holds no bundle, or one that is too large or would write
            elsewhere.
    """
    if len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef"):
        raise ValueError(f"bundle_sha256 must be the 64 hexadecimal digits of the zip's SHA-256, got {sha256!r}.")
    target = folder / sha256.lower()
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            archive = Path(partial) / "bundle.zip"
            try:
                download_url(url, str(archive), hash_val=sha256.lower(), hash_type="sha256", progress=False)
            except HashCheckError as error:
                raise ValueError(f"{url}: its SHA-256 is not {sha256.lower()}; nothing of it was used.") from error
            try:
                _check_archive(archive)
                extractall(archive, Path(partial) / "bundle", file_type="zip", has_base=False)
            except (ValueError, zipfile.BadZipFile) as error:
                raise ValueError(f"{url}: {error}; nothing of it was used.") from error
            configs = sorted(Path(partial, "bundle").rglob("configs/inference.json"), key=lambda path: len(path.parts))
            if not configs:
                raise ValueError(f"{url}: there is no configs/inference.json in it, so it is no MONAI bundle.")
            os.replace(configs[0].parent.parent, target)
    return target


def _check_archive(path: Path) -> None:
    """MONAI's `extractall` refuses paths that lead elsewhere, this the rest; a file never unpacks to more than is declared."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size = sum(member.file_size for member in members)
    if size > MAX_BUNDLE_BYTES:
        raise ValueError(f"it unpacks to {size >> 20} MiB, {MAX_BUNDLE_BYTES >> 20} are allowed")
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{member.filename!r} in it is a symbolic link")
        if "\\" in member.filename or Path(member.filename).is_absolute() or ".." in Path(member.filename).parts:
            raise ValueError(f"{member.filename!r} in it leads to another folder")
