"""What a network of one step learns from: the counterfactuals of training slices themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ..method.inferer import CounterfactualInferer
from .datasets import SliceDataset
from .made import Counterfactuals, Rows
from .pseudo_labels import PseudoLabels, Teacher


class OneStepTeacher(Counterfactuals):
    """Makes of slices what a network of one step learns from them: `HealthyTargets`.

    Args:
        network, inferer, cache_dir, dry_run: see `made.Counterfactuals`.
        polarity, median_size: of the map, see `method.maps.anomaly_map`.
        map_channels: of the network, see `method.one_step.OneStepNetwork`: with a map it learns a student's labels too.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inferer: CounterfactualInferer,
        polarity: str | Sequence[str],
        median_size: int,
        cache_dir: str,
        dry_run: bool | str = False,
        map_channels: int = 0,
    ) -> None:
        super().__init__(network, inferer, cache_dir, dry_run)
        self.maps = Teacher(network, inferer, polarity, median_size, cache_dir, dry_run) if map_channels else None

    def __call__(self, slices: SliceDataset) -> HealthyTargets:
        """The counterfactuals of all slices, whatever their label; made where they aren't on disk yet."""
        channels = slices[0]["image"].shape[0]
        rows, digest = self.made(slices, range(len(slices)), "healthy", channels, "counterfactual", _healthy)
        return HealthyTargets(rows, digest, self.maps(slices, rows) if self.maps is not None else None)


def _healthy(x: torch.Tensor, healthy: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return healthy


class HealthyTargets:
    """Healthy counterparts of slices, and soft lesion labels behind them where a map is learned too.

    Args:
        rows: the counterparts ``(C, H, W)``, one a slice.
        digest: of slices, weights and settings.
        labels: see `pseudo_labels.PseudoLabels`.

    Items are float32 ``(C, H, W)`` in [-1, 1], or ``(C + 1, H, W)`` with the labels.
    """

    def __init__(self, rows: Rows, digest: str, labels: PseudoLabels | None) -> None:
        self.rows, self.labels = rows, labels
        self.digest = digest
        if labels is not None:
            self.digest = hashlib.sha256((digest + labels.digest).encode()).hexdigest()[:16]

    def __getitem__(self, i: int) -> torch.Tensor:
        healthy = torch.from_numpy(self.rows[i]).float()
        return healthy if self.labels is None else torch.cat([healthy, self.labels[i]])
