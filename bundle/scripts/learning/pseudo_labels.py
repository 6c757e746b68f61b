"""What a student learns from: soft lesion labels that the counterfactuals of training slices give."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.filters import threshold_otsu
from skimage.morphology import reconstruction
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import DISEASED
from ..bundle import bundle_version
from ..files import exclusive
from ..fingerprints import settings_of
from ..method.inferer import CounterfactualInferer
from ..method.maps import anomaly_map
from ..method.slices import CPU_BATCH
from ..weights import weights_digest
from .datasets import SliceDataset, augmented

logger = logging.getLogger(__name__)


def filled(a: torch.Tensor) -> torch.Tensor:
    """Maps ``(N, 1, H, W)`` in which what is surrounded is no lower than what surrounds it.

    A lesion's dark core belongs to it, and readers outline it as a whole. Morphological reconstruction by erosion (Vincent
    1993), each slice by itself.
    """
    values = np.pad(a[:, 0].cpu().numpy(), ((0, 0), (1, 1), (1, 1)))
    for plane in values:
        seed = np.full_like(plane, plane.max())
        seed[[0, -1]], seed[:, [0, -1]] = 0, 0
        plane[:] = reconstruction(seed, plane, method="erosion")
    return torch.from_numpy(values[:, None, 1:-1, 1:-1])


class PseudoLabels(Dataset):
    """Slices with the soft labels that their counterfactuals give, to train a student: no reader's mask is needed.

    The label of a pixel in a slice labelled diseased says how many of three thresholds its `filled` anomaly map exceeds: Otsu's
    (1979) of all maps' pixels in the foreground, Otsu's of that patient's alone, and their geometric mean. One for all would
    leave out the lesions that are faint as a whole, one a patient would make the others too large. A slice labelled healthy
    has no lesion. Maps are made once, a counterfactual each, and kept on disk; making them goes on where it was stopped.

    Args:
        slices: their ``label`` is known, 0 or 1; ``digest`` and ``subjects`` are theirs.
        inferer: its `slices` gives the counterfactuals.
        network: the diffusion network.
        polarity, median_size: see `method.maps.anomaly_map`.
        cache_dir: where the maps lie; they are found again by a hash of slices, weights and settings.
        transform: applied to every item, for augmentation.

    Items are ``{"image": float32 (C, H, W), "label": float32 (1, H, W)}``, labels 0, 1/3, 2/3 or 1; ``labels`` are the
    image-level ones, ``digest`` names slices, weights and settings, ``teacher`` the weights.

    Raises:
        ValueError: no slice is labelled diseased.
    """

    def __init__(
        self,
        slices: SliceDataset,
        inferer: CounterfactualInferer,
        network: torch.nn.Module,
        polarity: str | Sequence[str],
        median_size: int,
        cache_dir: str,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.slices, self.transform, self.labels = slices, transform, slices.labels
        diseased = [i for i, label in enumerate(slices.labels) if label == DISEASED]
        if not diseased:
            raise ValueError("no slice is labelled diseased, so there is nothing to learn from.")
        self.teacher = {"network": weights_digest(network), "classifier": weights_digest(inferer.classifier)}
        device = next(network.parameters()).device
        settings = (polarity, median_size, inferer.settings, "filled", *self.teacher.values())
        state = repr((slices.digest, *settings, settings_of(inferer.alphas_cumprod), bundle_version(), device.type))
        self.digest = hashlib.sha256(state.encode()).hexdigest()[:16]
        path = Path(cache_dir) / f"maps-{self.digest}.f16"
        shape = (1, *slices[0]["image"].shape[1:])
        size = inferer.batch_size or CPU_BATCH
        bytes_a_map = 2 * int(np.prod(shape))
        whole = bytes_a_map * len(diseased)
        if not (path.is_file() and path.stat().st_size == whole):
            with exclusive(path.with_suffix(".lock")), path.open("ab") as file:
                done = file.tell() // bytes_a_map
                if done < len(diseased):
                    done -= (
                        done % size
                    )  # a batch is made as a whole, so that its bits don't depend on where it was stopped
                file.truncate(min(bytes_a_map * done, whole))
                for begin in tqdm(range(done, len(diseased), size), "maps of the diseased slices", unit="batch"):
                    x = torch.stack([slices[i]["image"] for i in diseased[begin : begin + size]]).to(device)
                    inside = torch.stack([slices.foreground(i) for i in diseased[begin : begin + size]]).to(device)
                    healthy = inferer.slices(x, inside, network)["counterfactual"]
                    a = anomaly_map(x, healthy, inside, polarity, median_size)
                    file.write(filled(a).half().numpy().tobytes())
        self._maps = np.memmap(path, np.float16, "r", shape=(len(diseased), *shape))
        self._row = {i: n for n, i in enumerate(diseased)}
        # histograms, as the pixels of a large set would not fit the memory
        edges = np.linspace(0, float(self._maps.max()), 1025)
        counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(1024))
        for n, i in enumerate(diseased):
            counts[slices.subjects[i]] += np.histogram(self._maps[n][slices.foreground(i).numpy()], edges)[0]
        centres = (edges[1:] + edges[:-1]) / 2
        self.threshold = float(threshold_otsu(hist=(sum(counts.values()), centres)))
        # a patient whose maps are empty has no threshold of its own
        own = {
            subject: float(threshold_otsu(hist=(c, centres))) if np.count_nonzero(c) > 1 else self.threshold
            for subject, c in counts.items()
        }
        self._thresholds = [
            np.array([self.threshold, np.sqrt(self.threshold * own[s]), own[s]], np.float16).reshape(-1, 1, 1)
            for s in (slices.subjects[i] for i in diseased)
        ]
        logger.info(
            "lesion is what is above %.3f in the maps, or above the patient's own %.3f to %.3f",
            *(self.threshold, min(own.values()), max(own.values())),
        )

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = self.slices[i]["image"]
        label = torch.zeros_like(image[:1])
        if i in self._row:
            n = self._row[i]
            label = torch.from_numpy(
                (self._maps[n] > self._thresholds[n]).mean(axis=0, keepdims=True, dtype=np.float32)
            )
        item = {"image": image, "label": label}
        return augmented(item, self.transform)
