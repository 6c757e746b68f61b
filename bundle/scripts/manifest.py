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

from filelock import FileLock

SUMS = "SHA256SUMS"
"""In the bundle's folder. One that is worked on has none."""
READ_WHOLE = ("configs", "scripts")
"""Folders where a file too many is refused, as all of their files may be read."""
CODE = (".py", ".pyc", ".pyd", ".so")
"""What Python imports from a folder on its path, and from folders in it."""
PATHS = ".pth"
"""What Python runs of the bundle's folder itself, as the configs make it a site's; hidden ones too."""
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
    with alone(root / SUMS):
        listed = _read(root) if (root / SUMS).is_file() else {}
        names = {*listed, *(name for name in _files(root) if _may_run(name) or name.startswith(WEIGHTS))}
        _write(root, {name: _digest(root / name) for name in names if (root / name).is_file()})
    return root / SUMS


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
    wrong += [f"{name} was added" for name in _files(root) if name not in released and _may_run(name)]
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
            with alone(root / SUMS):
                _write(root, {**_read(root), path.relative_to(root).as_posix(): _digest(path)})
            return


def alone(path: Path) -> FileLock:
    """A lock beside a file, to be held while the file is read, changed and written: else one of two changes at once is lost."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def _files(root: Path) -> Iterator[str]:
    """All files, those behind links too, but hidden ones and the caches of runs and of Python."""
    for parent, folders, names in os.walk(root, followlinks=True):
        here = Path(parent)
        own = here.relative_to(root)
        folders[:] = [
            f
            for f in folders
            if f[0] != "." and f != "__pycache__" and own / f != Path("cache") and not _is_circle(here / f)
        ]
        yield from ((own / name).as_posix() for name in names if name[0] != "." or name.endswith(PATHS))


def _is_circle(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.parents)


def _may_run(name: str) -> bool:
    *folders, file = Path(name).parts
    if not folders:
        return file.endswith((*CODE, PATHS))
    # a folder needs no __init__.py to be imported from, but a name
    return folders[0] in READ_WHOLE or (file.endswith(CODE) and all(map(str.isidentifier, folders)))


def _read(root: Path) -> dict[str, str]:
    try:
        lines = [line.split("  ", 1) for line in (root / SUMS).read_text("utf-8").splitlines()]
        return {name: digest for digest, name in lines}
    except ValueError as error:  # also of bytes that are no text
        raise ValueError(f"{root / SUMS}: is damaged ({error}); unpack the bundle anew.") from error


def _write(root: Path, digests: Mapping[str, str]) -> None:
    part = root / f".{SUMS}.{os.getpid()}.part"
    part.write_text(sums(digests), "utf-8")
    os.replace(part, root / SUMS)


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
