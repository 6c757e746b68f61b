"""A classifier that begins with what ImageNet teaches, for where there are too few images to learn what images are."""

from __future__ import annotations

import torch
from monai.networks.nets import EfficientNet

LITE0 = [
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
]
"""The blocks of EfficientNet-Lite0: those of EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation."""


class EfficientNetLite(EfficientNet):
    """MONAI's EfficientNet as EfficientNet-Lite0, with ReLU6, for grey slices of any size.

    Args:
        num_classes: of the logits.
        size: pixels a side that the slices are enlarged to; 224 in the original.
        dropout_rate: before the last layer.
    """

    def __init__(self, num_classes: int = 2, size: int = 192, dropout_rate: float = 0.3) -> None:
        super().__init__(LITE0, num_classes=num_classes, image_size=size, dropout_rate=dropout_rate)
        self.size = size
        self._swish = torch.nn.ReLU6()
        for module in self.modules():
            if hasattr(module, "_swish"):
                module._swish = torch.nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Slices ``(N, 1, H, W)`` in [-1, 1] to logits ``(N, num_classes)``."""
        x = torch.nn.functional.interpolate(x, size=(self.size, self.size), mode="bilinear")
        logits: torch.Tensor = super().forward(x.expand(-1, 3, -1, -1))
        return logits


class CleanAndNoised(torch.nn.Module):
    """f(x, t) -> logits: one network for slices without noise, t = 0, another for noised ones.

    The first decides, the second guides. Features of photographs help the first and know no noise.

    Args:
        clean: x -> logits ``(N, classes)``.
        noised: f(x, t) -> logits ``(N, classes)``.
    """

    def __init__(self, clean: torch.nn.Module, noised: torch.nn.Module) -> None:
        super().__init__()
        self.clean, self.noised = clean, noised

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: None = None) -> torch.Tensor:
        """Each slice by its own timestep.

        Args:
            x: ``(N, C, H, W)``.
            timesteps: ``(N,)``.
            context: none; MONAI's `DiffusionInferer` names it.
        """
        without = timesteps == 0
        if torch.jit.is_tracing() or torch.compiler.is_exporting():  # a trace can't choose
            return torch.where(without[:, None], self.clean(x), self.noised(x, timesteps))
        if without.all():
            return self._with_no(self.noised, self.clean(x))
        if not without.any():
            return self._with_no(self.clean, self.noised(x, timesteps))
        noised = self.noised(x[~without], timesteps[~without])
        logits = noised.new_empty(len(x), noised.shape[1])
        logits[~without] = noised
        logits[without] = self.clean(x[without]).to(noised.dtype)
        return logits

    def _with_no(self, unused: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
        """The logits; in training with gradients of 0 for the other network, as DDP waits on every rank for those of all."""
        if not self.training:
            return logits
        return logits + 0 * sum(parameter.sum() for parameter in unused.parameters())
