"""The brain tumours of the Medical Segmentation Decathlon (Task01_BrainTumour): 4D files and a ``dataset.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ..checks import check_number, is_true
from ..images.geometry import load_nifti
from .options import choice, folder_of, path_of, texts
from .preparation import Preparation
from .saving_volumes import save
from .slice_labels import NO_TUMOUR, checked_slices, labels_of, lesion_voxels

CHANNELS = ("flair", "t1", "t1ce", "t2")
"""In the order of the files: FLAIR, T1w, t1gd, T2w."""


def msd_brain(
    *,
    root: str,
    output: str,
    sequences: Any = "flair,t1,t1ce,t2",
    images: str | None = None,
    slices: Any = None,
    least_voxels: int = 1,
    every: int = 1,
    split: str | None = None,
    fractions: Any = (0.7, 0.1, 0.2),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Medical Segmentation Decathlon, Task01_BrainTumour: dataset.json, imagesTr and labelsTr.

    Its test images have no labels and are not listed. All four sequences are taken from the 4D files as they are; others are
    written out, a file each.

    Args:
        root: the folder with dataset.json.
        output: the datalist to write, a .json file.
        sequences: one a channel, of flair, t1, t1ce and t2.
        images: the folder to write volumes to, needed for other sequences than all four in this order.
        slices: the first and the last to use, counted from 0 at the bottom. By default all.
        least_voxels: that make a slice diseased; slices with fewer, but some, are left out.
        every: 2 takes every second slice, and so on.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients in training, validation and test, where no split is given.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way, and over other volumes of the same names.
    """
    options = dict(locals())
    source = folder_of(root)
    made = Preparation("msd_brain", source, options)
    wanted = [choice(s, CHANNELS, "sequences") for s in texts(sequences, "sequences")]
    whole = tuple(wanted) == CHANNELS
    if not whole and images is None:
        raise ValueError(f"--images DIR is needed to write {', '.join(wanted)} of the 4D files to.")
    target = Path() if whole else path_of(images, "images", "a folder")
    may_replace = is_true(overwrite, "overwrite")
    between = checked_slices(slices)
    check_number("least_voxels", least_voxels, 1, 10**9, whole=True)
    check_number("every", every, 1, 10**3, whole=True)
    for entry in tqdm(_entries(source / "dataset.json"), desc="msd_brain", unit="case"):
        image, mask = (source / entry[key] for key in ("image", "label"))
        name = image.name.split(".nii")[0]
        try:
            lesion = made.reads.once([image, mask], "lesion", partial(lesion_voxels, mask, [image]))
            paths = [image]
            if not whole:
                paths = [target / name / f"{sequence}.nii.gz" for sequence in wanted]
                made.reads.once(
                    [image],
                    ["volumes", [os.path.abspath(path) for path in paths]],
                    partial(_write, image, wanted, paths, may_replace),
                    again=not {path.name for path in paths} <= made.names(paths[0].parent),
                )
        except (OSError, ValueError) as error:
            made.damaged(name, str(error))
            continue
        if not any(lesion["voxels"]):
            made.damaged(name, NO_TUMOUR)
            continue
        relative = [os.path.relpath(os.path.realpath(path), os.path.realpath(source)) for path in paths]
        made.add(
            {
                "image": relative if len(relative) > 1 else relative[0],
                "label": labels_of(lesion, between, least_voxels, every),
                "mask": Path(entry["label"]).as_posix(),
                "subject": name,
            }
        )
    made.write("Expected is a dataset.json with 'training', and imagesTr and labelsTr beside it.")


def _entries(table: Path) -> list[dict[str, str]]:
    try:
        entries = json.loads(table.read_bytes())["training"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{table}: can't be read as the Decathlon's dataset.json ({error!r}).") from error
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and all(isinstance(e.get(key), str) for key in ("image", "label")) for e in entries
    ):
        raise ValueError(f"{table}: 'training' must be a list of images with their labels.")
    return entries


def _write(image: Path, sequences: Sequence[str], paths: Sequence[Path], may_replace: bool) -> None:
    """A file a sequence; one that is there must be that volume."""
    volume = load_nifti(str(image))
    if volume.ndim != 4 or volume.shape[3] != len(CHANNELS):
        raise ValueError(f"{image.name}: has {volume.shape} voxels; four channels are expected.")
    array = np.asarray(volume.dataobj)
    for name, path in zip(sequences, paths, strict=True):
        save(nib.Nifti1Image(array[..., CHANNELS.index(name)], volume.affine), path, may_replace)
