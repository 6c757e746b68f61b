"""One's own images, in a folder of those that are healthy and one of those that are not."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import DISEASED, HEALTHY
from .options import folder_of
from .preparation import Preparation

SUFFIXES = tuple(".nii.gz .nii .nrrd .mha .mhd .mgz .png .jpg .jpeg .tif .tiff .dcm".split())


def folder(
    *,
    root: str,
    output: str,
    split: str | None = None,
    fractions: Any = (0.7, 0.1, 0.2),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """A folder with healthy/ and diseased/, and optionally masks/ of the lesions and foregrounds/ of what to look at.

    Images are NIfTI, NRRD, MetaImage, MGZ, PNG, JPEG, TIFF or DICOM files, a file an image. Those in a folder of their own,
    such as healthy/patient1/a.png, are of one patient; a file that lies in none is a patient of its own. A mask has the path
    of its image, but for the ending: masks/patient1/a.png.

    Args:
        root: the folder.
        output: the datalist to write, a .json file.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients in training, validation and test, where no split is given.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("folder", folder_of(root), dict(locals()))
    others = {"mask": dict(_files(Path(root) / "masks")), "foreground": dict(_files(Path(root) / "foregrounds"))}
    for name, label in (("healthy", HEALTHY), ("diseased", DISEASED)):
        found: defaultdict[str, list[str]] = defaultdict(list)
        for stem, path in _files(Path(root) / name):
            found[stem].append(path)
        for stem, paths in found.items():
            # the mask of a.png and of a.jpg would be the same
            for path in paths[1:]:
                made.damaged(f"{name}/{path}", f"is named as {paths[0]}.")
            item: dict[str, Any] = {"image": f"{name}/{paths[0]}", "label": label, "subject": stem.split("/")[0]}
            for field, files in others.items():
                if stem in files:
                    item[field] = f"{field}s/{files[stem]}"
            if not os.path.getsize(Path(root) / str(item["image"])):
                made.damaged(str(item["image"]), "is empty.")
            else:
                made.add(item)
    made.write(f"Expected are images ({', '.join(SUFFIXES)}) in the folders healthy and diseased.")


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Every image in a folder at any depth, in order: its path without the ending, and its path."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if f[0] != ".")
        for name in sorted(names):
            suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
            if suffix and name[0] != ".":
                path = (Path(place) / name).relative_to(folder).as_posix()
                yield path[: -len(suffix)], path
