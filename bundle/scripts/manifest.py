"""Whether a released bundle is as it was released: the hash of each of its files, as ``sha256sum`` writes them.

``python -m scripts.manifest check`` compares, ``write`` writes; both take a folder, by default this one. Whether the hashes
are those of the release, a signature tells. Which weights belong together is another question, see `weights.read_manifest`.

This file imports no other of the bundle, so that it can run before any of them is loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
"""In the bundle's folder. One that is worked on has none."""
READ_WHOLE = ("configs", "scripts")
"""Folders where a file too many is refused, as all of their files may be read."""
CODE = (".pth", ".py", ".pyd", ".so")
"""What Python may run of a folder on its path."""
WEIGHTS = "models/"


def sums(digests: Mapping[str, str]) -> str:
    """What `SUMS` holds, of the hashes of files by their paths in the bundle's folder."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def write_manifest(folder: str | Path) -> Path:
    """Write the hashes of what is listed, of what may be run and of weights, as they are now; the path of what was written.

    Results, runs and images in the folder are not entered, as they may change.

    Raises:
        ValueError: the hashes that are there can't be read.
    """
    root = Path(folder).resolve()
    listed = _read(root) if (root / SUMS).is_file() else {}
    names = {*listed, *(name for name in _files(root) if _may_run(root, name) or name.startswith(WEIGHTS))}
    return _write(root, {name: _digest(root / name) for name in names if (root / name).is_file()})


def check_manifest(folder: str | Path) -> int | None:
    """Compare the files in a bundle's folder with their hashes.

    Returns:
        how many there are; None for a bundle without hashes.

    Raises:
        ValueError: files were changed or are missing, or there is code that wasn't released; all are named. Or the hashes
            can't be read.
    """
    root = Path(folder).resolve()
    if not (root / SUMS).is_file():
        return None
    released = _read(root)
    wrong = [
        f"{name} {'is missing' if not (root / name).is_file() else 'was changed'}"
        for name, digest in released.items()
        if not (root / name).is_file() or _digest(root / name) != digest
    ]
    wrong += [f"{name} was added" for name in _files(root) if name not in released and _may_run(root, name)]
    if wrong:
        raise ValueError(
            f"{root}: is not as it was released: {', '.join(wrong)}. Unpack the bundle anew. If the changes are yours, "
            f"'python -m scripts.manifest write' in that folder accepts them."
        )
    return len(released)


def renew(path: Path) -> None:
    """Enter a file that a command of the bundle wrote, such as trained weights, where there are hashes above it."""
    path = path.resolve()
    for root in path.parents:
        if (root / SUMS).is_file():
            _write(root, {**_read(root), path.relative_to(root).as_posix(): _digest(path)})
            return


def _files(root: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(root):
        own = Path(parent).relative_to(root)
        folders[:] = [f for f in folders if f[0] != "." and f != "__pycache__" and (own / f) != Path("cache")]
        yield from ((own / name).as_posix() for name in names if name[0] != "." and (own / name) != Path(SUMS))


def _may_run(root: Path, name: str) -> bool:
    first, *rest = Path(name).parts
    return (first in READ_WHOLE and bool(rest)) or rest == ["__init__.py"] or (not rest and name.endswith(CODE))


def _read(root: Path) -> dict[str, str]:
    try:
        lines = [line.split("  ", 1) for line in (root / SUMS).read_text("utf-8").splitlines()]
        return {name: digest for digest, name in lines}
    except ValueError as error:  # also of bytes that are no text
        raise ValueError(f"{root / SUMS}: is damaged ({error}); unpack the bundle anew.") from error


def _write(root: Path, digests: Mapping[str, str]) -> Path:
    part = root / f".{SUMS}.part"
    part.write_text(sums(digests), "utf-8")
    os.replace(part, root / SUMS)
    return root / SUMS


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.manifest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("check", "write"))
    parser.add_argument("folder", nargs="?", default=str(Path(__file__).resolve().parent.parent))
    given = parser.parse_args()
    try:
        if given.what == "write":
            print(f"{write_manifest(given.folder)}: written.")
            return
        files = check_manifest(given.folder)
    except ValueError as error:
        sys.exit(f"ERROR: {error}")
    if files is None:
        sys.exit(f"ERROR: {Path(given.folder) / SUMS}: is missing; only a released bundle has one.")
    print(f"{given.folder}: all {files} files are as they were released.")


if __name__ == "__main__":
    main()
