"""How the light network that finds the brain compares with HD-BET, and whether it knows when to ask it.

    python benchmarks/brain_extractor.py --datalist FILE --others DIR [--test true] [--output FILE]

The images are those of ``brain_training.py``: of the validation, or of the test too, with the other people that the network
did not learn from. Dice is that of the network's mask to HD-BET's; lesions are those that the datalist knows. Some of the
validation's heads are also spoiled in many ways: what matters there is that HD-BET is asked where the mask is wrong.
Writes brain_extractor.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
import torch.nn.functional as F
from brain_training import WEIGHTS, head_of, heads, masked_head, preprocessing
from keeping import ROOT, machine, rounded, versions
from tqdm import tqdm

from scripts.bundle import cache_dir as bundles_cache
from scripts.bundle import declared
from scripts.device import fastest_precision
from scripts.files import write
from scripts.images.brain_network import Found, by_network
from scripts.images.masks import load_mask
from scripts.judging.sums import dice
from scripts.weights import load_weights

SPOILED = 4
"""Heads of the validation that are spoiled in each way."""

Case = tuple[str, torch.Tensor, torch.Tensor | None, list[float]]
"""A name, a volume ``(1, X, Y, Z)``, the brain in it if it is known, and the voxel size."""


def spoiled(image: torch.Tensor, brain: torch.Tensor, pixdim: list[float], seed: int) -> Iterator[Case]:
    """What no head MR should be like."""
    draw = torch.Generator().manual_seed(seed)
    slices, mean = image.shape[-1], float(image[image > image.mean() * 0.5].mean())
    x, y, z = pixdim
    yield "upside down", image.flip(3), brain.flip(3), pixdim
    yield "front and back exchanged", image.flip(2), brain.flip(2), pixdim
    yield "turned by 90 degrees in the plane", image.transpose(1, 2), brain.transpose(1, 2), [y, x, z]
    yield "axes exchanged", image.permute(0, 3, 1, 2), brain.permute(0, 3, 1, 2), [z, x, y]
    order = torch.randperm(slices, generator=draw)
    yield "slices in any order", image[..., order], brain[..., order], pixdim
    for name, kept in (
        ("lower half of the slices", slice(0, slices // 2)),
        ("upper half of the slices", slice(slices // 2, slices)),
        ("lowest fifth of the slices", slice(0, slices // 5)),
        ("one slice", slice(slices // 2, slices // 2 + 1)),
    ):
        yield name, image[..., kept], brain[..., kept], pixdim
    left = slice(0, image.shape[1] // 2)
    yield "left half", image[:, left], brain[:, left], pixdim
    for scale in (0.6, 0.8, 1.3, 1.6):
        yield f"{scale:g} times as large", image, brain, [scale * n for n in pixdim]
    for level in (0.2, 0.5, 1.0):
        noise = level * mean * torch.randn(image.shape, generator=draw)
        yield f"noise of {level:g} of the head's mean", (image + noise).abs(), brain, pixdim
    for ratio in (3, 10, 30):
        ramp = torch.linspace(-0.5, 0.5, image.shape[1]).view(1, -1, 1, 1)
        yield f"shading of 1 to {ratio} from left to right", image * ratio**ramp, brain, pixdim
    yield "bright and dark exchanged", (image.max() - image) * (image > 0.1 * mean), brain, pixdim
    yield "noise alone", mean * torch.rand(image.shape, generator=draw), None, pixdim
    smooth = F.interpolate(torch.rand(1, 1, 6, 6, 6, generator=draw), image.shape[1:], mode="trilinear")[0]
    yield "clouds", mean * 3 * (smooth - 0.4).clamp_min(0), None, pixdim


def known(mask: torch.Tensor, found: Found, lesion: torch.Tensor | None) -> dict[str, Any]:
    """A volume's figures: HD-BET's brain against the light network's."""
    none = not bool((mask | found.mask).any())
    own: dict[str, Any] = {
        "dice": 0.0 if none else dice(mask.numpy(), found.mask.numpy()),
        "agreement": found.agreement,
        "whole": found.whole,
    }
    own |= {"sized": found.sized, "asks_hd_bet": found.doubt is not None}
    own["volume"] = float(found.mask.sum()) / max(1.0, float(mask.sum()))
    if lesion is not None and bool(lesion.any()):
        for name, brain in (("hd_bet", mask), ("network", found.mask)):
            own[f"lesion_in_{name}"] = float((lesion & brain).sum()) / float(lesion.sum())
    return own


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several volumes."""
    dice, sure = [r["dice"] for r in rows], [r for r in rows if not r["asks_hd_bet"]]
    told: dict[str, Any] = {"volumes": len(rows), "asked HD-BET for": len(rows) - len(sure)}
    told |= {"dice": {"mean": float(np.mean(dice)), "least": min(dice)}}
    if sure:
        told["dice where it was not asked"] = {
            "mean": float(np.mean([r["dice"] for r in sure])),
            "least": min(r["dice"] for r in sure),
        }
    told["volume by HD-BET's"] = {"least": min(r["volume"] for r in rows), "most": max(r["volume"] for r in rows)}
    told["least agreement"] = min(r["agreement"] for r in rows)
    lesions = [r for r in rows if "lesion_in_hd_bet" in r]
    if lesions:
        told["lesion voxels inside, mean"] = {
            k: float(np.mean([r[f"lesion_in_{k}"] for r in lesions])) for k in ("hd_bet", "network")
        }
        lost = [r["lesion_in_hd_bet"] - r["lesion_in_network"] for r in lesions]
        told["lesion voxels lost, most"] = max(lost)
    return told


def evaluate(
    datalist: str,
    others: str,
    seed: int = 0,
    test: bool = False,
    weights: str = WEIGHTS,
    output: str = str(ROOT / "benchmarks" / "brain_extractor.json"),
    cache_dir: str | None = None,
) -> None:
    """Compare with HD-BET's masks, of the validation's patients or of the test's too, and write `output`."""
    cache = cache_dir or bundles_cache()
    network = load_weights(declared("brain_def"), weights)
    precision = fastest_precision("cpu")
    masked, unmasked = preprocessing(cache)
    record: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "precision": precision,
        "parameters": sum(p.numel() for p in network.parameters()),
        "elderly learned from": [
            Path(i["image"]).name.split("_")[0] for i in heads(datalist, others, "training") if i["source"] == "elderly"
        ],
    }
    for split in ("validation", "test") if test else ("validation",):
        rows: dict[str, list[dict[str, Any]]] = {}
        seconds: list[float] = []
        for item in tqdm(list(heads(datalist, others, split)), split, unit="head"):
            image, mask = masked_head(item, masked)
            begin = time.process_time()
            found = by_network(image.as_tensor(), image.pixdim.tolist(), network, precision)
            seconds.append(time.process_time() - begin)
            lesion = load_mask(item["mask"], image).as_tensor() if "mask" in item else None
            rows.setdefault(f"{item['source']}, FLAIR", []).append(
                {"image": item["image"], **known(mask, found, lesion)}
            )
            for name in ("t1", "t1gd"):
                beside = Path(item["image"]).with_name(f"{name}.nii.gz")
                if beside.is_file():
                    there = head_of({**item, "image": str(beside)}, unmasked)
                    found = by_network(there.as_tensor(), there.pixdim.tolist(), network, precision)
                    rows.setdefault(f"{item['source']}, {name.upper()}", []).append(known(mask, found, lesion))
            if split == "validation" and len(rows[f"{item['source']}, FLAIR"]) <= SPOILED:
                for name, volume, brain, pixdim in spoiled(image.as_tensor(), mask, image.pixdim.tolist(), seed):
                    found = by_network(volume.contiguous(), pixdim, network, precision)
                    brain = torch.zeros_like(found.mask) if brain is None else brain
                    rows.setdefault(f"spoiled: {name}", []).append(known(brain, found, None))
        record[split] = {name: summary(some) for name, some in rows.items()}
        record[split]["median processor seconds of the network"] = float(np.median(seconds))
        for name, some in rows.items():
            for row in some:
                print(split, name, rounded(row, 4))
    write(Path(output), (json.dumps(rounded(record, 4), indent=2) + "\n").encode())
    print(json.dumps(rounded(record, 4), indent=2))


if __name__ == "__main__":
    fire.Fire(evaluate)
