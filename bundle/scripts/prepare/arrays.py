"""Pictures that come as one array with a table: they are written as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .. import DISEASED, HEALTHY
from ..checks import is_true
from ..files import write
from .known import groups_of
from .options import path_of, rows_of
from .preparation import Preparation
from .regions import Regions, regions_of
from .splitting import section_of

GROUPS = {name: [name] for name in ("view", "sex", "age")}


def arrays(
    *,
    root: str,
    output: str,
    images: str,
    diseased: str = "effusion",
    healthy: str | None = None,
    regions: str | None = None,
    split: str | None = None,
    fractions: Any = (0.7, 0.1, 0.2),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Radiographs in an .npz file (images, uint8 (N, H, W)) with a .csv of the same name, a line an image.

    The table has the columns row and, where they are known, split, patient, and group (of near-duplicates). An image without
    a patient is of its group; one without either is a patient of its own. The columns view, sex and age become groups.

    Args:
        root: the .npz file.
        output: the datalist to write, a .json file.
        images: the folder to write PNG files to.
        diseased: the column whose 1 means diseased.
        healthy: the column whose 1 means healthy, such as no_finding; by default all others are.
        regions: a .json file of what radiologists drew, see `regions.regions_of`. A picture with a region named as
            `diseased` is diseased, whatever the table says; its regions are written as boxes and, beside it, as a mask. As
            regions are for evaluation only, all pictures of the patients in this file are in test, whatever the table says;
            those that a `split` has elsewhere are left out.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients in training, validation and test, where the table gives no split.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way, and over other pictures of the same names.
    """
    options = dict(locals())
    source, target = path_of(root, "root", "an .npz file"), path_of(images, "images", "a folder")
    made = Preparation("arrays", target, options)
    table = source.with_suffix(".csv")
    rows = rows_of(table, (), ("row", diseased, *([healthy] if healthy else [])))
    try:
        with np.load(source) as content:
            pictures = content["images"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{source}: can't be read as an .npz file with 'images' ({error}).") from error
    if pictures.dtype != np.uint8 or pictures.ndim != 3:
        raise ValueError(f"{source}: 'images' must be uint8 (N, H, W), got {pictures.dtype} {pictures.shape}.")
    drawn = regions_of(regions, diseased, pictures.shape[1:]) if regions else {}
    judged = {subject_of(row, source.stem) for row in rows if int(float(row["row"])) in drawn}
    target.mkdir(parents=True, exist_ok=True)
    for row in tqdm(rows, desc=source.name, unit="image"):
        number, name, subject = int(float(row["row"])), name_of(row, source.stem), subject_of(row, source.stem)
        found = drawn.get(number, Regions([], None))
        is_diseased = float(row[diseased]) == 1 or found.boxes
        is_healthy = not healthy or float(row[healthy]) == 1
        label = DISEASED if is_diseased else HEALTHY if is_healthy else None
        if label is None:
            made.passed(f"neither {diseased} nor {healthy}")
        elif subject in judged and made.split is not None and made.split.get(subject, "test") != "test":
            made.damaged(
                name, f"{subject} is in {regions}, for the test, but the split has it in {made.split[subject]!r}."
            )
        elif not 0 <= number < len(pictures):
            made.damaged(name, f"there are {len(pictures)} images.")
        else:
            may_replace = is_true(overwrite, "overwrite")
            _save(pictures[number], target / f"{name}.png", may_replace)
            item: dict[str, Any] = {"image": f"{name}.png", "label": label, "subject": subject}
            item |= groups_of(row, GROUPS)
            if found.boxes:
                item["boxes"] = found.boxes
            if found.mask is not None:
                item["mask"] = f"{name}-mask.png"
                _save(found.mask.astype(np.uint8) * 255, target / item["mask"], may_replace)
            made.add(item, "test" if subject in judged else section_of(row.get("split", "")) or None)
    made.write(f"Expected is {table.name} with lines.")


def name_of(row: Mapping[str, str], stem: str) -> str:
    """Of a line's picture, without suffix."""
    return f"{stem}-{int(float(row['row'])):05d}"


def subject_of(row: Mapping[str, str], stem: str) -> str:
    """The patient of a line, or what stands for one."""
    group = f"group-{row['group']}" if row.get("group") else name_of(row, stem)
    return row.get("patient") or group


def _save(picture: np.ndarray, path: Path, overwrite: bool) -> None:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    if path.exists() and path.read_bytes() == content.getvalue():  # the same file keeps its time of change
        return
    if path.exists() and not overwrite:
        raise ValueError(
            f"{path}: is there already and is another picture; give another --images, or --overwrite true."
        )
    write(path, content.getvalue())
