"""How often pictures are said not to look like a radiograph of a chest: radiographs, and what is made of them.

    python benchmarks/radiograph_check.py --datalist FILE [--cache_dir DIR]

Takes the mean of the training images as `chest.json` prepares them, and the correlation with it that one of a hundred falls
below, and writes both to the JSON file beside `images.radiograph_check`. How many test images are warned of, as they are and
spoiled, goes to benchmarks/radiograph_check.json, with the sample's brain and pictures of nothing.
"""

from __future__ import annotations

import json

import fire
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from keeping import ROOT

from scripts.bundle import declared
from scripts.files import write
from scripts.images.radiograph_check import correlation
from scripts.learning.datalists import read_datalist
from scripts.learning.datasets import SliceDataset

SIDE = 24
"""Pixels of the mean, along each axis."""
SHARE = 0.01
"""Of the training images may be warned of."""


def framed(x: torch.Tensor, value: float, part: float) -> torch.Tensor:
    """Pictures in a frame whose width is a part of theirs, at their size."""
    width = round(part * x.shape[-1])
    return F.interpolate(F.pad(x[:, None], [width] * 4, value=value), x.shape[1:], mode="area")[:, 0]


SPOILED = {
    "as they are": lambda x: x,
    "mirrored": lambda x: x.flip(2),
    "in a black frame of a twelfth": lambda x: framed(x, -1, 1 / 12),
    "negatives": lambda x: -x,
    "in a white frame of a twelfth": lambda x: framed(x, 1, 1 / 12),
    "in a white frame of a quarter": lambda x: framed(x, 1, 1 / 4),
    "in a black frame of a quarter": lambda x: framed(x, -1, 1 / 4),
    "upside down": lambda x: x.flip(1),
    "turned to the left": lambda x: x.rot90(1, (1, 2)),
    "turned to the right": lambda x: x.rot90(-1, (1, 2)),
}
"""What is made of pictures ``(N, H, W)``."""


def images(datalist: str, split: str, cache_dir: str) -> torch.Tensor:
    """Of a split of a datalist, as the networks see them: ``(N, H, W)``."""
    data = read_datalist(datalist, split, labelled=True)
    dataset = SliceDataset(data, declared("preprocessing", "chest"), cache_dir, 1)
    return torch.stack([dataset[i]["image"][0].mT for i in range(len(dataset))])


def main(datalist: str, cache_dir: str = str(ROOT / "bundle" / "cache")) -> None:
    """Write both files."""
    x = images(datalist, "training", cache_dir)
    mean = (100 * F.adaptive_avg_pool2d(x.mean(dim=0)[None], SIDE)[0]).round()
    threshold = round(float(correlation(x, mean).quantile(SHARE)), 3)
    rows = ",\n        ".join(json.dumps(row) for row in mean.int().tolist())
    text = f'{{\n    "threshold": {threshold},\n    "mean": [\n        {rows}\n    ]\n}}\n'
    write(ROOT / "bundle" / "scripts" / "images" / "radiograph_check.json", text.encode())

    def warned(x: torch.Tensor) -> str:
        return f"{int((correlation(x, mean) < threshold).sum())} of {len(x)}"

    test = images(datalist, "test", cache_dir)
    head = np.asarray(nib.load(ROOT / "bundle" / "sample" / "TCGA_FG_6692_flair.nii.gz").dataobj, np.float32)
    generator = torch.Generator().manual_seed(0)
    others = {
        "slices of a brain": torch.from_numpy(head.transpose(2, 1, 0)[:, ::-1].copy() / head.max() * 2 - 1),
        "noise": torch.rand(20, 96, 96, generator=generator) * 2 - 1,
        "gradients, to each side": torch.stack([torch.linspace(-1, 1, 96).expand(96, 96).rot90(k) for k in range(4)]),
    }
    result = {
        "training images": len(x),
        "threshold": threshold,
        "warned of": {
            **{name: warned(spoil(test)) for name, spoil in SPOILED.items()},
            **{name: warned(other) for name, other in others.items()},
        },
    }
    write(ROOT / "benchmarks" / "radiograph_check.json", (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
