"""How much the marked volume changes where the scan does and the patient does not, and what is marked beside known lesions.

    python benchmarks/stability.py --datalist FILE [--split test] [--overlays preview] [--seed 0] [--output FILE]

Each volume of the split is run as it is, at half its resolution in the plane, through a coil's bias field and with noise. An
image whose pixels are larger than FINE is not halved: the networks' own are 2.4 mm. Where an item has a mask, how much of it
is found and how much is marked beside it is written too. Writes stability.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
from keeping import ROOT
from monai.data import MetaTensor
from monai.transforms import RandBiasField, RandRicianNoise
from numpy.typing import NDArray
from skimage.transform import downscale_local_mean
from tqdm import tqdm

from scripts.files import write
from scripts.images.masks import load_mask
from scripts.images.restoring import LESION
from scripts.learning.datalists import read_datalist
from scripts.running.predictor import Predictor

FINE = 1.3
"""mm: a pixel that is no larger can be made twice as large and still resolve what the networks see."""
FIELD = 1.2 / 0.8
"""The highest sensitivity of the coil to the lowest within the head: BrainWeb's "40 %", the stronger of its two."""
NOISE = 0.03
"""Standard deviation of the noise in each of the two channels of a scanner, as a part of the 99th percentile."""
LEAST = 1.0
"""ml that must be marked in the scan as it is, for a relative change to mean something."""

Scan = tuple[NDArray[np.float32], NDArray[np.float64]]


def halved(values: NDArray[np.float32], affine: NDArray[np.float64]) -> Scan:
    """Means of two by two pixels, in the plane of the slices; a last odd row or column is left out."""
    even = values[: values.shape[0] // 2 * 2, : values.shape[1] // 2 * 2]
    coarse = affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    coarse[:3, 3] += 0.5 * (affine[:3, 0] + affine[:3, 1])
    return downscale_local_mean(even, (2, 2, 1)).astype(np.float32), coarse


def variants(values: NDArray[np.float32], affine: NDArray[np.float64], seed: int) -> dict[str, Scan]:
    """A scan ``(X, Y, Z)`` as it is, and as other settings of the scanner would have given it.

    Where most of it is exactly 0, as outside a brain that was cut out, it stays so.
    """
    found = {"as it is": (values, affine)}
    if max(np.linalg.norm(affine[:3, :2], axis=0)) <= FINE:
        found["half the resolution"] = halved(values, affine)
    cut_out = float((values == 0).mean()) > 0.5
    inside = values != 0 if cut_out else np.ones_like(values, dtype=bool)
    level = float(np.percentile(values[inside], 99))
    noise = RandRicianNoise(prob=1, std=NOISE * level, sample_std=False).set_random_state(seed)
    found["bias field"] = values * field(values.shape, values > values[inside].mean() / 2, seed), affine
    found["noise"] = np.asarray(noise(values[None]))[0].astype(np.float32) * inside, affine
    return found


def field(shape: tuple[int, ...], head: NDArray[np.bool_], seed: int) -> NDArray[np.float32]:
    """A smooth field, the exponential of a polynomial of third degree, of `FIELD` over the head and 1 on average there."""
    drawn = RandBiasField(prob=1, coeff_range=(-0.1, 0.1)).set_random_state(seed)
    log = np.log(np.asarray(drawn(np.ones((1, *shape), np.float32)))[0])
    low, high = np.percentile(log[head], [1, 99])
    return np.exp((log - log[head].mean()) / (high - low) * np.log(FIELD)).astype(np.float32)


def measured(predictor: Predictor, item: dict[str, Any], seed: int) -> dict[str, Any]:
    """One volume's figures: ml marked in each variant, and beside its known lesions."""
    image = nib.as_closest_canonical(nib.load(item["image"]))
    values, affine = image.get_fdata(dtype=np.float32), image.affine
    volumes: dict[str, float] = {}
    record: dict[str, Any] = {"subject": item["subject"], "marked_ml": volumes}
    for name, scan in variants(values, affine, seed).items():
        found = predictor(*scan)
        volumes[name] = float(found.lesion_ml or 0)
        if name == "as it is" and "mask" in item:
            lesion = load_mask(item["mask"], MetaTensor(values[None], affine=affine)).numpy()[0]
            where, voxel = found.mask == LESION, abs(np.linalg.det(affine[:3, :3])) / 1000
            record["lesion_ml"] = float(lesion.sum() * voxel)
            record["found_ml"] = float((lesion & where).sum() * voxel)
            record["beside_ml"] = float((where & ~lesion).sum() * voxel)
    first = volumes["as it is"]
    if first >= LEAST:
        record["change"] = {name: abs(ml - first) / first for name, ml in volumes.items() if name != "as it is"}
    return record


def main(
    datalist: str,
    split: str = "test",
    overlays: str | tuple[str, ...] = (),
    seed: int = 0,
    output: str = str(ROOT / "benchmarks" / "stability.json"),
) -> None:
    """See the module."""
    names = (overlays,) if isinstance(overlays, str) else tuple(overlays)
    predictor = Predictor(*names)
    volumes = [measured(predictor, item, seed) for item in tqdm(read_datalist(datalist, split), unit="volume")]
    changes = [v["change"] for v in volumes if "change" in v]
    summary = {}
    for name in sorted({name for change in changes for name in change}):
        of_it = [change[name] for change in changes if name in change]
        summary[name] = {"volumes": len(of_it), "median": float(np.median(of_it)), "most": max(of_it)}
    found = {"seed": seed, "overlays": names, "change of the marked volume": summary, "volumes": volumes}
    write(Path(output), (json.dumps(found, indent=2) + "\n").encode())
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
