"""How good a network is at each noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from ignite.metrics import Accuracy, Loss, Metric
from monai.handlers import ROCAUC, from_engine


class AtNoiseLevel:
    """Output transform: predictions and labels at one of the `noise_levels` of `NoisedPrepareBatch`.

    Args:
        index: which level.
        total: how many there are.
        probability: give p(diseased) instead of the logits, for AUROC.
    """

    def __init__(self, index: int, total: int, probability: bool = False) -> None:
        self.index, self.total, self.probability = index, total, probability

    def __call__(self, output: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pred = output["pred"].chunk(self.total)[self.index]
        label = output["label"].chunk(self.total)[self.index]
        return (pred.softmax(dim=1)[:, 1] if self.probability else pred), label


def metrics_by_noise_level(loss: torch.nn.Module, noise_levels: Sequence[int]) -> dict[str, Metric]:
    """A classifier's loss over all noise levels, and its accuracy and AUROC at each, ``val_accuracy_t0`` and so on.

    Args:
        loss: of logits and labels.
        noise_levels: as `NoisedPrepareBatch` has them.
    """
    metrics: dict[str, Metric] = {"val_loss": Loss(loss, output_transform=from_engine(["pred", "label"]))}
    for index, level in enumerate(noise_levels):
        metrics[f"val_accuracy_t{level}"] = Accuracy(AtNoiseLevel(index, len(noise_levels)))
        metrics[f"val_auroc_t{level}"] = ROCAUC(
            output_transform=AtNoiseLevel(index, len(noise_levels), probability=True)
        )
    return metrics
