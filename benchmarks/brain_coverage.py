"""What neither the evaluation nor the product looks at: slices, brain and lesion, by the masks of a split's patients.

    python benchmarks/brain_coverage.py --datalist FILE [--split test] [--output FILE]

The evaluation takes the slices with brain that the data set labels. The product takes those in which it finds at least 5 cm² of
brain, and of these what lies within the field of its networks. Where the two differ is counted here. No network runs but those
that find the brain. Writes brain_coverage.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from keeping import ROOT
from tqdm import tqdm

from scripts.bundle import declared
from scripts.files import write
from scripts.images.geometry import slice_numbers
from scripts.images.masks import load_mask, reordered
from scripts.images.restoring import looked_at
from scripts.learning.datalists import read_datalist
from scripts.method.slices import assessed_slices


def counted(evaluated: np.ndarray, seen: np.ndarray, brain: np.ndarray, lesion: np.ndarray) -> dict[str, Any]:
    """The figures of one patient.

    Args:
        evaluated: bool ``(D,)``, whether a slice is among those that are reported on.
        seen: bool ``(X, Y, D)``, what the product looks at: brain in assessed slices, within the field of the networks.
        brain: bool, of the same shape.
        lesion: bool, likewise, the readers' mask.

    Returns:
        numbers of slices, and the shares of brain and lesion that are not looked at; the latter None without a lesion.
    """
    assessed, with_lesion = seen.any(axis=(0, 1)), lesion.any(axis=(0, 1))
    return {
        "slices": len(evaluated),
        "evaluated": int(evaluated.sum()),
        "evaluated_but_not_assessed": int((evaluated & ~assessed).sum()),
        "with_lesion": int(with_lesion.sum()),
        "with_lesion_not_evaluated": int((~evaluated & with_lesion).sum()),
        "with_lesion_not_assessed": int((~assessed & with_lesion).sum()),
        "share_of_brain_not_assessed": round(float((brain & ~seen).sum() / brain.sum()), 3),
        "share_of_lesion_not_assessed": round(float((lesion & ~seen).sum() / lesion.sum()), 3)
        if lesion.any()
        else None,
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
        image, original = volume["image"], volume["input_image"]
        affine, size = torch.as_tensor(image.meta["input_affine"], dtype=torch.float64), original.shape[1:]
        whole, inside = volume["input_foreground"], volume["foreground"].as_tensor()
        brain = reordered(whole.as_tensor(), whole.affine, affine, size)[0].numpy() > 0
        seen = looked_at(image, assessed_slices(inside, min_area), size)[0].numpy()
        lesion = load_mask(item["mask"], original).as_tensor()[0].numpy() > 0
        evaluated = np.zeros(len(item["label"]), bool)  # a slice without a networks' pixel of brain is left out
        evaluated[slice_numbers(volume["foreground"])] = (inside[0] >= 0.5).flatten(0, 1).any(dim=0).numpy()
        evaluated &= np.array(item["label"]) >= 0
        patients.append(counted(evaluated, seen & brain, brain, lesion))
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
