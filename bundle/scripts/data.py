"""Datalists, and labelled slices read from disk.

A datalist is a list of items, one a volume: ``image`` (a path, or one path a channel), ``label`` for training (see
`SliceDataset`), and, where there are any, ``subject``, ``spacing`` (true voxel size in mm where the header's is wrong),
``brain`` (path of a brain mask) and ``mask`` (path of a lesion mask: for evaluation only, training never reads it).
Another data set is one function that returns such a list.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any

import monai
import numpy as np
import torch
from filelock import FileLock
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose
from torch.utils.data import Dataset, WeightedRandomSampler
from tqdm import tqdm

from .bundle import bundle_version, default_device, fastest_precision
from .command import cause_of
from .geometry import slice_numbers
from .preprocessing import assessed_slices

logger = logging.getLogger(__name__)

PREPROCESSING = ("geometry", "intensities", "loading", "preprocessing")
"""The modules whose code says what the networks' input is."""

EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""The errors of the operating system that are the machine's and not the file's."""

NO_SETTINGS = ("cache_dir", "filenames", "_tracing")
"""Attributes of transforms that change nothing of what they do: a place, and what MONAI's remember of their last call."""

STACK_HEIGHT = 145.0
"""mm of head that an axial clinical stack covers; patient FG_6692's 26 slices are 5.5 mm apart."""


def brain_mr(
    root: str, split: str, sequences: Sequence[str] = ("flair",), brain_masks: bool = False
) -> list[dict[str, Any]]:
    """TCGA-LGG (Buda et al. 2019) as ``volumes/<patient>/<sequence>.nii.gz`` and ``slices.csv``, split by patient.

    The headers' 2 x 2 x 5 mm are nominal. The one patient whose true geometry is known (FG_6692) has 1.8 mm pixels and a
    stack of 143 mm, so pixels are taken as 1.8 mm and the slices as evenly spread over `STACK_HEIGHT`.

    Args:
        root: the folder with ``slices.csv``.
        split: "train", "val", "test" or "demo".
        sequences: one a channel.
        brain_masks: take the data set's own brain masks instead of HD-BET, which is faster, and leave out the patients
            whose mask it marks as not to be trusted.

    Raises:
        FileNotFoundError: there is no ``slices.csv``.
        ValueError: the split has no patient.
    """
    table = Path(root) / "slices.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table}: not found; give the folder of the data set as --dataset_dir.")
    slices: dict[str, list[dict[str, str]]] = defaultdict(list)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == split and not (brain_masks and row["brain_mask_trusted"] == "0"):
                slices[row["patient"]].append(row)
    if not slices:
        raise ValueError(f"{table}: no patient is in split {split!r}.")
    items = []
    for patient, rows in sorted(slices.items()):
        rows.sort(key=lambda r: int(r["z"]))
        folder = Path(root) / "volumes" / patient
        paths = [str(folder / f"{s}.nii.gz") for s in sequences]
        items.append(
            {
                "image": paths if len(paths) > 1 else paths[0],
                "mask": str(folder / "seg.nii.gz"),
                **({"brain": str(folder / "brain.nii.gz")} if brain_masks else {}),
                "subject": patient,
                "spacing": [1.8, 1.8, STACK_HEIGHT / len(rows)],
                "label": [int(r["has_tumour"]) if r["mid_slice"] == "1" else -1 for r in rows],
            }
        )
    return items


def settings_of(thing: Any, _around: tuple[int, ...] = ()) -> Any:
    """What an object was made with, as JSON has it: its type and its attributes, deeply.

    Left out is what doesn't say what it does: the values of a network's parameters (their shapes stay), the state of random
    generators, and `NO_SETTINGS`. Of a device its type counts, of an optimizer its defaults.
    """
    if isinstance(thing, (Enum, np.generic)):
        thing = thing.value if isinstance(thing, Enum) else thing.item()
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (PurePath, complex, bytes)):
        return repr(thing)
    if id(thing) in _around:
        return "..."
    inside = (*_around, id(thing))
    if isinstance(thing, Mapping):
        return {str(k): settings_of(v, inside) for k, v in sorted(thing.items(), key=str) if k not in NO_SETTINGS}
    if isinstance(thing, (list, tuple)):
        return [settings_of(v, inside) for v in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(str(v) for v in thing)
    if isinstance(thing, torch.device):
        return thing.type
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        array = np.asarray(thing.detach().cpu() if isinstance(thing, torch.Tensor) else thing)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()[:16]]
    if isinstance(thing, (type, FunctionType)):
        return f"{thing.__module__}.{thing.__qualname__}"
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if isinstance(thing, torch.nn.Module):
        attributes: dict[str, Any] = {k: v for k, v in vars(thing).items() if k[0] != "_" and k != "training"}
        attributes |= dict(thing.named_children())
        attributes |= {k: list(v.shape) for k, v in thing.named_parameters(recurse=False)}
    elif isinstance(thing, torch.optim.Optimizer):
        attributes = thing.defaults
    elif isinstance(thing, partial):
        attributes = {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
    else:
        attributes = getattr(thing, "__dict__", {})
    return [name, settings_of(attributes, inside)]


def json_digest(thing: Any) -> str:
    """A hash of JSON, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:16]


def _identity(path: str) -> list[Any]:
    """A file's path, size and time of change, so that one that was replaced in place is another one."""
    try:
        stat = os.stat(path)
    except OSError:
        return [os.path.abspath(path)]
    return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]


def _identified(thing: Any, key: str = "") -> Any:
    """JSON with the `_identity` of each path in it."""
    if isinstance(thing, Mapping):
        return {k: _identified(v, k) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_identified(v, key) for v in thing]
    return _identity(thing) if key in ("image", "brain", "mask") and isinstance(thing, str) else settings_of(thing)


def fingerprint(items: Any, preprocessing: Compose) -> str:
    """A short hash that changes with the items, with the files that they name and with what the preprocessing does to them.

    Args:
        items: JSON, such as datalists; strings that are ``image``, ``brain`` or ``mask`` are paths.
        preprocessing: its settings count, deeply, and so do the code of `PREPROCESSING`, the versions of bundle and MONAI, and
            the precision that the brain extraction takes on this machine.
    """
    code = [hashlib.sha256(Path(__file__).with_name(f"{n}.py").read_bytes()).hexdigest() for n in PREPROCESSING]
    made_by = [bundle_version(), monai.__version__, code, fastest_precision(default_device())]
    return json_digest([_identified(items), settings_of(getattr(preprocessing, "transforms", preprocessing)), made_by])


def out_of_resources(error: BaseException) -> BaseException | None:
    """What of an error and its causes says that memory, disk or files ran out, which is not the image's fault."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
            return cause
        if isinstance(cause, RuntimeError) and re.search("out of memory|can't allocate memory", str(cause)):
            return cause
        if isinstance(cause, OSError) and cause.errno in EXHAUSTED:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def trained_slices(image: MetaTensor, min_area_fraction: float) -> Iterator[tuple[int, int]]:
    """The index of every slice of a preprocessed volume ``(C, H, W, D)`` in the trained range, and its number in the file.

    Args:
        image: preprocessed, with ``input_affine`` in its meta.
        min_area_fraction: see `preprocessing.assessed_slices`.
    """
    wanted = assessed_slices(image.as_tensor(), min_area_fraction)
    return ((z, n) for z, n in enumerate(slice_numbers(image)) if wanted[z])


def labelled_slices(
    image: MetaTensor, label: int | Sequence[int], min_area_fraction: float
) -> Iterator[tuple[int, int]]:
    """The index and the label of every slice of a preprocessed volume ``(C, H, W, D)`` that is to be trained on.

    Args:
        image: preprocessed, with ``input_affine`` in its meta.
        label: see `SliceDataset`.
        min_area_fraction: see `preprocessing.assessed_slices`.
    """
    for z, n in trained_slices(image, min_area_fraction):
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
        preprocessing: dictionary transforms that make ``image`` ``(C, H, W, D)``.
        cache_dir: where the cache lies.
        min_area_fraction: see `preprocessing.assessed_slices`.
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
            source = {k: v for k, v in item.items() if k in ("image", "spacing", "brain")}
            path = Path(cache_dir) / f"slices-{json_digest([_identified(source), settings])}.npy"
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
                image = preprocessing(source)["image"]
            except Exception as error:  # MONAI wraps what a transform raises
                exhausted = out_of_resources(error)
                if exhausted is not None:
                    raise RuntimeError(
                        f"{source['image']}: stopped here, as memory, disk or open files ran out ({exhausted}). The volumes "
                        "before it are kept; free some and start again."
                    ) from error
                logger.warning("left out: %s", cause_of(error))
                return None
            found = list(trained_slices(image, min_area_fraction))
            slices = np.empty(len(found), [("number", "<i4"), ("image", "<f2", tuple(image.shape[:3]))])
            for row, (z, n) in enumerate(found):
                slices[row] = n, image[..., z].as_tensor().numpy()
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

    def __getitem__(self, i: int) -> dict[str, Any]:
        path, row = self._places[i]
        image = torch.from_numpy(_opened(path)[row]["image"].astype(np.float32))
        return augmented({"image": image, "label": self.labels[i]}, self.transform)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock, and hold it; it ends with the process at the latest.

    Raises:
        ValueError: there can be no such file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    except OSError as error:
        raise ValueError(
            f"{path.parent}: this cache can't be written ({error.strerror or error}); give a folder that can be as --cache_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


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
