"""What a student learns from: lesion masks that the counterfactuals of training slices give."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch.utils.data import Dataset
from tqdm import tqdm

from . import DISEASED
from .data import SliceDataset
from .inferer import CPU_BATCH, CounterfactualInferer
from .postprocessing import anomaly_map
from .preprocessing import BACKGROUND

logger = logging.getLogger(__name__)


class PseudoLabels(Dataset):
    """Slices with the lesion masks that their counterfactuals give, to train a student: no reader's mask is needed.

    The mask of a slice labelled diseased is its anomaly map above one threshold for all, Otsu's (1979) of the maps' pixels in
    the brain; that of a slice labelled healthy is empty. Maps are made once, a counterfactual each, and kept on disk; making
    them goes on where it was stopped.

    Args:
        slices: their ``label`` is known, 0 or 1.
        inferer: its `slices` gives the counterfactuals.
        network: the diffusion network.
        polarity, median_size: see `postprocessing.anomaly_map`.
        cache_dir: where the maps lie; they are found again by a hash of slices, weights and settings.
        transform: applied to every item, for augmentation.

    Items are ``{"image": float32 (C, H, W), "label": float32 (1, H, W)}``; ``labels`` are the image-level ones.

    Raises:
        ValueError: no slice is labelled diseased.
    """

    def __init__(
        self,
        slices: SliceDataset,
        inferer: CounterfactualInferer,
        network: torch.nn.Module,
        polarity: str,
        median_size: int,
        cache_dir: str,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.slices, self.transform, self.labels = slices, transform, slices.labels
        diseased = [i for i, label in enumerate(slices.labels) if label == DISEASED]
        if not diseased:
            raise ValueError("no slice is labelled diseased, so there is nothing to learn from.")
        state = hashlib.sha256(repr((slices.path.name, polarity, median_size, inferer.settings)).encode())
        for part in (network, inferer.classifier):
            for tensor in part.state_dict().values():
                state.update(tensor.cpu().contiguous().numpy().tobytes())
        path = Path(cache_dir) / f"maps-{state.hexdigest()[:16]}.f16"
        shape = (1, *slices[0]["image"].shape[1:])
        device = next(network.parameters()).device
        size = inferer.batch_size or CPU_BATCH
        bytes_a_map = 2 * int(np.prod(shape))
        done = path.stat().st_size // bytes_a_map if path.is_file() else 0
        if done < len(diseased):
            done -= done % size  # a batch is made as a whole, so that its bits don't depend on where it was stopped
        with path.open("r+b" if path.is_file() else "wb") as file:
            file.truncate(bytes_a_map * done)
            file.seek(0, os.SEEK_END)
            for begin in tqdm(range(done, len(diseased), size), "maps of the diseased slices", unit="batch"):
                x = torch.stack([slices[i]["image"] for i in diseased[begin : begin + size]]).to(device)
                a = anomaly_map(x, inferer.slices(x, network)[0], polarity, median_size) * (x[:, :1] > BACKGROUND)
                file.write(a.half().cpu().numpy().tobytes())
        self._maps = np.memmap(path, np.float16, "r", shape=(len(diseased), *shape))
        self._row = {i: n for n, i in enumerate(diseased)}
        # a histogram, as the pixels of a large set would not fit the memory
        edges = np.linspace(0, float(self._maps.max()), 1025)
        counts = np.zeros(1024)
        for n, i in enumerate(diseased):
            counts += np.histogram(self._maps[n][slices[i]["image"][:1].numpy() > BACKGROUND], edges)[0]
        self.threshold = float(threshold_otsu(hist=(counts, (edges[1:] + edges[:-1]) / 2)))
        logger.info("a pixel is lesion where the map is above %.3f", self.threshold)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = self.slices[i]["image"]
        mask = torch.zeros_like(image[:1])
        if i in self._row:
            mask = torch.from_numpy(self._maps[self._row[i]] > np.float16(self.threshold)).float()
        item = {"image": image, "label": mask}
        return self.transform(item) if self.transform else item
