"""Labelled slices, read from disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose
from torch.utils.data import Dataset, WeightedRandomSampler
from tqdm import tqdm

from ..digests import json_digest
from ..errors import cause_of, out_of_resources
from ..files import exclusive
from ..fingerprints import fingerprint, identified
from ..images.geometry import slice_numbers
from ..method.slices import assessed_slices

logger = logging.getLogger(__name__)


def trained_slices(foreground: MetaTensor, min_area_fraction: float) -> Iterator[tuple[int, int]]:
    """The index of every slice of a preprocessed volume in the trained range, and its number in the file.

    Args:
        foreground: ``(1, H, W, D)``, with ``input_affine`` in its meta.
        min_area_fraction: see `method.slices.assessed_slices`.
    """
    wanted = assessed_slices(foreground.as_tensor(), min_area_fraction)
    return ((z, n) for z, n in enumerate(slice_numbers(foreground)) if wanted[z])


def labelled_slices(
    foreground: MetaTensor, label: int | Sequence[int], min_area_fraction: float
) -> Iterator[tuple[int, int]]:
    """The index and the label of every slice of a preprocessed volume that is to be trained on.

    Args:
        foreground: ``(1, H, W, D)``, with ``input_affine`` in its meta.
        label: see `SliceDataset`.
        min_area_fraction: see `method.slices.assessed_slices`.
    """
    for z, n in trained_slices(foreground, min_area_fraction):
        of_slice = label if isinstance(label, int) else label[n]
        if of_slice >= 0:
            yield z, of_slice


def augmented(item: dict[str, Any], transform: Callable[[dict[str, Any]], dict[str, Any]] | None) -> dict[str, Any]:
    """An item of a training set after its augmentation, if there is one.

    On plain tensors, as MONAI's record of what was done to them takes as long as doing it. And `transform` must not be asked
    whether it is true: a MONAI `Compose` seeds its transforms anew then, and every draw would be augmented alike.
    """
    if transform is None:
        return item
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        return transform(item)
    finally:
        set_track_meta(tracked)


class SliceDataset(Dataset):
    """Labelled axial slices of a datalist's volumes, memory-mapped from a cache that is made once.

    The preprocessing, the same as for inference, runs once a volume; its slices within the trained range are written to a
    float16 file of their own, from which items are read: memory is bounded by the batch, not by the data set. A file is found
    again by a hash of the volume's files (path, size and time of change), the preprocessing and the versions. So another
    datalist, or one that was stopped, repeats no volume; a file that was replaced in place is another volume. Processes that
    share a cache wait for one another.

    ``label`` of an item is 0 (healthy) or 1 (diseased) for all its slices, or a list with 0, 1, or -1 (leave out) for
    each slice of the file along its axis nearest to superior-inferior.

    Args:
        datalist: items with ``image`` and ``label``.
        preprocessing: dictionary transforms that make ``image`` ``(C, H, W, D)`` and ``foreground`` ``(1, H, W, D)``.
        cache_dir: where the cache lies.
        min_area_fraction: see `method.slices.assessed_slices`.
        transform: applied to every item, for augmentation.

    Items are ``{"image": float32 (C, H, W), "label": int}``. A volume that can't be read is named in the log, left out, and
    tried again the next time.

    Raises:
        ValueError: no slice is left, a label has too few values, or the cache can't be written.
        RuntimeError: memory, disk or files ran out.
    """

    def __init__(
        self,
        datalist: Sequence[dict[str, Any]],
        preprocessing: Compose,
        cache_dir: str,
        min_area_fraction: float,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.transform = transform
        self.labels: list[int] = []
        self.subjects: list[str] = []
        self._places: list[tuple[Path, int]] = []
        settings = fingerprint([min_area_fraction], preprocessing)
        left_out = 0
        for item in tqdm(datalist, desc="preprocessing", unit="volume"):
            source = {k: v for k, v in item.items() if k in ("image", "spacing", "foreground")}
            path = Path(cache_dir) / f"slices-{json_digest([identified(source), settings])[:16]}.npy"
            numbers = _slices_in(path)
            if numbers is None:
                numbers = self._build(source, preprocessing, min_area_fraction, path)
            if numbers is None:
                left_out += 1
                continue
            label = item["label"]
            if not isinstance(label, int) and max(numbers, default=-1) >= len(label):
                raise ValueError(f"{item['image']}: has {len(label)} labels, fewer than slices.")
            for row, n in enumerate(numbers):
                of_slice = label if isinstance(label, int) else label[n]
                if of_slice >= 0:
                    self.labels.append(of_slice)
                    self.subjects.append(str(item.get("subject", item["image"])))
                    self._places.append((path, row))
        if left_out:
            logger.warning("%d of %d volumes were left out; the next start tries them again.", left_out, len(datalist))
        if not self.labels:
            raise ValueError("the datalist has no labelled slice within the trained range; see the warnings above.")

    @staticmethod
    def _build(
        source: dict[str, Any], preprocessing: Compose, min_area_fraction: float, path: Path
    ) -> list[int] | None:
        """Write a volume's file; return its slices' numbers, or None if the volume can't be used."""
        with exclusive(path.with_name("slices.lock")):
            numbers = _slices_in(path)  # by the process that this one waited for
            if numbers is not None:
                return numbers
            try:
                volume = preprocessing(source)
            except Exception as error:  # MONAI wraps what a transform raises
                exhausted = out_of_resources(error)
                if exhausted is not None:
                    raise RuntimeError(
                        f"{source['image']}: stopped here, as memory, disk or open files ran out ({exhausted}). The volumes "
                        "before it are kept; free some and start again."
                    ) from error
                logger.warning("left out: %s", cause_of(error))
                return None
            image, foreground = (volume[key].as_tensor().numpy() for key in ("image", "foreground"))
            found = list(trained_slices(volume["foreground"], min_area_fraction))
            kinds = [("number", "<i4"), ("image", "<f2", image.shape[:3]), ("foreground", "?", foreground.shape[:3])]
            slices = np.empty(len(found), kinds)
            for row, (z, n) in enumerate(found):
                slices[row] = n, image[..., z], foreground[..., z] >= 0.5
            partial_path = path.with_suffix(".part")
            try:
                with partial_path.open("wb") as file:
                    np.save(file, slices)
                os.replace(partial_path, path)
                _opened.cache_clear()  # this process may have had what was there
            except OSError as error:
                partial_path.unlink(missing_ok=True)
                raise RuntimeError(f"{path}: can't be written ({error.strerror}).") from error
            return [n for _, n in found]

    @cached_property
    def digest(self) -> str:
        """A hash of the slices and their labels, wherever their files lie, 16 hexadecimal digits."""
        digest = hashlib.sha256(bytes(self.labels))
        for path, row in self._places:
            digest.update(_opened(path)[row]["image"].tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    def foreground(self, i: int) -> torch.Tensor:
        """Of the slice `i`, without augmentation: bool ``(1, H, W)``."""
        path, row = self._places[i]
        return torch.from_numpy(_opened(path)[row]["foreground"].copy())

    def __getitem__(self, i: int) -> dict[str, Any]:
        path, row = self._places[i]
        image = torch.from_numpy(_opened(path)[row]["image"].astype(np.float32))
        return augmented({"image": image, "label": self.labels[i]}, self.transform)


@lru_cache(maxsize=128)
def _opened(path: Path) -> np.ndarray:
    # each is an open file, so that not all of a large set can be
    slices: np.ndarray = np.load(path, mmap_mode="r")
    return slices


def _slices_in(path: Path) -> list[int] | None:
    """The numbers of the slices in a cached file, or None where there is none that is whole."""
    try:
        return [int(n) for n in np.load(path, mmap_mode="r")["number"]]
    except (OSError, ValueError, EOFError, IndexError):
        return None


def random_sampler(dataset: Any, num_samples: int, balanced: bool, seed: int) -> WeightedRandomSampler:
    """Draw `num_samples` slices with replacement, each class of the dataset's ``labels`` equally often if `balanced`."""
    labels = torch.tensor(dataset.labels)
    weights = 1.0 / torch.bincount(labels)[labels] if balanced else torch.ones(len(labels))
    return WeightedRandomSampler(weights.tolist(), num_samples, generator=torch.Generator().manual_seed(seed))
