"""PatchCore (Roth et al. 2022): the distance to the nearest of many healthy patches, in the features of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.networks.nets import EfficientNet
from packs import Slices

from scripts import HEALTHY
from scripts.judging.saliency import WithoutNoise
from scripts.learning.imagenet import imagenet_file
from scripts.method.classifiers import EfficientNetLite
from scripts.weights import read_state

Features = Callable[[torch.Tensor], list[torch.Tensor]]
"""Slices ``(N, C, H, W)`` to maps of features ``(N, K, h, w)``, the finest first."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures."""
CANDIDATES, BANK = 50_000, 4_000
"""Healthy patches that are drawn, and those of them that are remembered."""


def hooked(
    network: Callable[[torch.Tensor], object], blocks: list[torch.nn.Module], prepare: Features | Callable
) -> Features:
    """What the blocks give while the network sees a slice."""
    seen: list[torch.Tensor] = []

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        hooks = [
            b.register_forward_hook(lambda *a: seen.append(a[2][0] if isinstance(a[2], tuple) else a[2]))
            for b in blocks
        ]
        with torch.no_grad():
            network(prepare(x))
        for hook in hooks:
            hook.remove()
        found = [f.float() for f in seen]
        seen.clear()
        return found

    return features


def of_classifier(classifier: torch.nn.Module, device: torch.device) -> Features:
    """Those of the first two blocks of the bundle's own classifier."""
    blocks = list(classifier.to(device).down_blocks)[:2]
    return hooked(WithoutNoise(classifier), blocks, lambda x: x)


def of_imagenet(classifier: torch.nn.Module, device: torch.device) -> Features:
    """Those of EfficientNet-Lite0, taught on ImageNet, at a sixteenth and an eighth of slices that are three times as large.

    A single channel is shown as grey; of four sequences the last three are the colours.

    Raises:
        SystemExit: ImageNet's weights are not installed.
    """
    network = EfficientNetLite(num_classes=1000)
    network.load_state_dict(dict(zip(network.state_dict(), read_state(imagenet_file()).values(), strict=True)))
    network = network.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))

    def prepare(x: torch.Tensor) -> torch.Tensor:
        colours = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, -3:]
        return F.interpolate(((colours + 1) / 2 - mean) / std, scale_factor=3, mode="bilinear")

    # MONAI's part of the network takes colours of any size
    return hooked(lambda x: EfficientNet.forward(network, x), [network._blocks[2], network._blocks[4]], prepare)


def coreset(patches: torch.Tensor, number: int) -> torch.Tensor:
    """`number` of the patches ``(P, K)``, each the farthest from all before it (the paper's greedy choice), by its index."""
    chosen = torch.zeros(min(number, len(patches)), dtype=torch.long)
    nearest = torch.full((len(patches),), torch.inf, device=patches.device)
    for n in range(1, len(chosen)):
        distance = (patches - patches[chosen[n - 1]]).square().sum(dim=1)
        nearest = torch.minimum(nearest, distance)
        chosen[n] = nearest.argmax()
    return chosen


def patch_core(
    slices: Slices, features: Features, device: torch.device, candidates: int = CANDIDATES, number: int = BANK
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A reader: slices and their foreground to maps ``(N, 1, H, W)``. Nothing is trained."""

    def described(x: torch.Tensor) -> torch.Tensor:
        found = [F.avg_pool2d(f, 3, 1, 1) for f in features(x.to(device))]
        size = found[0].shape[2:]
        same = [F.interpolate(f, size, mode="bilinear") for f in found[1:]]
        return torch.cat([found[0], *same], 1).movedim(1, -1)

    def inside_at(foreground: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return F.adaptive_avg_pool2d(foreground.float(), size)[:, 0] > 0.5

    healthy = slices.of(HEALTHY)
    each = max(-(-candidates // len(healthy.x)), 1)
    bank = []
    for b, whole in zip(healthy.x.split(16), healthy.foreground.split(16), strict=True):
        f = described(b)
        patches = f[inside_at(whole, f.shape[1:3]).to(device)]
        bank.append(patches[torch.randperm(len(patches))[: each * len(b)].to(device)])
    patches = torch.cat(bank)
    scale = patches.std(dim=0).clamp_min(1e-6)
    patches = patches / scale
    memory = patches[coreset(patches, number).to(device)]

    def read(x: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        maps = []
        for b, whole in zip(x.split(16), foreground.split(16), strict=True):
            f = described(b) / scale
            inside = inside_at(whole, f.shape[1:3]).to(device)
            a = torch.zeros(inside.shape, device=device)
            a[inside] = torch.cdist(f[inside], memory).amin(dim=1)
            maps.append(F.interpolate(a[:, None], x.shape[2:], mode="bilinear").cpu() * whole)
        return torch.cat(maps)

    return read
