"""A data set as the networks see it, in one file: what a machine without the images needs to make all maps.

`Split` preprocesses a split's volumes and puts maps back onto their grids, where they are judged. A *pack* holds the slices of
all three splits; the masks of training patients, for the network that is taught by them; and those of validation patients, for
what is tuned. Test masks are not in it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from keeping import save
from tqdm import tqdm

from scripts import HEALTHY
from scripts.bundle import declared
from scripts.images.geometry import slice_numbers, to_grid
from scripts.images.masks import load_mask
from scripts.judging.cases import SliceCase
from scripts.judging.on_input import cases_of
from scripts.judging.ranking import PixelCounts
from scripts.learning.datalists import Item, paths_of, read_datalist
from scripts.learning.preparing import trained_slices

SUBSET = {"validation": (10, 2), "test": (14, 2)}
"""Patients, and slices of each, for what takes up to a minute a slice; what is tuned sees those of validation."""


class Slices(NamedTuple):
    """A split's labelled slices, one volume after another."""

    x: torch.Tensor
    """float32 ``(N, C, H, W)`` in [-1, 1]."""
    foreground: torch.Tensor
    """bool ``(N, 1, H, W)``."""
    labels: torch.Tensor
    """``(N,)``, 0 or 1."""
    depths: list[int]
    """How many are of each volume."""
    names: list[str]
    """Patient and number of each."""
    lesion: torch.Tensor | None
    """bool ``(N, 1, H, W)``, the readers' mask; None of the test patients."""

    def of(self, label: int) -> Slices:
        """Those of one class; they are of no volume."""
        return self.at(self.labels == label)

    def at(self, chosen: torch.Tensor) -> Slices:
        """Those that are chosen, bool ``(N,)``; they are of no volume."""
        lesion = None if self.lesion is None else self.lesion[chosen]
        names = [name for name, one in zip(self.names, chosen.tolist(), strict=True) if one]
        return Slices(self.x[chosen], self.foreground[chosen], self.labels[chosen], [], names, lesion)

    def pixel_ap(self, a: torch.Tensor) -> float:
        """The average precision of maps ``(N, 1, H, W)`` over the pixels in the foreground, on the networks' grid."""
        if self.lesion is None or not self.lesion.any():
            raise ValueError("none of these slices has a mask, so nothing can be tuned by them.")
        counts = PixelCounts()
        for values, inside, truth in zip(a.float(), self.foreground, self.lesion, strict=True):
            counts.add(values[inside].cpu().numpy(), truth[inside].numpy())
        return counts.ranks()["ap"]


def drawn(depths: Sequence[int], split: str, seed: int) -> torch.Tensor:
    """The subset of a split, bool ``(N,)``; see `SUBSET`."""
    generator = random.Random(seed)
    begins = np.cumsum([0, *depths])
    patients, each = SUBSET[split]
    result = torch.zeros(int(begins[-1]), dtype=torch.bool)
    for p in generator.sample(range(len(depths)), min(patients, len(depths))):
        for n in generator.sample(range(depths[p]), min(each, depths[p])):
            result[int(begins[p]) + n] = True
    return result


def mask_on(item: Item, volume: dict[Any, Any]) -> torch.Tensor:
    """The readers' mask on the networks' grid, bool ``(1, H, W, D)``; nothing where an item has none and is healthy."""
    image = volume["image"]
    if "mask" not in item:
        return torch.zeros(1, *image.shape[1:], dtype=torch.bool)
    mask = load_mask(item["mask"], volume["input_image"])
    return to_grid(mask, mask.affine, image.affine, image.shape[1:]) > 0.5


class Split:
    """The labelled slices of a split's patients, with their volumes.

    Args:
        min_area: leave out slices with less foreground, see `method.slices.assessed_slices`; by default none is.
    """

    def __init__(
        self, datalist: str, name: str, preprocessing: Any, *overlays: str, min_area: int | None = None
    ) -> None:
        self.items = read_datalist(datalist, name)
        self.baselines = [b for b in declared("baselines", *overlays) if not b.on_networks_grid]
        self.volumes: list[Any] = []
        self.wanted: list[list[int]] = []
        x, foreground, labels, names, lesion = [], [], [], [], []
        for item in tqdm(self.items, f"{name}, preprocessing", unit="volume"):
            volume = preprocessing({k: v for k, v in item.items() if k in ("image", "spacing", "foreground")})
            numbers, label = slice_numbers(volume["image"]), item["label"]
            looked_at = enumerate(numbers) if min_area is None else trained_slices(volume["foreground"], min_area)
            of_slices = ((z, label if isinstance(label, int) else label[n]) for z, n in looked_at)
            kept = [(z, y) for z, y in of_slices if y >= 0]
            places = [z for z, _ in kept]
            self.volumes.append(volume)
            self.wanted.append(places)
            subject = item.get("subject", paths_of(item)[0])
            x.append(volume["image"].as_tensor().movedim(-1, 0)[places].float())
            foreground.append(volume["foreground"].as_tensor().movedim(-1, 0)[places] >= 0.5)
            lesion.append(mask_on(item, volume).movedim(-1, 0)[places])
            labels += [y for _, y in kept]
            names += [f"{subject}, slice {numbers[z]}" for z in places]
        depths = [len(places) for places in self.wanted]
        self.slices = Slices(
            *(torch.cat(x), torch.cat(foreground), torch.tensor(labels), depths, names, torch.cat(lesion))
        )

    def cases(self, maps: dict[str, torch.Tensor], scores: dict[str, torch.Tensor]) -> list[SliceCase]:
        """Maps ``(N, 1, H, W)`` and scores ``(N,)`` of the slices, as cases on the grids of the volumes."""
        cases = []
        begin = 0
        for item, volume, places in zip(self.items, self.volumes, self.wanted, strict=True):
            end, depth = begin + len(places), volume["image"].shape[-1]
            numbers = slice_numbers(volume["image"])
            kept = {numbers[z] for z in places}

            def whole(
                values: torch.Tensor,
                depth: int = depth,
                places: list[int] = places,
                part: slice = slice(begin, end),
            ) -> torch.Tensor:
                full = torch.zeros(depth, *values.shape[1:])
                full[places] = values[part].float()
                return full

            parts = ({name: whole(v) for name, v in values.items()} for values in (maps, scores))
            found, _ = cases_of(item, volume, *parts, self.baselines)
            cases += [case for case in found if case.slice in kept]
            begin = end
        return cases


def write_pack(datalist: str, path: Path, cache_dir: str, *overlays: str) -> dict[str, Split]:
    """Write a pack; return the splits of validation and test, which the table is made with."""
    preprocessing = declared("preprocessing", *overlays, brain_cache=cache_dir)
    area = declared("min_area", *overlays)
    training = Split(datalist, "training", preprocessing, *overlays, min_area=area).slices
    splits = {name: Split(datalist, name, preprocessing, *overlays) for name in ("validation", "test")}
    found = {"training": training, **{name: split.slices for name, split in splits.items()}}
    content: dict[str, Any] = {"model": list(overlays)}
    for name, slices in found.items():
        values = slices._asdict() | {"x": slices.x.half()}
        content[name] = values | {"lesion": None if name == "test" else slices.lesion}
    save(path, content)
    return splits


def read_pack(path: Path) -> tuple[dict[str, Slices], list[str], str]:
    """The splits of a pack, the overlays of its model, and a digest of all slices, whatever machine it is on."""
    content = torch.load(path, weights_only=True, map_location="cpu")
    overlays = content.pop("model")
    digest = hashlib.sha256()
    splits = {}
    for name in ("training", "validation", "test"):
        splits[name] = Slices(**content[name] | {"x": content[name]["x"].float()})
        for values in splits[name]:
            digest.update(values.numpy().tobytes() if isinstance(values, torch.Tensor) else repr(values).encode())
    if not (splits["training"].labels == HEALTHY).any():
        raise ValueError(f"{path}: no training slice is healthy, so nothing can learn from those.")
    return splits, overlays, digest.hexdigest()[:16]
