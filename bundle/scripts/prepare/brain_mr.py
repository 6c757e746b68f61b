"""The volumes that the bundled weights were trained on: the public LGG set at half its size, with brain masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checks import is_true
from .known import groups_of
from .lgg import PIXEL, STACK_HEIGHT
from .options import choice, folder_of, rows_of, texts
from .preparation import Preparation
from .splitting import section_of

SEQUENCES = ("flair", "t1", "t1gd")
MISSING = {"t1": "t1_missing", "t1gd": "t1gd_missing"}
COLUMNS = ("patient", "split")
NUMBERS = ("z", "has_tumour", "mid_slice", "brain_mask_trusted", *MISSING.values())


def brain_mr(
    *,
    root: str,
    output: str,
    sequences: Any = "flair",
    brain_masks: bool = False,
    middle: bool = False,
    split: str | None = None,
    fractions: Any = (0.7, 0.1, 0.2),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """TCGA-LGG as volumes/<patient>/<sequence>.nii.gz and slices.csv, with the split that slices.csv gives.

    The headers' 2 x 2 x 5 mm are nominal. Pixels are taken as 1.736 mm, the median of benchmarks/pixel_size.json, and the
    slices as evenly spread over 145 mm.

    Args:
        root: the folder with slices.csv.
        output: the datalist to write, a .json file.
        sequences: one a channel, of flair, t1 and t1gd; a patient without one of them is left out.
        brain_masks: take the set's own brain masks, and leave out the patients whose mask it marks as not to be trusted.
        middle: leave out the slices that are not marked mid_slice, whose brain is under half of the largest slice's, as the
            paper leaves out BRATS's outer slices.
        split: a CSV with the columns subject and split; the patients that it does not name are left out.
        fractions: of the patients in training, validation and test, where slices.csv gives none.
        seed: of the draw.
        overwrite: write over a datalist that was made in another way.
    """
    made = Preparation("brain_mr", folder_of(root), dict(locals()))
    wanted = [choice(s, SEQUENCES, "sequences") for s in texts(sequences, "sequences")]
    masks, inner = is_true(brain_masks, "brain_masks"), is_true(middle, "middle")
    patients: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(Path(root) / "slices.csv", COLUMNS, NUMBERS):
        patients.setdefault(row["patient"], []).append(row)
    for patient, rows in tqdm(sorted(patients.items()), desc="brain_mr", unit="patient"):
        rows.sort(key=lambda row: float(row["z"]))
        needed = [*wanted, "seg", *(["brain"] if masks else [])]
        absent = [name for name in needed if f"{name}.nii.gz" not in made.names(Path(root) / "volumes" / patient)]
        copied = [name for name in wanted if name in MISSING and any(float(row[MISSING[name]]) == 1 for row in rows)]
        if absent or copied:
            made.damaged(patient, f"has no {' and no '.join(absent or copied)}.")
        elif masks and float(rows[0]["brain_mask_trusted"]) == 0:
            made.damaged(patient, "its brain mask is marked as not to be trusted.")
        else:
            folder = f"volumes/{patient}"
            paths = [f"{folder}/{name}.nii.gz" for name in wanted]
            item = {
                "image": paths if len(paths) > 1 else paths[0],
                "label": [
                    -1 if inner and float(row["mid_slice"]) != 1 else int(float(row["has_tumour"])) for row in rows
                ],
                "mask": f"{folder}/seg.nii.gz",
                **({"foreground": f"{folder}/brain.nii.gz"} if masks else {}),
                "subject": patient,
                "spacing": [2 * PIXEL, 2 * PIXEL, STACK_HEIGHT / len(rows)],
                **groups_of(rows[0], {"institution": ["site"]}),
            }
            made.add(item, section_of(rows[0]["split"]) or None)
    made.write("Expected are slices.csv and the folder volumes.")
