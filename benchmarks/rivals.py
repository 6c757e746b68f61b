"""Other ways to find anomalies with no mask, each trained here from nothing on as many images as ours, of parts that MONAI has.

A rival takes the training slices and returns a reader: slices ``(N, C, H, W)`` with their foreground to what changed,
``(N, C, H, W)``, or to a map ``(N, 1, H, W)``. Its knobs are tuned on the validation slices, see `tuned`: those of training
with a tenth of the images each, then how what changed is read, by pixel AP, and how a map is scored, by image AUROC.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from keeping import fit, kept, place
from monai.losses import PatchAdversarialLoss
from monai.networks.layers import MedianFilter
from monai.networks.nets import BasicUNet, PatchDiscriminator, VarAutoEncoder
from monai.utils import set_determinism
from packs import Slices
from patch_core import of_classifier, of_imagenet, patch_core
from restoration import corrupted
from sklearn.metrics import roc_auc_score

from scripts import DISEASED, HEALTHY
from scripts.device import autocast, fastest_precision
from scripts.judging.saliency import grad_cam
from scripts.method.maps import POLARITIES, checked_polarity, slice_score

Reader = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FEATURES = (16, 32, 64, 128, 128, 16)
"""Of every U-Net here, those of the student."""
SIZES = (1, 3, 5)
"""Sides of a median filter, among which a reading is tuned."""
SHARE = 10
"""A setting is tried with one in so many of the images."""
TIMED = 16
"""Slices that a reader's time is taken of."""


class Work(NamedTuple):
    """How much is trained, from which seed, where it is kept as it goes, and on which device."""

    images: int
    seed: int
    path: Path
    device: torch.device


@dataclass(frozen=True)
class Rival:
    """How a reader is made, and among which settings of its training it is tuned."""

    make: Callable[..., Reader]
    settings: tuple[dict[str, Any], ...] = ({},)
    is_trained: bool = True
    gives_map: bool = False
    scores: tuple[str, ...] = ("mean", "highest")
    """Of a map over the foreground; or p(diseased), for what is the classifier's own map."""


def moved(x: torch.Tensor, foreground: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices flipped, turned, scaled and shifted, each anew, as far as the bundle's own training does it."""
    n, _, height, width = x.shape
    angle = 0.17 * (2 * torch.rand(n) - 1)
    scale = 1 + 0.1 * (2 * torch.rand(n, 2) - 1)
    shift = 2 * 4 / torch.tensor([width, height]) * (2 * torch.rand(n, 2) - 1)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    cos, sin, ratio = angle.cos(), angle.sin(), height / width
    theta = torch.stack(
        [
            torch.stack([scale[:, 0] * cos, -scale[:, 0] * sin * ratio, shift[:, 0]], 1),
            torch.stack([flip * scale[:, 1] * sin / ratio, flip * scale[:, 1] * cos, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False).to(x.device)
    turned = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = F.grid_sample(foreground.float(), grid, mode="nearest", align_corners=False) > 0.5
    return torch.where(inside, turned, -torch.ones_like(turned)), inside


def reconstructing(reconstruct: Callable[..., torch.Tensor], device: torch.device) -> Reader:
    """The reader of a network that gives the healthy slice: what is brighter or darker than that."""

    def read(x: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            parts = zip(x.split(64), foreground.split(64), strict=True)
            healthy = torch.cat([reconstruct(b.to(device), inside.to(device)).float().cpu() for b, inside in parts])
        return (x - healthy) * foreground

    return read


def fitted(network: torch.nn.Module, slices: Slices, work: Work, loss: Callable[..., torch.Tensor]) -> torch.nn.Module:
    """`network` after AdamW on batches of the slices and their foreground, in the precision that ours are trained in."""
    network = network.to(work.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step(i: torch.Tensor) -> None:
        x, inside = moved(slices.x[i].to(work.device), slices.foreground[i].to(work.device))
        with autocast(work.device, fastest_precision(work.device)):
            found = loss(x, inside)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()

    fit((network, optimizer), step, len(slices.x), work.images, work.seed, work.path)
    return network.eval()


def vae(slices: Slices, classifier: torch.nn.Module, work: Work, divergence: float = 1e-5) -> Reader:
    """A convolutional variational autoencoder of healthy slices (Kingma and Welling 2014), 128 latent numbers."""
    shape = slices.x.shape[1:]
    network = VarAutoEncoder(2, shape, shape[0], latent_size=128, channels=(32, 64, 128), strides=(2, 2, 2))

    def loss(x: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        y, mean, log_variance, _ = (values.float() for values in network(x))
        to_normal = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1).mean()
        return F.mse_loss(y, x) + divergence * to_normal

    fitted(network, slices.of(HEALTHY), work, loss)
    return reconstructing(lambda x, _: network.decode_forward(network.encode_forward(x)[0]), work.device)


def denoising_autoencoder(slices: Slices, classifier: torch.nn.Module, work: Work, noise: float = 0.4) -> Reader:
    """A U-Net that takes coarse noise off healthy slices (Kascenas, Pugeault and O'Neil, MIDL 2022).

    Their noise: Gaussian on a grid an eighth as fine, by default a fifth of the intensity range strong, in the foreground.
    """
    channels = slices.x.shape[1]
    network = BasicUNet(2, channels, channels, features=FEATURES)

    def loss(x: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        coarse = noise * torch.randn(*x.shape[:2], x.shape[2] // 8, x.shape[3] // 8)
        added = F.interpolate(coarse, x.shape[2:], mode="bilinear").to(x.device)
        added = added.roll((int(torch.randint(8, ())), int(torch.randint(8, ()))), (2, 3)) * foreground
        return F.mse_loss(network(x + added).float(), x)

    fitted(network, slices.of(HEALTHY), work, loss)
    return reconstructing(lambda x, _: network(x), work.device)


def restoration(slices: Slices, classifier: torch.nn.Module, work: Work, strength: float = 0.8) -> Reader:
    """A U-Net that undoes synthetic lesions of healthy slices in one step, see `restoration`; its change is the map."""
    channels = slices.x.shape[1]
    network = BasicUNet(2, channels, channels, features=FEATURES)

    def loss(x: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        damaged = corrupted(x, foreground, strength)
        return F.l1_loss(network(damaged).float(), x - damaged)

    fitted(network, slices.of(HEALTHY), work, loss)
    return reconstructing(lambda x, _: x + network(x), work.device)


def healthy_translation_gan(slices: Slices, classifier: torch.nn.Module, work: Work, weight: float = 10) -> Reader:
    """A generator that takes a slice to either class, with the losses of Fixed-Point GAN (Siddiquee et al., ICCV 2019).

    Adversarial, domain class, cycle and identity, the last two weighted; least squares for the first. One patch discriminator
    gives both whether a patch is real and its class.
    """
    channels, device = slices.x.shape[1], work.device
    generator = BasicUNet(2, channels + 1, channels, features=FEATURES).to(device).train()
    critic = PatchDiscriminator(2, 32, channels, out_channels=3, num_layers_d=3).to(device).train()
    real_or_not = PatchAdversarialLoss(criterion="least_squares")
    optimizers = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in (generator, critic)]

    def to(x: torch.Tensor, inside: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        domain = label.view(-1, 1, 1, 1).to(x).expand(-1, 1, *x.shape[2:])
        with autocast(device, fastest_precision(device)):
            change = generator(torch.cat([x, domain], 1))
        return torch.where(inside, x + change.float(), x)

    def judged(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(device, fastest_precision(device)):
            patches = critic(x)[-1].float()
        return patches[:, :1], patches[:, 1:].mean(dim=(2, 3))

    def step(i: torch.Tensor) -> None:
        real, inside = moved(slices.x[i].to(device), slices.foreground[i].to(device))
        label = slices.labels[i].to(device)
        target = torch.randint(2, label.shape).to(device)
        fake = to(real, inside, target)
        (patches, classes), (fake_patches, _) = judged(real), judged(fake.detach())
        truth = real_or_not(patches, True, for_discriminator=True) + real_or_not(
            fake_patches, False, for_discriminator=True
        )
        optimizers[1].zero_grad()
        (truth + F.cross_entropy(classes, label)).backward()
        optimizers[1].step()
        patches, classes = judged(fake)
        fooled = real_or_not(patches, True, for_discriminator=False) + F.cross_entropy(classes, target)
        cycle = F.l1_loss(to(fake, inside, label), real)
        identity = F.l1_loss(to(real, inside, label), real)
        optimizers[0].zero_grad()
        (fooled + weight * (cycle + identity)).backward()
        optimizers[0].step()

    fit((generator, critic, *optimizers), step, len(slices.x), work.images, work.seed, work.path)
    generator.eval()
    return reconstructing(lambda x, inside: to(x, inside, torch.full((len(x),), HEALTHY)), device)


def class_activation(slices: Slices, classifier: torch.nn.Module, work: Work) -> Reader:
    """Grad-CAM of the bundle's classifier, see `saliency.grad_cam`."""
    classifier = classifier.to(work.device)
    return lambda x, foreground: (
        torch.cat([grad_cam(classifier, b.to(work.device)).cpu() for b in x.split(16)]) * foreground
    )


def nearest_patch(features: Callable, slices: Slices, classifier: torch.nn.Module, work: Work) -> Reader:
    """See `patch_core`."""
    return patch_core(slices, features(classifier, work.device), work.device)


RIVALS = {
    "VAE of healthy slices": Rival(vae, tuple({"divergence": v} for v in (1e-6, 1e-5, 1e-4))),
    "denoising autoencoder of healthy slices": Rival(
        denoising_autoencoder, tuple({"noise": v} for v in (0.2, 0.4, 0.8))
    ),
    "restoration of synthetic lesions": Rival(restoration, tuple({"strength": v} for v in (0.4, 0.8, 1.2))),
    "healthy-translation GAN": Rival(healthy_translation_gan, tuple({"weight": v} for v in (1, 10, 30))),
    "Grad-CAM of the classifier": Rival(
        class_activation, is_trained=False, gives_map=True, scores=("mean", "highest", "p(diseased)")
    ),
    "PatchCore on the classifier's features": Rival(
        partial(nearest_patch, of_classifier), is_trained=False, gives_map=True
    ),
    "PatchCore on ImageNet's features": Rival(partial(nearest_patch, of_imagenet), is_trained=False, gives_map=True),
}
"""Each rival by its name in the table."""


def reader_of(
    name: str,
    slices: Slices,
    classifier: torch.nn.Module,
    images: int,
    seed: int,
    folder: Path,
    device: torch.device,
    setting: dict[str, Any],
    *state: Any,
) -> Reader:
    """The reader of a rival, from a seed; ready for inference. What was trained before is found in `folder`."""
    path = place(folder, f"{name} weights", setting, images, seed, *state)
    set_determinism(seed)
    return RIVALS[name].make(slices, classifier, Work(images, seed, path, device), **setting)


def seconds_of(reader: Reader, slices: Slices) -> float:
    """Seconds a slice, of `TIMED` slices at once, the second time."""
    x, foreground = slices.x[:TIMED], slices.foreground[:TIMED]
    reader(x, foreground)
    begin = time.perf_counter()
    reader(x, foreground)
    return (time.perf_counter() - begin) / len(x)


def read(change: torch.Tensor, foreground: torch.Tensor, polarity: Any, size: int) -> torch.Tensor:
    """The map ``(N, 1, H, W)`` of what changed ``(N, C, H, W)``, summed over the channels, median filtered.

    Args:
        polarity: see `method.maps.anomaly_map`.
        size: of the filter.
    """
    sign = torch.tensor([POLARITIES[p] for p in checked_polarity(polarity, change.shape[1])]).view(-1, 1, 1)
    signed = torch.where(sign == 0, change.abs(), (sign * change).clamp_min(0)).sum(dim=1, keepdim=True)
    return (MedianFilter(size // 2, spatial_dims=2)(signed) if size > 1 else signed) * foreground


def scored(a: torch.Tensor, foreground: torch.Tensor, by: str, probability: torch.Tensor) -> torch.Tensor:
    """Scores ``(N,)`` of maps, see `Rival`."""
    if by == "p(diseased)":
        return probability
    return a.amax(dim=(1, 2, 3)) if by == "highest" else slice_score(a, foreground, torch.ones(len(a)))


def best_reading(
    change: torch.Tensor,
    slices: Slices,
    probability: torch.Tensor,
    polarities: tuple[Any, ...],
    scores: tuple[str, ...],
) -> dict[str, Any]:
    """How what changed is best read, by pixel AP, and scored, by image AUROC, on slices with masks."""
    tried = [
        {"polarity": polarity, "median_size": size, "pixel_ap": slices.pixel_ap(a)}
        for polarity, size in itertools.product(polarities, SIZES)
        for a in [read(change, slices.foreground, polarity, size)]
    ]
    best = max(tried, key=lambda one: one["pixel_ap"])
    a = read(change, slices.foreground, best["polarity"], best["median_size"])
    diseased = slices.labels == DISEASED
    aurocs = {by: roc_auc_score(diseased, scored(a, slices.foreground, by, probability)) for by in scores}
    by = max(aurocs, key=lambda by: aurocs[by])
    return best | {"score": by, "image_auroc": float(aurocs[by])}


def tuned(
    name: str,
    settings: Sequence[dict[str, Any]],
    splits: dict[str, Slices],
    probability: dict[str, torch.Tensor],
    classifier: torch.nn.Module,
    images: int,
    seed: int,
    folder: Path,
    device: torch.device,
    polarity: Any,
    *state: Any,
) -> dict[str, Any]:
    """A rival's maps and scores of validation and test, and how it was tuned; see the module.

    Every training, and what it gave, is kept in `folder`, found again by its settings and `state`. With one of `settings`
    nothing is tried.
    """
    rival = RIVALS[name]
    polarities: list[Any] = ["both"] if rival.gives_map or polarity == "both" else [polarity, "both"]

    def given(setting: dict[str, Any], images: int, names: tuple[str, ...]) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            reader = reader_of(name, splits["training"], classifier, images, seed, folder, device, setting, *state)
            return {n: reader(splits[n].x, splits[n].foreground) for n in names}

        return kept(place(folder, name, setting, images, seed, names, *state), make)

    def best(change: torch.Tensor) -> dict[str, Any]:
        slices = splits["validation"]
        return best_reading(change, slices, probability["validation"], tuple(polarities), rival.scores)

    tried: list[dict[str, Any]] = []
    if len(settings) > 1:
        few = images // SHARE
        for setting in settings:
            tried.append({"setting": setting, **best(given(setting, few, ("validation",))["validation"])})
    setting = max(tried, key=lambda one: one["pixel_ap"])["setting"] if tried else settings[0]
    found = given(setting, images if rival.is_trained else 0, ("validation", "test"))
    reading = best(found["validation"])
    result: dict[str, Any] = {"tried": tried, "chosen": {"setting": setting, **reading}}
    for split in ("validation", "test"):
        inside = splits[split].foreground
        a = read(found[split], inside, reading["polarity"], reading["median_size"])
        result[split] = (a, scored(a, inside, reading["score"], probability[split]))
    return result
