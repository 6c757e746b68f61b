"""The guided counterfactual in one call: a network that learned it from the many calls of the exact method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import DiffusionModelUNet

from ..checks import check_number
from ..device import autocast
from .slices import Findings, SliceInferer


class OneStepNetwork(torch.nn.Module):
    """A diffusion network, called at timestep 0, that gives the healthy counterpart of a slice instead of its noise.

    What it gives is the change that heals: the counterpart is x + f(x, 0). Its last layer begins at zero, so an untrained one
    gives the slice back; all other layers may begin with a diffusion network's weights.

    Args:
        unet: the diffusion network, whose last layer is replaced in place.
        map_channels: 1 to learn the map of lesions too, as logits in a channel behind those of the counterpart; or 0.

    Raises:
        ValueError: `map_channels` is neither 0 nor 1.
    """

    def __init__(self, unet: DiffusionModelUNet, map_channels: int = 0) -> None:
        super().__init__()
        check_number("map_channels", map_channels, 0, 1, whole=True)
        self.channels, self.map_channels = int(unet.in_channels), map_channels
        last = unet.out[-1].conv
        unet.out[-1] = Convolution(
            spatial_dims=last.weight.ndim - 2,
            in_channels=last.in_channels,
            out_channels=self.channels + map_channels,
            strides=1,
            kernel_size=3,
            padding=1,
            conv_only=True,
        )
        for parameter in unet.out[-1].parameters():
            torch.nn.init.zeros_(parameter)
        self.unet = unet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` in [-1, 1] to the counterpart and, if it learned that, the map's logits: ``(N, C + 1, H, W)``."""
        timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        out = self.unet(x, timesteps)
        return torch.cat([x + out[:, : self.channels], out[:, self.channels :]], dim=1)


class OneStepInferer(SliceInferer):
    """The counterfactual, and the map of lesions where it was learned too, in one call a slice.

    Args:
        classifier: see `SliceInferer`.
        map_channels: of the network, see `OneStepNetwork`.
        options: see `SliceInferer`.
    """

    def __init__(self, classifier: torch.nn.Module, map_channels: int = 0, **options: Any) -> None:
        super().__init__(classifier, **options)
        check_number("map_channels", map_channels, 0, 1, whole=True)
        self.map_channels = map_channels

    @property
    def settings(self) -> dict[str, Any]:
        """What the counterfactuals depend on beside the weights."""
        return {"map_channels": self.map_channels, "precision": self.precision}

    def slices(self, x: torch.Tensor, foreground: torch.Tensor, network: Callable[..., torch.Tensor]) -> Findings:
        """``counterfactual`` and ``probability``; with a map also ``student``, as it is read as a student's.

        Args:
            x: ``(N, C, H, W)`` in [-1, 1].
            foreground: bool ``(N, 1, H, W)``; what lies outside is its own counterfactual.
            network: a `OneStepNetwork`.
        """
        assert isinstance(network, torch.nn.Module)
        with torch.no_grad(), autocast(x.device, self.precision):
            out = network.to(x.device).eval()(x).float()
            found: Findings = {"probability": self.probability(x)}
        healthy, logits = out[:, : x.shape[1]], out[:, x.shape[1] :]
        found["counterfactual"] = torch.where(foreground, healthy.clamp(-1, 1), x)
        if self.map_channels:
            found["student"] = logits.sigmoid()
        return found

    def unassessed(self, x: torch.Tensor) -> Findings:
        """Their counterfactuals are the slices themselves; the map says nothing of them."""
        found: Findings = {"counterfactual": x.clone()}
        if self.map_channels:
            found["student"] = torch.full_like(x[:, :, :1], torch.nan)
        return found
