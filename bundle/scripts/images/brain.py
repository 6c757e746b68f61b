"""The brain as the foreground."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from ..bundle import bundle_version
from ..device import default_device, fastest_precision
from ..errors import InvalidImageError
from ..files import replacing
from ..weights import weights_digest
from .air import stripped_foreground
from .brain_network import by_network
from .geometry import on_grid
from .hd_bet import by_hd_bet, hd_bet
from .masks import load_mask

logger = logging.getLogger(__name__)


class ExtractBraind(MapTransform):
    """Add ``foreground``, the brain's uint8 mask ``(1, X, Y, Z)`` on the grid of the first key.

    A light network finds it, see `brain_network.by_network`, or HD-BET where that one is in doubt or none is given. HD-BET
    was trained on T1, T1 with contrast, T2 and FLAIR of patients with and without brain tumours. Only one channel is used.
    Both fail on images without a skull: where an item has ``stripped`` (see `intensities.RepairIntensitiesd`) that is the
    brain. Where it has ``foreground`` (a mask's path), that one is loaded instead.

    Voxels ``missing`` at the brain's surface are no brain.

    Args:
        keys: the image, already in the order left, posterior, superior ("LPS").
        device: where the network runs; by default a GPU if there is one.
        precision: "float32", "bfloat16" or "float16"; by default the fastest on that device.
        channel: the one that the networks get.
        cache_dir: keep masks in this folder and find them again by the image's content; by default nothing is kept.
        network: a `brain_network.BrainNetwork` with its weights; by default HD-BET finds all.

    Raises:
        InvalidImageError: no brain was found, or voxels within it are missing.
        ValueError: the brain mask given can't be used, see `masks.load_mask`.
    """

    max_empty = 0.05
    """Of a mask, exactly as the background; HD-BET's: in whole heads it is up to 0.02, in stripped ones 0.10 to 0.54."""
    thin = 20.0
    """mm of a stack in which the brain is found as a whole: parts of three heads had masks with a median Dice of .97 (at least
    .70) to that of the whole head where they were 20 to 60 mm thick, of .49 (.13) where they were 5 mm."""
    surface = 5.0
    """mm below which a missing voxel lies within the brain."""

    def __init__(
        self,
        keys: KeysCollection,
        device: torch.device | str | None = None,
        precision: str | None = None,
        cache_dir: str | None = None,
        channel: int = 0,
        network: torch.nn.Module | None = None,
    ) -> None:
        super().__init__(keys)
        self.device = str(device or default_device())
        self.precision = precision or fastest_precision(self.device)
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.channel = channel
        self.network = network
        # by which what was computed before is found again
        self.weights = None if network is None else weights_digest(network)

    def load(self) -> None:
        """Load now what the first volume would need, for servers that start warm."""
        if self.network is None:
            hd_bet(self.device)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.keys[0]][self.channel : self.channel + 1]
        name = image.meta["filename_or_obj"]
        given, stripped = d.get("foreground"), d.pop("stripped", None)
        if given is not None:
            mask = load_mask(given, image).as_tensor()
        elif stripped is not None:
            mask = stripped
        else:
            found = self._cached(image) if self.cache_dir else self._segment(image)
            mask = self._without_air(image, found)
            thickness = image.shape[-1] * image.pixdim.tolist()[2]
            if thickness < self.thin and mask is found:
                d.setdefault("warnings", []).append(
                    f"The image is {thickness:.0f} mm thick. In less than {self.thin:.0f} mm much of the brain is often not "
                    "found, and nothing is marked there. Give the whole series, or a datalist with the brain's mask."
                )
        if not bool(mask.any()):
            raise InvalidImageError(f"{name}: no brain was found; is it a head MR with true voxel sizes?")
        missing = d.pop("missing", None)
        if missing is not None and bool((missing & mask).any()):
            sampling = image.pixdim.tolist()[:2]
            for m, lost in zip(mask[0].movedim(-1, 0), missing[0].movedim(-1, 0), strict=True):
                depth = ndimage.distance_transform_edt(np.pad(m.numpy(), 1), sampling=sampling)[1:-1, 1:-1]
                if bool(lost[torch.from_numpy(depth > self.surface)].any()):
                    raise InvalidImageError(
                        f"{name}: {int((missing & mask).sum())} voxels within the brain are NaN, infinite or padding; every "
                        "voxel of the brain must have a value."
                    )
            mask = mask & ~missing
        d["foreground"] = on_grid(mask.to(torch.uint8), image.affine, image)
        return d

    def _without_air(self, image: MetaTensor, mask: torch.Tensor) -> torch.Tensor:
        """The mask, or the foreground if much of that mask is as empty as the air: the skull was gone, at any scale."""
        foreground = stripped_foreground(image[0].as_tensor().numpy(), image.pixdim.tolist(), max_area=float("inf"))
        if foreground is None:
            return mask
        inside = torch.from_numpy(foreground)[None]
        empty = float((mask & ~inside).sum()) / max(int(mask.sum()), 1)
        return inside if empty > self.max_empty else mask

    def _cached(self, image: MetaTensor) -> torch.Tensor:
        assert self.cache_dir is not None
        # what the mask depends on: the voxels, their size, and by what it is computed
        about = (tuple(image.shape), image.pixdim.tolist(), bundle_version(), torch.device(self.device).type)
        by = (self.precision,) if self.weights is None else (self.precision, self.weights)
        content = repr((*about, *by)).encode() + image.as_tensor()[:1].numpy().tobytes()
        path = self.cache_dir / f"brain-{hashlib.sha256(content).hexdigest()[:16]}.npz"
        try:
            return torch.from_numpy(np.load(path)["mask"])
        except (OSError, ValueError, EOFError, KeyError, BadZipFile):
            pass  # there is none, or it isn't whole
        mask = self._segment(image)
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                np.savez_compressed(partial, mask=mask.numpy())
        except OSError as error:  # the mask is there all the same
            logger.warning("%s: brain masks can't be kept there (%s).", self.cache_dir, error.strerror or error)
        return mask

    def _segment(self, image: MetaTensor) -> torch.Tensor:
        volume, pixdim = image.as_tensor()[:1], image.pixdim.tolist()
        if self.network is not None:
            found = by_network(volume, pixdim, self.network, self.precision)
            if found.doubt is None:
                return found.mask
            logger.info("%s: HD-BET is asked for the brain, as %s.", image.meta["filename_or_obj"], found.doubt)
        return by_hd_bet(volume, pixdim, self.device, self.precision)
