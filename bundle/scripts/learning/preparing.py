"""Volumes into a cache of slices, several at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..errors import ExhaustedError, cause_of, out_of_resources
from ..images.geometry import axial, slice_numbers
from ..method.slices import assessed_slices
from .cache import Entry, SliceCache

logger = logging.getLogger(__name__)


def trained_slices(foreground: MetaTensor, min_area: int) -> Iterator[tuple[int, int]]:
    """The index of every slice of a preprocessed volume with enough foreground, and its number in the file.

    Args:
        foreground: ``(1, H, W, D)``, with ``input_affine`` in its meta.
        min_area: see `method.slices.assessed_slices`.
    """
    wanted = assessed_slices(foreground.as_tensor(), min_area)
    return ((z, n) for z, n in enumerate(slice_numbers(foreground)) if wanted[z])


class _Volumes(Dataset):
    """Items to the arguments of `SliceCache.append`, or to the error that kept one from it."""

    def __init__(self, sources: Sequence[dict[str, Any]], preprocessing: Compose, min_area: int) -> None:
        self.sources, self.preprocessing, self.min_area = sources, preprocessing, min_area

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, i: int) -> tuple[list[int], int, np.ndarray, np.ndarray, list[str]] | tuple[str, str]:
        try:
            volume = self.preprocessing(self.sources[i])
        except Exception as error:  # MONAI wraps what a transform raises
            exhausted = out_of_resources(error)
            return ("exhausted", str(exhausted)) if exhausted is not None else ("left out", str(cause_of(error)))
        image, foreground = (volume[key].as_tensor().numpy() for key in ("image", "foreground"))
        found = list(trained_slices(volume["foreground"], self.min_area))
        planes = [z for z, _ in found]
        images, inside = (np.moveaxis(a, -1, 0)[planes] for a in (image, foreground))
        depth = axial(volume["input_image"]).shape[3]
        warnings = volume.get("warnings", [])
        return [n for _, n in found], depth, images.astype(np.float16), inside >= 0.5, warnings


def fill(
    cache: SliceCache,
    sources: dict[str, dict[str, Any]],
    preprocessing: Compose,
    min_area: int,
    workers: int = 0,
) -> dict[str, Entry]:
    """Preprocess what a cache lacks; one that can't be used is named in the log and left out.

    Of the others, the log has the warnings, whether they were there before or not.

    Args:
        cache: held by this process meanwhile; one that was stopped goes on.
        sources: items of a datalist by the hash that `SliceCache` finds them by.
        preprocessing: dictionary transforms that make ``image`` ``(C, H, W, D)`` and ``foreground`` ``(1, H, W, D)``, and keep
            ``input_image``.
        min_area: see `trained_slices`.
        workers: processes that preprocess; 0 is this one.

    Returns:
        Those of `sources` that the cache has.

    Raises:
        ExhaustedError: memory, disk or files ran out, or the cache can't be written.
    """
    found = cache.entries()
    if sources.keys() - found.keys():
        found = _filled(cache, sources, preprocessing, min_area, workers)
    for key, source in sources.items():
        for warning in found[key].warnings if key in found else ():
            logger.warning("%s: %s", source["image"], warning)
    return found


def _filled(
    cache: SliceCache, sources: dict[str, dict[str, Any]], preprocessing: Compose, min_area: int, workers: int
) -> dict[str, Entry]:
    with cache.writing() as found:
        missing = [key for key in sources if key not in found]
        volumes = _Volumes([sources[key] for key in missing], preprocessing, min_area)
        # a process that has used a GPU can't be forked
        start = "spawn" if workers and torch.cuda.is_initialized() else None
        loader = DataLoader(
            volumes,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context=start,
            generator=torch.Generator(),  # the one of all is the networks' to begin with, whatever is cached
        )
        for key, result in zip(missing, tqdm(loader, "preprocessing", unit="volume"), strict=True):
            image = sources[key]["image"]
            if result[0] == "left out":
                logger.warning("left out: %s", result[1])
                continue
            if result[0] == "exhausted":
                raise ExhaustedError(
                    f"{image}: stopped here, as memory, disk or open files ran out ({result[1]}). The volumes before it are "
                    "kept; free some and start again."
                )
            try:
                found[key] = cache.append(key, *result)
            except ValueError as error:
                logger.warning("left out: %s: %s", image, error)
            except OSError as error:
                raise ExhaustedError(f"{cache.rows_path}: can't be written ({error.strerror}).") from error
    return found


def _as_it_is(result: Any) -> Any:
    return result
