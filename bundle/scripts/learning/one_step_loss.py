"""The loss of a network of one step."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss


class OneStepLoss(torch.nn.Module):
    """mean(|d| + d^2), d the difference to the counterpart; and of a map the student's loss, `monai.losses.DiceCELoss`.

    The absolute value keeps healthy tissue sharp, where differences are small and pixels many; the square keeps what was
    healed of a lesion, where they are large and pixels few.

    Args:
        channels: C, of the counterpart.
        map_weight: of the map's loss, 0 or more.
    """

    def __init__(self, channels: int, map_weight: float = 0.1) -> None:
        super().__init__()
        self.channels, self.map_weight = channels, map_weight
        self.of_map = DiceCELoss(sigmoid=True, batch=True)

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Of what `method.one_step.OneStepNetwork` gives and a batch of `counterfactuals.HealthyTargets`, same shape."""
        d = (predicted - target)[:, : self.channels]
        loss = (d.abs() + d.square()).mean()
        if predicted.shape[1] > self.channels:
            loss = loss + self.map_weight * self.of_map(predicted[:, self.channels :], target[:, self.channels :])
        return loss
