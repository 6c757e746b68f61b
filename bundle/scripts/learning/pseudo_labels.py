"""What a student learns from: soft lesion labels that the counterfactuals of training slices give."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from skimage.filters import threshold_otsu
from skimage.morphology import reconstruction
from tqdm import tqdm

from .. import DISEASED
from ..bundle import bundle_version
from ..checks import is_true
from ..files import exclusive
from ..fingerprints import settings_of
from ..method.inferer import CounterfactualInferer
from ..method.maps import anomaly_map
from ..method.slices import CPU_BATCH
from ..ranks import of_first
from ..weights import weights_digest
from .datasets import SliceDataset

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


class Teacher:
    """Makes of slices what a student learns from them: `PseudoLabels`.

    Args:
        network: the diffusion network.
        inferer: its `slices` gives the counterfactuals.
        polarity, median_size: see `method.maps.anomaly_map`.
        cache_dir: where the maps lie.
        dry_run: make no maps.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inferer: CounterfactualInferer,
        polarity: str | Sequence[str],
        median_size: int,
        cache_dir: str,
        dry_run: bool | str = False,
    ) -> None:
        self.network, self.inferer = network, inferer
        self.polarity, self.median_size = polarity, median_size
        self.folder, self.dry_run = Path(cache_dir), is_true(dry_run, "dry_run")
        self.weights = {"network": weights_digest(network), "classifier": weights_digest(inferer.classifier)}
        """The digests of the networks."""

    def __call__(self, slices: SliceDataset) -> PseudoLabels:
        """The labels of the slices; their maps are made where they aren't on disk yet, and found again by the digest.

        Raises:
            ValueError: no slice is labelled diseased.
        """
        diseased = [i for i, label in enumerate(slices.labels) if label == DISEASED]
        if not diseased:
            raise ValueError("no slice is labelled diseased, so there is nothing to learn from.")
        device = next(self.network.parameters()).device
        settings = (self.polarity, self.median_size, self.inferer.settings, "filled", *self.weights.values())
        state = (slices.digest, *settings, settings_of(self.inferer.alphas_cumprod), bundle_version(), device.type)
        digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
        path = self.folder / f"maps-{digest}.f16"
        if not self.dry_run:
            of_first(lambda: self._make(slices, diseased, path, device))
        return PseudoLabels(slices, diseased, path, digest)

    def _make(self, slices: SliceDataset, diseased: list[int], path: Path, device: torch.device) -> None:
        size = self.inferer.batch_size or CPU_BATCH
        bytes_a_map = 2 * slices.foreground(0).numel()
        whole = bytes_a_map * len(diseased)
        if path.is_file() and path.stat().st_size == whole:
            return
        with exclusive(path.with_suffix(".lock")), path.open("ab") as file:
            done = file.tell() // bytes_a_map
            if done < len(diseased):
                # a batch is made as a whole, so that its bits don't depend on where it was stopped
                done -= done % size
            file.truncate(min(bytes_a_map * done, whole))
            for begin in tqdm(range(done, len(diseased), size), "maps of the diseased slices", unit="batch"):
                x = torch.stack([slices[i]["image"] for i in diseased[begin : begin + size]]).to(device)
                inside = torch.stack([slices.foreground(i) for i in diseased[begin : begin + size]]).to(device)
                healthy = self.inferer.slices(x, inside, self.network)["counterfactual"]
                a = anomaly_map(x, healthy, inside, self.polarity, self.median_size)
                file.write(filled(a).half().numpy().tobytes())


class PseudoLabels:
    """Soft lesion labels of slices from their anomaly maps, to train a student: no reader's mask is needed.

    The label of a pixel in a slice labelled diseased says how many of three thresholds its `filled` anomaly map exceeds: Otsu's
    (1979) of all maps' pixels in the foreground, Otsu's of that patient's alone, and their geometric mean. One for all would
    leave out the lesions that are faint as a whole, one a patient would make the others too large. A slice labelled healthy
    has no lesion.

    Args:
        slices: of which they are; ``subjects`` are theirs.
        diseased: the indices of the slices that have a map.
        path: of the maps, float16 ``(N, 1, H, W)``.
        digest: of slices, weights and settings.

    Items are float32 ``(1, H, W)``: 0, 1/3, 2/3 or 1.
    """

    def __init__(self, slices: SliceDataset, diseased: list[int], path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self._shape = tuple(slices.foreground(0).shape)
        self._row = {i: n for n, i in enumerate(diseased)}
        self._subjects = [slices.subjects[i] for i in diseased]
        self._own: dict[str, float] = {}
        self.threshold = float("nan")
        if path.is_file():
            self._choose_thresholds(slices)

    def _map(self, n: int) -> np.ndarray:
        size = int(np.prod(self._shape))
        return np.fromfile(self.path, np.float16, size, offset=2 * size * n).reshape(self._shape)

    def _choose_thresholds(self, slices: SliceDataset) -> None:
        highest = max(float(self._map(n).max()) for n in self._row.values())
        # histograms, as the pixels of a large set would not fit the memory
        edges = np.linspace(0, highest, 1025)
        counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(1024))
        for i, n in self._row.items():
            counts[self._subjects[n]] += np.histogram(self._map(n)[slices.foreground(i).numpy()], edges)[0]
        centres = (edges[1:] + edges[:-1]) / 2
        self.threshold = float(threshold_otsu(hist=(sum(counts.values()), centres)))
        # a patient whose maps are empty has no threshold of its own
        self._own = {
            subject: float(threshold_otsu(hist=(c, centres))) if np.count_nonzero(c) > 1 else self.threshold
            for subject, c in counts.items()
        }
        logger.info(
            "lesion is what is above %.3f in the maps, or above the patient's own %.3f to %.3f",
            *(self.threshold, min(self._own.values()), max(self._own.values())),
        )

    def __getitem__(self, i: int) -> torch.Tensor:
        if i not in self._row:
            return torch.zeros(self._shape)
        n = self._row[i]
        own = self._own[self._subjects[n]]
        thresholds = np.array([self.threshold, np.sqrt(self.threshold * own), own], np.float16).reshape(-1, 1, 1)
        return torch.from_numpy((self._map(n) > thresholds).mean(axis=0, keepdims=True, dtype=np.float32))
