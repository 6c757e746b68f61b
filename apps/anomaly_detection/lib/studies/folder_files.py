"""The image files in a folder, the labels beside them, and what else lies there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from monailabel.datastore.local import ImageLabelModel
from monailabel.interfaces.exception import MONAILabelException

from lib.studies.names import OTHER_FORMATS, plain
from lib.studies.register import stamp_of
from lib.studies.tags import SLICES

ALL_TAGS = ""
"""Stands for every tag, among those whose labels can't be read."""


def image_files(
    root: Path,
    labels: str | Path,
    ours: tuple[str, ...],
    left_out: Mapping[str, list[str]],
    unread: set[str],
    formats: tuple[str, ...],
) -> Iterator[tuple[str, list[Any]]]:
    """The paths of the image files in a folder, relative to it, with their stamps, see `stamp_of`; links are followed.

    Args:
        root: the folder.
        labels: the folder of labels, passed over.
        ours: what names of files in `root` begin with that are no studies' and are not spoken of.
        left_out: what else there is, by the reason; it is added to.
        unread: the folders and files among them that could not be read now, relative to `root`; it is added to.
        formats: endings of image files.
    """
    seen: set[tuple[int, int]] = set()
    labels = os.path.realpath(labels)

    def unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        unread.add(name)
        left_out[f"that can't be read ({error.strerror})"].append(name)

    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        below = Path(folder).relative_to(root)
        try:
            status = os.stat(folder)
        except OSError as error:
            unreadable(error)
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            left_out["in a folder that was read already"].append(below.as_posix() + "/")
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        left_out["hidden"].extend((below / d).as_posix() + "/" for d in folders if d.startswith("."))
        folders[:] = [
            d
            for d in sorted(folders, key=lambda d: (os.path.islink(os.path.join(folder, d)), d))
            if not d.startswith(".") and os.path.realpath(os.path.join(folder, d)) != labels
        ]
        for file in sorted(files):
            name = (below / file).as_posix()
            if below == Path() and file.startswith(ours) and not file.lower().endswith(formats):
                continue
            if file.startswith("."):
                left_out["hidden"].append(name)
            elif not file.lower().endswith(formats):
                other = f"of a format that is not read (read are {', '.join(formats)})"
                left_out[other if file.lower().endswith(OTHER_FORMATS) else "other files"].append(name)
            else:
                path = Path(folder, file)
                try:
                    regular = stat.S_ISREG(path.stat().st_mode)
                except FileNotFoundError:
                    regular = False
                except OSError as error:
                    unreadable(error)
                    continue
                if not regular:
                    left_out["links that lead nowhere"].append(name)
                    continue
                try:
                    stamp = stamp_of(path)
                except OSError:
                    unread.add(name)
                    left_out["that can't be read, or whose file of voxels can't"].append(name)
                    continue
                yield name, stamp


def labels_unread(error: OSError) -> str:
    """Why labels that can't be read now are left out."""
    return f"in labels that can't be read ({error.strerror or type(error).__name__})"


def label_files(labels: Path, left_out: Mapping[str, list[str]], unread: set[str]) -> Iterator[tuple[str, Path]]:
    """The files in a folder of labels, each with its tag, in order; what a process that was killed left is removed.

    Args:
        labels: the folder.
        left_out: what else there is, by the reason; it is added to.
        unread: the tags whose folders can't be read now, or `ALL_TAGS`; it is added to.
    """
    try:
        # no glob: it takes a folder that can't be read for an empty one
        folders = sorted(labels.iterdir()) if os.path.lexists(labels) else []
    except OSError as error:
        left_out[labels_unread(error)].append(f"{labels.name}/")
        unread.add(ALL_TAGS)
        return
    for folder in folders:
        tag = folder.name
        if tag.startswith("."):
            continue
        try:
            files = sorted(folder.iterdir())
            plain(tag, "")
        except NotADirectoryError:
            continue
        except OSError as error:
            left_out[labels_unread(error)].append(f"{tag}/")
            unread.add(tag)
            continue
        except MONAILabelException:
            left_out["in labels under a tag with signs that a name can't have"].append(f"{tag}/")
            continue
        for file in files:
            if file.name.startswith(".part."):
                with suppress(OSError):
                    file.unlink()
            elif not file.name.startswith(SLICES):
                yield tag, file


def may_come_back(root: Path, name: str, unread: set[str]) -> bool:
    """Whether a file that is not found may be there again: it, or a folder above it, can't be read or is a link to nowhere.

    Args:
        root: the folder.
        name: the file's path, relative to it.
        unread: of `image_files`.
    """
    places = [name, *(parent.as_posix() for parent in PurePosixPath(name).parents)]
    if unread.intersection(places):
        return True
    for place in places:
        try:
            os.stat(root / place)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(root / place):
                return True
        except OSError:
            return True
    return False


def label_names(image_id: str, known: ImageLabelModel) -> list[str]:
    """The paths of an image's labels in the folder of labels."""
    return [f"{tag}/{image_id}{label.ext}" for tag, label in known.labels.items()]


def labels_there(labels: Path, image_id: str, known: ImageLabelModel) -> Iterator[Path]:
    """The files of an image's labels that are in the folder of labels, or may be there again."""
    for name in label_names(image_id, known):
        if may_come_back(labels, name, set()) or (labels / name).is_file():
            yield labels / name
