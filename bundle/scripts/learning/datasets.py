"""Labelled slices, read from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LazyTransform, MapTransform, RandSmoothDeformd, Transposed
from torch.utils.data import Dataset

from ..digests import json_digest
from ..fingerprints import fingerprint, identified
from ..images.mask_labels import mask_labels
from ..ranks import of_first
from .cache import Entry, SliceCache
from .preparing import fill, logger
from .seeding import Draw, augmented


class Targets(Protocol):
    """What the slices of a data set teach instead of their labels, such as `pseudo_labels.PseudoLabels`."""

    digest: str

    def __getitem__(self, i: int) -> torch.Tensor:
        """The target of slice `i`."""


def _source(item: dict[str, Any]) -> dict[str, Any]:
    """What the preprocessing takes of an item."""
    return {k: v for k, v in item.items() if k in ("image", "spacing", "foreground")}


def _input_image(item: dict[str, Any], preprocessing: Compose) -> MetaTensor:
    """The image of an item on the grid of its file, by the first steps of the preprocessing alone."""
    volume = _source(item)
    steps = iter(preprocessing.transforms)
    while "input_image" not in volume:
        volume = next(steps)(volume)
    image: MetaTensor = volume["input_image"]
    return image


def check_moved_together(augmentation: Any) -> None:
    """See to it that an augmentation moves a slice and its target alike.

    Raises:
        ValueError: a transform in it moves the slice alone.
    """
    for transform in getattr(augmentation, "transforms", ()):
        check_moved_together(transform)
    # not all that move pixels are lazy, such as elastic ones
    of_space = type(augmentation).__module__.startswith(("monai.transforms.spatial", "monai.transforms.croppad"))
    others = isinstance(augmentation, (LazyTransform, RandSmoothDeformd, Transposed))
    moves = isinstance(augmentation, MapTransform) and (of_space or others)
    if moves and "label" not in augmentation.keys:
        keys = ", ".join(map(str, augmentation.keys))
        raise ValueError(
            f"train#augmentation: {type(augmentation).__name__} moves {keys} alone. Name train_student.json last, or give it "
            'the keys "image" and "label".'
        )


class SliceDataset(Dataset):
    """Labelled axial slices of a datalist's volumes, read one by one from a cache that is made once.

    The preprocessing, the same as for inference, runs once a volume; its slices with enough foreground are kept, see
    `SliceCache`. Memory is bounded by the batch, not by the data set. A volume is found again by a hash of its files (path,
    size and time of change), the preprocessing and the versions. So another datalist, or one that was stopped, repeats no
    volume; a file that was replaced in place is another volume, see `sources.state`.

    ``label`` of an item is 0 (healthy) or 1 (diseased) for all its slices, or a list with 0, 1, or -1 (leave out) for
    each slice of the file along its axis nearest to superior-inferior, or the path of a mask that says it, see
    `images.mask_labels`.

    Args:
        data: a datalist, see `datalists`.
        preprocessing: dictionary transforms that make ``image`` ``(C, H, W, D)`` and ``foreground`` ``(1, H, W, D)``, and
            keep ``input_image``.
        cache_dir: where the cache lies.
        min_area: see `method.slices.assessed_slices`.
        augmentation: applied to every draw.
        seed: of the augmentation.
        targets: makes what takes the place of the labels.
        workers: processes that preprocess.

    Items are ``{"image": float32 (C, H, W), "label": int or the target, "number": int}``. An index alone gives a slice as it
    is, with the index as its number, a `Draw` an augmented one with its own. ``labels`` and ``subjects`` are the slices' own.
    A volume that can't be read is named in the log, left out, and tried again the next time. Of several ranks, the first
    prepares the slices for all.

    Raises:
        ValueError: no slice is left, a label has more or fewer values than there are slices, or the cache can't be written.
        RuntimeError: memory, disk or files ran out.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        preprocessing: Compose,
        cache_dir: str,
        min_area: int,
        augmentation: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
        targets: Callable[[SliceDataset], Targets] | None = None,
        workers: int = 0,
    ) -> None:
        self.augmentation, self.seed = augmentation, seed
        settings = fingerprint([min_area, list(Entry.__annotations__)], preprocessing)
        self._cache = SliceCache(Path(cache_dir) / f"slices-{settings}")
        sources = [_source(item) for item in data]
        keys = [json_digest(identified(source))[:16] for source in sources]
        wanted = dict(zip(keys, sources, strict=True))
        found = of_first(lambda: fill(self._cache, wanted, preprocessing, min_area, workers))
        if found.keys() - self._cache.entries().keys():
            raise ValueError(f"{cache_dir}: lacks what rank 0 wrote; give a --cache_dir that all machines share.")
        left_out = sum(key not in found for key in keys)
        if left_out:
            logger.warning("%d of %d volumes were left out; the next start tries them again.", left_out, len(data))
        digest = hashlib.sha256()
        self.labels: list[int] = []
        self.subjects: list[str] = []
        self._rows: list[int] = []
        for item, entry in ((item, found[key]) for item, key in zip(data, keys, strict=True) if key in found):
            label = item["label"]
            if isinstance(label, str):  # as MONAI Label's own BundleTrainTask gives it
                label = mask_labels(label, _input_image(item, preprocessing))
            if not isinstance(label, int) and len(label) != entry.depth:
                raise ValueError(f"{item['image']}: has {entry.depth} slices, but {len(label)} labels.")
            of_slices = [label if isinstance(label, int) else label[n] for n in entry.numbers]
            kept = [n for n, of_slice in enumerate(of_slices) if of_slice >= 0]
            self.labels += [of_slices[n] for n in kept]
            self.subjects += [str(item.get("subject", item["image"]))] * len(kept)
            self._rows += [entry.first + n for n in kept]
            digest.update(repr((entry.digest, of_slices)).encode())
        if not self.labels:
            raise ValueError("the datalist has no labelled slice with enough foreground; see the warnings above.")
        self.digest = digest.hexdigest()[:16]
        """A hash of the slices and what they teach, wherever their files lie, 16 hexadecimal digits."""
        self._targets: Targets | None = None
        if targets is not None:
            check_moved_together(augmentation)
            self._targets = targets(self)
            self.digest = self._targets.digest

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> torch.Tensor:
        """The slice `i` itself, without augmentation: float32 ``(C, H, W)``."""
        return torch.from_numpy(self._cache.read(self._rows[i])["image"].astype(np.float32))

    def foreground(self, i: int) -> torch.Tensor:
        """Of the slice `i`, without augmentation: bool ``(1, H, W)``."""
        return torch.from_numpy(self._cache.read(self._rows[i])["foreground"].copy())

    def __getitem__(self, drawn: int | Draw) -> dict[str, Any]:
        i, number = drawn if isinstance(drawn, tuple) else (drawn, drawn)
        label = self.labels[i] if self._targets is None else self._targets[i]
        item = {"image": self.image(i), "label": label, "number": number}
        if not isinstance(drawn, tuple) or self.augmentation is None:
            return item
        return augmented(item, self.augmentation, self.seed, number)
