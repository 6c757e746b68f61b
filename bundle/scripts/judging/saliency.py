"""Where the classifier looks: its saliency, the baseline that needs nothing but it; see `baselines.Baseline`."""

from __future__ import annotations

import numpy as np
import torch
from monai.visualize import GradCAM

from .. import DISEASED
from ..method.classifiers import CleanAndNoised
from .cases import Array


class WithoutNoise(torch.nn.Module):
    """The classifier at timestep 0, as a function of the slice alone, for MONAI's Grad-CAM."""

    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        return logits


def grad_cam(classifier: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Grad-CAM of the disease (Selvaraju et al. 2017): at the last block of an `EfficientNetLite`, the last but one of others.

    Args:
        classifier: MONAI's `DiffusionModelEncoder`, or a `CleanAndNoised`.
        x: slices ``(N, C, H, W)``.

    Returns:
        ``(N, 1, H, W)``, 0 or more.
    """
    network = WithoutNoise(classifier).eval()  # MONAI puts back the mode that it found
    if isinstance(classifier, CleanAndNoised):
        layer = f"clean._blocks.{len(classifier.clean._blocks) - 1}"  # type: ignore[arg-type]  # it is a Sequential
    else:
        layer = f"down_blocks.{len(classifier.down_blocks) - 2}.resnets.0"  # type: ignore[arg-type]  # it is a ModuleList
    # as it is: MONAI's normaliser would give the most suspicious pixel 0, and each slice a range of its own
    cam = GradCAM(network, target_layers=f"classifier.{layer}", postprocessing=lambda a: a)
    with torch.enable_grad():
        maps: torch.Tensor = cam(x.clone().requires_grad_(), class_idx=DISEASED)
    return maps.detach().clamp_min(0)


class ClassActivation:
    """See `grad_cam`; 0 outside the foreground.

    Args:
        classifier: the bundle's.
    """

    name = "Grad-CAM of the classifier"
    on_networks_grid = True

    def __init__(self, classifier: torch.nn.Module) -> None:
        self.classifier = classifier

    def __call__(self, image: Array, foreground: Array) -> Array:
        device = next(self.classifier.parameters()).device
        x = torch.from_numpy(np.moveaxis(image, -1, 0).astype(np.float32)).to(device)
        maps = grad_cam(self.classifier, x)[:, 0].cpu().numpy()
        a: Array = np.moveaxis(maps, 0, -1).astype(np.float32) * foreground
        return a
