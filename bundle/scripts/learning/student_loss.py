"""What a student learns, its map and its counterpart, in one loss."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss


class StudentLoss(torch.nn.Module):
    """Of the map `monai.losses.DiceCELoss`; of a counterpart behind it mean(|d| + d^2), d the difference to the teacher's.

    The absolute value keeps healthy tissue sharp, where differences are small and pixels many; the square keeps what was
    healed of a lesion, where they are large and pixels few.

    Args:
        counterpart_weight: of the counterpart's loss, 0 or more.
    """

    def __init__(self, counterpart_weight: float = 10.0) -> None:
        super().__init__()
        self.counterpart_weight = counterpart_weight
        self.of_map = DiceCELoss(sigmoid=True, batch=True)

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Of what `method.inferer.with_counterpart` gives and a batch of `pseudo_labels.Lesson`, or of masks alone."""
        loss: torch.Tensor = self.of_map(predicted[:, :1], target[:, :1])
        if target.shape[1] > 1:
            d = predicted[:, 1:] - target[:, 1:]
            loss = loss + self.counterpart_weight * (d.abs() + d.square()).mean()
        return loss
