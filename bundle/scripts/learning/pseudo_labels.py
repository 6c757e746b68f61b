"""What a student learns from: the counterfactuals of training slices, and the soft lesion labels that they give."""

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

from .. import DISEASED
from ..bundle import bundle_version
from ..checks import is_true
from ..fingerprints import settings_of
from ..method.inferer import CounterfactualInferer
from ..method.maps import anomaly_map
from ..method.slices import CPU_BATCH, GPU_BATCH
from ..ranks import of_first
from ..weights import weights_digest
from .datasets import SliceDataset
from .rows import Rows

logger = logging.getLogger(__name__)

Change = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of slices, their counterfactuals and their foreground, ``(N, C, H, W)``: what is kept of them, ``(N, K, H, W)``."""


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
    """Makes of slices what a student learns from them: a `Lesson`.

    Args:
        network: the diffusion network.
        inferer: its `slices` gives the counterfactuals, as many in a call as its ``batch_size`` says, by default `CPU_BATCH`
            or on a GPU `GPU_BATCH`.
        polarity, median_size: see `method.maps.anomaly_map`.
        cache_dir: where the files lie.
        dry_run: make none.
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

    def __call__(self, slices: SliceDataset) -> Lesson:
        """The labels and counterparts of the slices.

        What the teacher's networks make is made where it isn't on disk yet, and found again by the digest.

        Raises:
            ValueError: no slice is labelled diseased.
        """
        diseased = [i for i, label in enumerate(slices.labels) if label == DISEASED]
        if not diseased:
            raise ValueError("no slice is labelled diseased, so there is nothing to learn from.")
        settings = (self.polarity, self.median_size, "filled")
        channels = slices.image(0).shape[0]
        changes, _ = self._made(slices, diseased, "changes", channels, "healed", lambda x, healthy, inside: healthy - x)
        maps = self._made(slices, diseased, "maps", 1, settings, self._map, changes)
        return Lesson(slices, PseudoLabels(slices, diseased, *maps), changes)

    def _map(self, x: torch.Tensor, healthy: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return filled(anomaly_map(x, healthy, inside, self.polarity, self.median_size))

    def _made(
        self,
        slices: SliceDataset,
        chosen: Sequence[int],
        name: str,
        channels: int,
        settings: Any,
        change: Change,
        changes: Rows | None = None,
    ) -> tuple[Rows, str]:
        """What `change` keeps of the chosen slices, a row each in their order; made where it isn't on disk yet.

        Args:
            slices: a data set.
            chosen: indices of its slices.
            name: how the file's begins.
            channels: of what is kept.
            settings: of `change`, which the digest depends on.
            change: see `Change`.
            changes: the counterfactuals of these slices minus the slices, where they were made before.

        Returns:
            The rows, ``(channels, H, W)``, and the digest of slices, weights and settings by which they are found again.
        """
        device = next(self.network.parameters()).device
        alphas = settings_of(self.inferer.alphas_cumprod)
        # those that were kept are rounded to half precision
        settings = settings if changes is None else (settings, "of kept changes")
        of_teacher = (settings, self.inferer.settings, *self.weights.values(), alphas)
        state = (slices.digest, *of_teacher, bundle_version(), device.type)
        digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
        rows = Rows(self.folder / f"{name}-{digest}.f16", (channels, *slices.foreground(0).shape[1:]))

        def batch(numbers: range) -> torch.Tensor:
            x = torch.stack([slices[chosen[n]]["image"] for n in numbers]).to(device)
            inside = torch.stack([slices.foreground(chosen[n]) for n in numbers]).to(device)
            if changes is None:
                found = self.inferer.slices(x, inside, self.network)["counterfactual"]
            else:
                found = x + torch.stack([torch.from_numpy(changes[n]) for n in numbers]).float().to(device)
            return change(x, found, inside)

        if not self.dry_run:
            size = self.inferer.batch_size or (GPU_BATCH if device.type == "cuda" else CPU_BATCH)
            of_first(lambda: rows.make(len(chosen), size, batch, f"{name} of {len(chosen)} slices"))
        return rows, digest


class PseudoLabels:
    """Soft lesion labels of slices from their anomaly maps, to train a student: no reader's mask is needed.

    The label of a pixel in a slice labelled diseased says how many of three thresholds its `filled` anomaly map exceeds: Otsu's
    (1979) of all maps' pixels in the foreground, Otsu's of that patient's alone, and their geometric mean. One for all would
    leave out the lesions that are faint as a whole, one a patient would make the others too large. A slice labelled healthy
    has no lesion.

    Args:
        slices: of which they are; ``subjects`` are theirs.
        diseased: the indices of the slices that have a map.
        maps: of those, each ``(1, H, W)``.
        digest: of slices, weights and settings.

    Items are float32 ``(1, H, W)``: 0, 1/3, 2/3 or 1.
    """

    def __init__(self, slices: SliceDataset, diseased: list[int], maps: Rows, digest: str) -> None:
        self.maps = maps
        self._row = {i: n for n, i in enumerate(diseased)}
        self._subjects = [slices.subjects[i] for i in diseased]
        first: dict[str, int] = {}
        of_one = [first.setdefault(subject, n) for n, subject in enumerate(self._subjects)]
        self.digest = hashlib.sha256(repr((digest, of_one)).encode()).hexdigest()[:16]
        """Of the maps, and of which of them are one patient's."""
        self._own: dict[str, float] = {}
        self.threshold = float("nan")
        if maps.are_made(len(diseased)):
            self._choose_thresholds(slices)

    def _choose_thresholds(self, slices: SliceDataset) -> None:
        highest = max(float(self.maps[n].max()) for n in self._row.values())
        if not highest > 0:
            raise ValueError(
                "the counterfactuals change nothing in any slice labelled diseased, so there is nothing to learn from; train "
                "the diffusion network and the classifier for longer."
            )
        # histograms, as the pixels of a large set would not fit the memory
        edges = np.linspace(0, highest, 1025)
        counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(1024))
        for i, n in self._row.items():
            counts[self._subjects[n]] += np.histogram(self.maps[n][slices.foreground(i).numpy()], edges)[0]
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

    def row(self, i: int) -> int | None:
        """Which of the diseased slices a slice is; None if it is healthy."""
        return self._row.get(i)

    def __getitem__(self, i: int) -> torch.Tensor:
        n = self.row(i)
        if n is None:
            return torch.zeros(self.maps.shape)
        own = self._own[self._subjects[n]]
        thresholds = np.array([self.threshold, np.sqrt(self.threshold * own), own], np.float16).reshape(-1, 1, 1)
        return torch.from_numpy((self.maps[n] > thresholds).mean(axis=0, keepdims=True, dtype=np.float32))


class Lesson:
    """Pseudo labels of slices with their healthy counterparts behind them: float32 ``(1 + C, H, W)``.

    The counterpart of a slice labelled diseased is the teacher's counterfactual; a slice labelled healthy is its own.

    Args:
        slices: of which they are.
        labels: theirs.
        changes: the counterfactuals of the diseased ones minus the slices, each ``(C, H, W)``.
    """

    def __init__(self, slices: SliceDataset, labels: PseudoLabels, changes: Rows) -> None:
        self.slices, self.labels, self.changes = slices, labels, changes
        self.digest = hashlib.sha256(f"counterparts behind {labels.digest}".encode()).hexdigest()[:16]

    def __getitem__(self, i: int) -> torch.Tensor:
        healthy, n = self.slices.image(i), self.labels.row(i)
        if n is not None:
            healthy = healthy + torch.from_numpy(self.changes[n]).float()
        return torch.cat([self.labels[i], healthy])
