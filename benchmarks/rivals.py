"""Other ways to find anomalies with no mask, each trained here from nothing in the same time, of parts that MONAI has.

A rival takes the training slices with their foreground and image-level labels and returns a reader: slices ``(N, C, H, W)``
with their foreground, bool ``(N, 1, H, W)``, to anomaly maps ``(N, 1, H, W)`` and image-level scores ``(N,)``. Those that
reconstruct are read as ours is: where the slice is brighter than its reconstruction, with the same median filter. No backbone
that was trained on photographs is used: where a method wants features, they are those of the bundle's own classifier.

Beside them, `supervised`: what the student would be if radiologists' masks taught it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss
from monai.networks.layers import MedianFilter
from monai.networks.nets import BasicUNet, PatchDiscriminator, VarAutoEncoder
from monai.transforms import Compose
from monai.utils import set_determinism
from monai.visualize import GradCAM
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import Dataset
from tqdm import tqdm
from training import config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bundle"))

from scripts import DISEASED, HEALTHY
from scripts.bundle import declared
from scripts.images.geometry import to_grid
from scripts.images.masks import load_mask
from scripts.learning.datasets import labelled_slices
from scripts.learning.seeding import Draw, augmented
from scripts.method.maps import slice_score

Reader = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Slices(NamedTuple):
    """What a rival learns from: ``x`` ``(N, C, H, W)``, ``foreground`` bool ``(N, 1, H, W)`` and ``labels`` ``(N,)``."""

    x: torch.Tensor
    foreground: torch.Tensor
    labels: torch.Tensor

    def of(self, label: int) -> Slices:
        """Those of one class."""
        chosen = self.labels == label
        return Slices(*(values[chosen] for values in self))


Rival = Callable[[Slices, torch.nn.Module, float], Reader]
FEATURES = (16, 32, 64, 128, 128, 16)
"""Of every U-Net here, those of the student."""


def batches(x: torch.Tensor, minutes: float, size: int = 16) -> Iterator[torch.Tensor]:
    """Indices of random batches until the time is up; a bar shows it."""
    begin = time.monotonic()
    with tqdm(total=round(60 * minutes), desc="training", unit="s", leave=False) as bar:
        while (passed := time.monotonic() - begin) < 60 * minutes:
            bar.update(int(passed) - bar.n)
            yield torch.randint(len(x), (size,))


def flipped(x: torch.Tensor, foreground: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Left and right exchanged in half of the slices."""
    these = torch.rand(len(x), 1, 1, 1) < 0.5
    return torch.where(these, x.flip(2), x), torch.where(these, foreground.flip(2), foreground)


def brighter(reconstruct: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Reader:
    """The reader of a network that reconstructs: where the slice is brighter, 3 x 3 median, and the mean in the foreground."""

    def read(x: torch.Tensor, foreground: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            parts = zip(x.split(16), foreground.split(16), strict=True)
            healthy = torch.cat([reconstruct(*part) for part in parts])
        return filtered((x - healthy).clamp_min(0).sum(dim=1, keepdim=True), foreground)

    return read


def filtered(a: torch.Tensor, foreground: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with a 3 x 3 median filter, 0 outside the foreground, and their means over it."""
    a = MedianFilter(1, spatial_dims=2)(a) * foreground
    return a, slice_score(a, foreground, torch.ones(len(a)))


def fitted(
    network: torch.nn.Module,
    slices: Slices,
    minutes: float,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.nn.Module:
    """`network` after as many minutes of AdamW on batches of the slices and their foreground."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for i in batches(slices.x, minutes):
        optimizer.zero_grad()
        loss(*flipped(slices.x[i], slices.foreground[i])).backward()
        optimizer.step()
    return network.eval()


def vae(slices: Slices, classifier: torch.nn.Module, minutes: float) -> Reader:
    """A convolutional variational autoencoder of healthy slices (Kingma and Welling 2014), 128 latent numbers."""
    shape = slices.x.shape[1:]
    network = VarAutoEncoder(2, shape, shape[0], latent_size=128, channels=(32, 64, 128), strides=(2, 2, 2))

    def loss(x: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        y, mean, log_variance, _ = network(x)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1).mean()
        return F.mse_loss(y, x) + 1e-5 * divergence

    fitted(network, slices.of(HEALTHY), minutes, loss)
    return brighter(lambda x, foreground: network.decode_forward(network.encode_forward(x)[0]))


def denoising_autoencoder(slices: Slices, classifier: torch.nn.Module, minutes: float) -> Reader:
    """A U-Net that takes coarse noise off healthy slices (Kascenas, Pugeault and O'Neil, MIDL 2022).

    Their noise: Gaussian on a grid an eighth as fine, a fifth of the intensity range strong, in the foreground.
    """
    channels = slices.x.shape[1]
    network = BasicUNet(2, channels, channels, features=FEATURES)

    def loss(x: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        coarse = 0.4 * torch.randn(*x.shape[:2], x.shape[2] // 8, x.shape[3] // 8)
        noise = F.interpolate(coarse, x.shape[2:], mode="bilinear")
        noise = noise.roll((int(torch.randint(8, ())), int(torch.randint(8, ()))), (2, 3)) * foreground
        return F.mse_loss(network(x + noise), x)

    fitted(network, slices.of(HEALTHY), minutes, loss)
    return brighter(lambda x, foreground: network(x))


def healthy_translation_gan(slices: Slices, classifier: torch.nn.Module, minutes: float) -> Reader:
    """A generator that takes a slice to either class, with the losses of Fixed-Point GAN (Siddiquee et al., ICCV 2019).

    Adversarial, domain class, cycle and identity, the last two weighted 10; least squares for the first. One patch
    discriminator gives both whether a patch is real and its class.
    """
    channels = slices.x.shape[1]
    generator = BasicUNet(2, channels + 1, channels, features=FEATURES)
    critic = PatchDiscriminator(2, 32, channels, out_channels=3, num_layers_d=3)
    real_or_not = PatchAdversarialLoss(criterion="least_squares")
    optimizers = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in (generator, critic)]

    def to(x: torch.Tensor, inside: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        domain = label.view(-1, 1, 1, 1).float().expand(-1, 1, *x.shape[2:])
        return torch.where(inside, x + generator(torch.cat([x, domain], 1)), x)

    def judged(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches = critic(x)[-1]
        return patches[:, :1], patches[:, 1:].mean(dim=(2, 3))

    for i in batches(slices.x, minutes):
        (real, inside), label = flipped(slices.x[i], slices.foreground[i]), slices.labels[i]
        target = torch.randint(2, label.shape)
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
        (fooled + 10 * cycle + 10 * identity).backward()
        optimizers[0].step()
    generator.eval()
    return brighter(lambda x, inside: to(x, inside, torch.full((len(x),), HEALTHY)))


class WithoutNoise(torch.nn.Module):
    """The classifier at timestep 0, as a function of the slice alone."""

    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x, torch.zeros(len(x), dtype=torch.long))


def class_activation(slices: Slices, classifier: torch.nn.Module, minutes: float) -> Reader:
    """Grad-CAM (Selvaraju et al. 2017) of the bundle's classifier, at its last block but one: nothing is trained."""
    network = WithoutNoise(classifier)
    last = len(classifier.down_blocks) - 2
    # as it is: MONAI's normaliser would give the most suspicious pixel 0, and each slice a range of its own
    cam = GradCAM(network, target_layers=f"classifier.down_blocks.{last}.resnets.0", postprocessing=lambda a: a)

    def read(x: torch.Tensor, foreground: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = torch.cat([cam(b.clone().requires_grad_(), class_idx=DISEASED).detach() for b in x.split(16)])
        a, _ = filtered(a.clamp_min(0), foreground)
        with torch.no_grad():
            return a, torch.cat([network(b).softmax(dim=1)[:, DISEASED] for b in x.split(16)])

    return read


def patch_core(slices: Slices, classifier: torch.nn.Module, minutes: float) -> Reader:
    """Distance to the nearest of 4,000 healthy patches (after PatchCore, Roth et al. 2022), features of our classifier.

    Features are those of the first two blocks, averaged over 3 x 3 neighbours; the patches are drawn at random, as a
    greedy choice among a hundred thousand takes longer than all else here. Nothing is trained.
    """
    seen: list[torch.Tensor] = []

    def features(x: torch.Tensor) -> torch.Tensor:
        hooks = [b.register_forward_hook(lambda *a: seen.append(a[2][0])) for b in list(classifier.down_blocks)[:2]]
        with torch.no_grad():
            WithoutNoise(classifier)(x)
        for hook in hooks:
            hook.remove()
        fine, coarse = (F.avg_pool2d(f, 3, 1, 1) for f in seen)
        seen.clear()
        return torch.cat([fine, F.interpolate(coarse, fine.shape[2:], mode="bilinear")], 1).movedim(1, -1)

    def inside_at(foreground: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return F.adaptive_avg_pool2d(foreground.float(), size)[:, 0] > 0.5

    bank = []
    healthy = slices.of(HEALTHY)
    for b, inside in zip(healthy.x.split(16), healthy.foreground.split(16), strict=True):
        f = features(b)
        patches = f[inside_at(inside, f.shape[1:3])]
        bank.append(patches[torch.randperm(len(patches))[:200]])
    patches = torch.cat(bank)
    patches = patches[torch.randperm(len(patches))[:4000]]
    scale = patches.std(dim=0).clamp_min(1e-6)
    nearest = NearestNeighbors(n_neighbors=1).fit((patches / scale).numpy())

    def read(x: torch.Tensor, foreground: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = []
        for b, whole in zip(x.split(16), foreground.split(16), strict=True):
            f = features(b)
            inside = inside_at(whole, f.shape[1:3])
            a = torch.zeros(inside.shape)
            a[inside] = torch.from_numpy(nearest.kneighbors((f[inside] / scale).numpy())[0][:, 0]).float()
            maps.append(F.interpolate(a[:, None], x.shape[2:], mode="bilinear"))
        a, _ = filtered(torch.cat(maps), foreground)
        return a, a.amax(dim=(1, 2, 3))

    return read


RIVALS: dict[str, Rival] = {
    "VAE of healthy slices": vae,
    "denoising autoencoder of healthy slices": denoising_autoencoder,
    "healthy-translation GAN": healthy_translation_gan,
    "Grad-CAM of the classifier": class_activation,
    "PatchCore on the classifier's features": patch_core,
}
"""Each rival by its name in the table."""


def trained(
    name: str,
    x: torch.Tensor,
    foreground: torch.Tensor,
    labels: torch.Tensor,
    classifier: torch.nn.Module,
    minutes: float,
    seed: int,
) -> Reader:
    """The reader of a rival, from a seed; ready for inference."""
    set_determinism(seed)
    return RIVALS[name](Slices(x, foreground, labels), classifier, minutes)


class ReadersMasks(Dataset):
    """The slices a student learns from, with radiologists' masks instead of what counterfactuals gave.

    Args:
        data: items with ``mask``, see `learning.datalists`.
        preprocessing: the bundle's.
        min_area: see `method.slices.assessed_slices`.
        augmentation, seed: as `SliceDataset` has them.

    Items are ``{"image": float32 (C, H, W), "label": float32 (1, H, W)}``, labels 0 or 1; ``labels`` are the image-level ones.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        preprocessing: Compose,
        min_area: int,
        augmentation: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        self.augmentation, self.seed = augmentation, seed
        self.labels: list[int] = []
        self.items: list[dict[str, Any]] = []
        for source in tqdm(data, "readers' masks", unit="volume"):
            volume = preprocessing({k: v for k, v in source.items() if k != "mask"})
            image = volume["image"]
            mask = load_mask(source["mask"], volume["input_image"])
            mask = to_grid(mask, mask.affine, image.affine, image.shape[1:]) > 0.5
            for z, label in labelled_slices(volume["foreground"], source["label"], min_area):
                self.items.append({"image": image.as_tensor()[..., z], "label": mask[..., z].float()})
                self.labels.append(label)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, drawn: int | Draw) -> dict[str, Any]:
        i, number = drawn if isinstance(drawn, tuple) else (drawn, None)
        item = dict(self.items[i])
        if number is None or self.augmentation is None:
            return item
        return augmented(item, self.augmentation, self.seed, number)


def supervised(datalist: str, cache_dir: str, minutes: float) -> torch.nn.Module:
    """The student after its own training, but taught by the masks of the training patients."""
    with tempfile.TemporaryDirectory() as folder:
        parser = config(datalist, cache_dir, folder, ("train_student",), max_minutes=minutes)
        for split in ("train", "validate"):
            parser[f"{split}#dataset"] = {
                "_target_": "rivals.ReadersMasks",
                "data": parser[f"{split}#dataset#data"],
                "preprocessing": "@preprocessing",
                "min_area": "@min_area",
                **({"augmentation": "@train#augmentation", "seed": "@seed"} if split == "train" else {}),
            }
        parser["checkpoint#settings"], parser["checkpoint#record"] = {}, None
        parser.get_parsed_content("initialize")
        parser.get_parsed_content("train#trainer").run()
        return declared("student", **{"student#path": f"{folder}/model.pt"})
