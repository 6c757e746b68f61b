"""One's own images, in a folder of those that are healthy and one of those that are not."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .. import DISEASED, HEALTHY
from ..checks import check_number
from ..files import each_folder
from ..images.dicom_series import describe
from ..images.formats import DICOM, PICTURES, VOLUMES, VOLUMETRIC, is_dicom, stem
from ..learning.datalists import FILES
from .options import folder_of, links_to_nothing
from .preparation import Preparation
from .slice_labels import UnusableMaskError, labels_of, lesion_voxels

SUFFIXES = VOLUMES + PICTURES + DICOM

CLASSES = {"healthy": HEALTHY, "diseased": DISEASED}


def folder(
    *,
    root: str,
    output: str,
    least_voxels: int = 1,
    every: int = 1,
    split: str | None = None,
    fractions: Any = (0.7, 0.1, 0.2),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """A folder with healthy/ and diseased/, and optionally masks/ of the lesions and foregrounds/ of what to look at.

    Images are NIfTI, NRRD, MetaImage, MGZ, PNG, JPEG, TIFF or DICOM files, a file an image. Those in a folder of their own,
    such as healthy/patient1/a.png, are of one patient; a file that lies in none is a patient of its own. The DICOM series of
    a volume is one image, in a folder of its own such as healthy/patient1. A mask has the path of its image, but for the
    ending: masks/patient1/a.png. Where an image of that name is healthy and one is diseased, it is that of the latter. Of a
    diseased volume with a mask, slices without a marked voxel are labelled healthy, the others diseased. A diseased image whose
    mask marks nothing is left out, and so is a healthy one whose mask marks something. A mask that can't be used leaves out a
    diseased volume, whose slices it would label; from any other image it is left out alone. An image that lies in a folder and
    is linked in another is that of the first.

    Args:
        root: the folder.
        output: the datalist to write, a .json file.
        least_voxels: of a volume's mask that make a slice diseased; slices with fewer, but some, are left out.
        every: 2 takes every second slice of such a volume, and so on.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients in training, validation and test, where no split is given.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("folder", folder_of(root), dict(locals()))
    check_number("least_voxels", least_voxels, 1, 10**9, whole=True)
    check_number("every", every, 1, 10**3, whole=True)
    others = {field: dict(_files(Path(root) / f"{field}s", made)) for field in ("mask", "foreground")}
    found = {name: defaultdict[str, list[str]](list) for name in CLASSES}
    real: dict[str, str] = {}
    for name, paths_of in found.items():
        for bare, path in _files(Path(root) / name, made):
            paths_of[bare].append(path)
            before = real.setdefault(os.path.realpath(Path(root, name, path)), f"{name}/{path}")
            if not before.startswith(f"{name}/"):
                raise ValueError(f"{root}: {before} and {name}/{path} are one file; it can't be healthy and diseased.")
    for field, files in others.items():
        for bare, path in files.items():
            fitting = [name for name in CLASSES if bare in found[name]]
            if not fitting:
                made.damaged(f"{field}s/{path}", "there is no image of this name.")
            elif field == "foreground" and len(fitting) > 1:
                raise ValueError(f"{root}/foregrounds/{path}: an image of this name is healthy and one is diseased.")
    for name, label in CLASSES.items():
        for bare, paths in found[name].items():
            # the mask of a.png and of a.jpg would be the same
            for path in paths[1:]:
                made.damaged(f"{name}/{path}", f"is named as {paths[0]}.")
            item: dict[str, Any] = {"image": f"{name}/{paths[0]}", "label": label, "subject": bare.split("/")[0]}
            for field, files in others.items():
                if bare in files and not (field == "mask" and label == HEALTHY and bare in found["diseased"]):
                    item[field] = f"{field}s/{files[bare]}"
            try:
                item["label"] = _label(item, Path(root), made, least_voxels, every)
            except (OSError, ValueError) as error:
                made.damaged(str(item["image"]), str(error))
                continue
            made.add(item)
    made.write(f"Expected are images ({', '.join(SUFFIXES)}) in the folders healthy and diseased.")


def _label(item: dict[str, Any], root: Path, made: Preparation, least_voxels: int, every: int) -> int | list[int]:
    """Of an item by its folder, or by slice where its mask says more; takes a mask from it that can't be used for evaluation.

    Raises:
        OSError: a file can't be read.
        ValueError: nor can this one; or folder and mask contradict each other, on which an evaluation would fail.
    """
    image, label = root / item["image"], item["label"]
    by_slice = label == DISEASED and (image.is_dir() or image.name.lower().endswith(VOLUMES))
    for field in FILES:
        if field not in item or (root / item[field]).exists():
            continue
        if field == "mask" and not by_slice:
            made.damaged(item.pop("mask"), "links to a file that isn't there.")
            continue
        which = "" if field == "image" else f"its {field} {item[field]} "
        raise ValueError(f"{which}links to a file that isn't there.")
    if not os.path.getsize(image):
        raise ValueError("is empty.")
    if "mask" not in item:
        return int(label)
    mask = root / item["mask"]
    try:
        lesion = made.reads.once([image, mask], "lesion", partial(lesion_voxels, mask, [image]))
    except UnusableMaskError as error:
        if by_slice:
            raise
        made.damaged(item.pop("mask"), str(error))
        return int(label)
    marked = sum(lesion["voxels"])
    if label == DISEASED and not marked:
        raise ValueError(f"is diseased, but its mask {item['mask']} marks nothing.")
    if label == HEALTHY and marked:
        raise ValueError(f"is healthy, but its mask {item['mask']} marks {marked} voxels.")
    return labels_of(lesion, None, least_voxels, every) if by_slice else int(label)


def _files(folder: Path, made: Preparation) -> Iterator[tuple[str, str]]:
    """Every image in a folder at any depth, in order: its path without the ending, and its path.

    Links to files come last, so that what they link to is known by its own name.

    Raises:
        ValueError: slices of a DICOM series lie in the folder itself, so that none tells patients apart.
    """

    def path_of(file: Path) -> str:
        return file.relative_to(folder).as_posix()

    def passed_over(place: Path, why: str) -> None:
        made.damaged(f"{folder.name}/{path_of(place)}", f"{why}.")

    found: list[Path] = []
    series: list[Path] = []
    for place, entries in each_folder(folder, passed_over) if folder.is_dir() else ():
        entries[:] = [entry for entry in entries if entry.name[0] != "."]
        files = [Path(entry.path) for entry in entries if not os.path.isdir(entry.path)]
        slices = {file for file in files if is_dicom(file)}
        if slices and describe(place)[0] in VOLUMETRIC:
            if place == folder:
                raise ValueError(f"{folder}: holds slices of DICOM series; give each series a folder in it.")
            gone = [file for file in sorted(slices) if links_to_nothing(file)]
            if gone:
                passed_over(place, f"{gone[0].name} links to a file that isn't there")
            else:
                series.append(place)
            files = [file for file in files if file not in slices]
        found += [file for file in files if file.name.lower().endswith(SUFFIXES) or file in slices]
    yield from ((path_of(place), path_of(place)) for place in series)
    for file in sorted(found, key=lambda file: (file.is_symlink(), file)):
        yield stem(path_of(file)), path_of(file)
