"""The public LGG set (Buda et al. 2019) as it is downloaded: one TIFF a slice, which become one NIfTI a sequence."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from tqdm import tqdm

from .. import DISEASED, HEALTHY
from ..checks import check_number, is_true
from .options import choice, folder_of, path_of, texts
from .preparation import Preparation
from .saving_volumes import save
from .slice_labels import NO_TUMOUR

CHANNELS = ("pre", "flair", "post")
FILES = [f"{name}.nii.gz" for name in (*CHANNELS, "seg")]
PIXEL = 0.868
"""mm: half of the median of benchmarks/pixel_size.json, which was measured on images of half the size."""
STACK_HEIGHT = 145.0
"""mm of head that a stack covers."""


def lgg(
    *,
    root: str,
    output: str,
    images: str,
    sequences: Any = "flair",
    pixel: float = PIXEL,
    stack_height: float = STACK_HEIGHT,
    split: str | None = None,
    fractions: Any = (0.7, 0.1, 0.2),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """TCGA-LGG slices of Buda et al. 2019 (kaggle_3m): <patient>/<patient>_<z>.tif and <patient>_<z>_mask.tif.

    Writes a NIfTI a patient and sequence, and the mask, to `images`. The set publishes no voxel size: pixels and the height
    of the stack are assumed. A patient is named as in TCGA, TCGA_CS_4941, without the date in the folder's name.
    The split behind the bundled weights is --split docs/split_brain_flair.csv; they were trained on images of half the
    size, whose pixels of 1.736 mm are 0.868 mm here.

    Args:
        root: the folder kaggle_3m, or the one that holds it.
        output: the datalist to write, a .json file.
        images: the folder to write volumes to.
        sequences: one a channel, of pre, flair and post (contrast). A patient without one of them is left out: the set has
            a copy of FLAIR in its place.
        pixel: mm of a pixel; the default was measured.
        stack_height: mm from the first to the last slice.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients in training, validation and test, where no split is given.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way, and over other volumes of the same names.
    """
    options = dict(locals())
    source = folder_of(root)
    source = source / "kaggle_3m" if (source / "kaggle_3m").is_dir() else source
    path_of(images, "images", "a folder")
    may_replace = is_true(overwrite, "overwrite")
    check_number("pixel", pixel, 0.1, 10)
    check_number("stack_height", stack_height, 10, 1000)
    wanted = [choice(s, CHANNELS, "sequences") for s in texts(sequences, "sequences")]
    made = Preparation("lgg", Path(images), options)
    for folder in tqdm(sorted(p for p in source.iterdir() if p.is_dir()), desc="lgg", unit="patient"):
        files = _slices(folder)
        if not files:
            continue
        target = Path(images) / folder.name
        try:
            read = made.reads.once(
                [file for pair in files for file in pair],
                ["lgg", os.path.abspath(target), pixel, stack_height],
                partial(_convert, files, target, pixel, stack_height, may_replace),
                again=not set(FILES) <= made.names(target),
            )
        except (OSError, ValueError) as error:
            made.damaged(folder.name, str(error))
            continue
        if not any(read["voxels"]):
            made.damaged(folder.name, NO_TUMOUR)
            continue
        missing = [name for name in wanted if name in read["copied"]]
        if missing:
            made.damaged(folder.name, f"has no {' and no '.join(missing)}; FLAIR was copied in its place.")
            continue
        paths = [f"{folder.name}/{name}.nii.gz" for name in wanted]
        made.add(
            {
                "image": paths if len(paths) > 1 else paths[0],
                "label": [DISEASED if n else HEALTHY for n in read["voxels"]],
                "mask": f"{folder.name}/seg.nii.gz",
                "subject": re.sub(r"_\d{8}$", "", folder.name),
                # TCGA's names have the institution's
                **({"groups": {"institution": folder.name[5:7]}} if folder.name.startswith("TCGA_") else {}),
            }
        )
    made.write("Expected are folders such as TCGA_CS_4941_19960909 with TCGA_CS_4941_19960909_1.tif and _1_mask.tif.")
    print(f"  Assumed: pixels of {pixel:g} mm, and stacks {stack_height:g} mm high.")


def _slices(folder: Path) -> list[tuple[Path, Path]]:
    """A patient's slices with their masks, from the bottom."""
    pattern = re.compile(re.escape(folder.name) + r"_(\d+)\.tif", re.IGNORECASE)
    found = sorted((int(m[1]), m[0]) for name in os.listdir(folder) if (m := pattern.fullmatch(name)))
    return [(folder / name, folder / f"{name[:-4]}_mask{name[-4:]}") for _, name in found]


def _convert(
    files: list[tuple[Path, Path]], target: Path, pixel: float, stack_height: float, may_replace: bool
) -> dict[str, Any]:
    """Write a patient's volumes; return the voxels marked in each slice, and the sequences that are copies of FLAIR."""
    stacks: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    numbers = [int(image.stem.rpartition("_")[2]) for image, _ in files]
    if numbers != list(range(1, 1 + len(numbers))):
        raise ValueError(f"a slice is missing, from 1 on there are {', '.join(map(str, numbers))}.")
    for image, mask in files:
        for path, into in ((image, stacks), (mask, masks)):
            try:
                with Image.open(path) as picture:
                    into.append(np.asarray(picture))
            except OSError as error:
                raise ValueError(f"{path.name}: can't be read ({error}).") from error
        if stacks[-1].ndim != 3 or stacks[-1].shape[2] != 3 or stacks[-1].shape[:2] != masks[-1].shape[:2]:
            raise ValueError(f"{image.name}: has {stacks[-1].shape} values and its mask {masks[-1].shape}.")
        if stacks[-1].shape != stacks[0].shape:
            raise ValueError(f"{image.name}: has {stacks[-1].shape} values, the first slice {stacks[0].shape}.")
    # rows go to posterior, columns to the patient's left
    volume = np.stack(stacks, axis=-1).transpose(1, 0, 3, 2)
    marked = np.stack([m if m.ndim == 2 else m[..., 0] for m in masks], axis=-1).transpose(1, 0, 2) > 0
    affine = np.diag([-pixel, -pixel, stack_height / len(files), 1.0])
    for n, name in enumerate(CHANNELS):
        save(nib.Nifti1Image(volume[..., n], affine), target / f"{name}.nii.gz", may_replace)
    save(nib.Nifti1Image(marked.astype(np.uint8), affine), target / "seg.nii.gz", may_replace)
    copied = [n for i, n in enumerate(CHANNELS) if n != "flair" and np.array_equal(volume[..., i], volume[..., 1])]
    return {"voxels": [int(n) for n in np.count_nonzero(marked, axis=(0, 1))], "copied": copied}
