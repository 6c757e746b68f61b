"""The image files in a folder, and what else lies there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib.studies.names import OTHER_FORMATS


def image_files(
    root: Path, labels: str | Path, ours: tuple[str, ...], left_out: Mapping[str, list[str]], formats: tuple[str, ...]
) -> Iterator[str]:
    """The paths of the image files in a folder, relative to it; links are followed.

    Args:
        root: the folder.
        labels: the folder of labels, passed over.
        ours: what names of files in `root` begin with that are no studies' and are not spoken of.
        left_out: what else there is, by the reason; it is added to.
        formats: endings of image files.
    """
    seen: set[tuple[int, int]] = set()
    labels = os.path.realpath(labels)

    def unreadable(error: OSError) -> None:
        left_out[f"that can't be read ({error.strerror})"].append(f"{Path(error.filename).name}/")

    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        below = Path(folder).relative_to(root)
        status = os.stat(folder)
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
            if below == Path() and file.startswith(ours):
                continue
            if file.startswith("."):
                left_out["hidden"].append(name)
            elif not file.lower().endswith(formats):
                other = f"of a format that is not read (read are {', '.join(formats)})"
                left_out[other if file.lower().endswith(OTHER_FORMATS) else "other files"].append(name)
            elif not os.path.isfile(os.path.join(folder, file)):
                left_out["links that lead nowhere"].append(name)
            else:
                yield name
