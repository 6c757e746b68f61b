"""What neither the evaluation nor the product looks at: slices, brain and lesion, by the masks of a split's patients.

    python benchmarks/brain_coverage.py --datalist FILE [--split test] [--output FILE]

The evaluation takes the slices that the data set labels, the product those in which HD-BET finds at least 5 cm² of brain.
Where the two differ is counted here. No network but HD-BET runs. Writes brain_coverage.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fire
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.bundle import declared
from scripts.files import write
from scripts.images.geometry import slice_numbers
from scripts.images.masks import load_mask
from scripts.learning.datalists import read_datalist
from scripts.method.slices import assessed_slices


def counted(evaluated: np.ndarray, assessed: np.ndarray, brain: np.ndarray, lesion: np.ndarray) -> dict[str, Any]:
    """The figures of one patient, from four arrays with a value for each slice of the file.

    Args:
        evaluated: bool, whether it is among those that are reported on.
        assessed: bool, whether the product looks at it.
        brain: pixels of brain in it, on the networks' grid.
        lesion: pixels of lesion in it, on the file's grid.

    Returns:
        numbers of slices, and the shares of brain and lesion that are not assessed; the latter None without a lesion.
    """
    unseen = ~assessed
    return {
        "slices": len(evaluated),
        "evaluated": int(evaluated.sum()),
        "evaluated_but_not_assessed": int((evaluated & unseen).sum()),
        "with_lesion": int((lesion > 0).sum()),
        "with_lesion_not_evaluated": int((~evaluated & (lesion > 0)).sum()),
        "with_lesion_not_assessed": int((unseen & (lesion > 0)).sum()),
        "share_of_brain_not_assessed": round(float(brain[unseen].sum() / brain.sum()), 3),
        "share_of_lesion_not_assessed": round(float(lesion[unseen].sum() / lesion.sum()), 3) if lesion.any() else None,
    }


def coverage(
    datalist: str,
    split: str = "test",
    output: str = str(ROOT / "benchmarks" / "brain_coverage.json"),
    cache_dir: str = str(ROOT / "bundle" / "cache"),
) -> None:
    """Write `output`; see the module."""
    preprocessing = declared("preprocessing", brain_cache=cache_dir)
    min_area = declared("min_area")
    patients = []
    for item in tqdm(read_datalist(datalist, split), "preprocessing", unit="volume"):
        volume = preprocessing({k: v for k, v in item.items() if k in ("image", "spacing")})
        inside = volume["foreground"]
        numbers = slice_numbers(inside)  # of the slices that hold brain
        assessed, brain = np.zeros(len(item["label"]), bool), np.zeros(len(item["label"]), int)
        assessed[numbers] = assessed_slices(inside.as_tensor(), min_area).numpy()
        brain[numbers] = (inside.as_tensor()[0] >= 0.5).sum(dim=(0, 1)).numpy()
        lesion = load_mask(item["mask"], volume["input_image"]).as_tensor()[0].sum(dim=(0, 1)).numpy()
        patients.append(counted(np.array(item["label"]) >= 0, assessed, brain, lesion))
    record: dict[str, Any] = {"split": split, "patients": len(patients)}
    for name in patients[0]:
        values = [p[name] for p in patients if p[name] is not None]
        if name.startswith("share"):
            record[name] = {"least": min(values), "median": round(float(np.median(values)), 3), "most": max(values)}
        else:
            record[name] = sum(values)
    write(Path(output), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(coverage)
