"""Teach the light network that finds the brain by HD-BET's masks.

    python benchmarks/brain_training.py --datalist FILE --others DIR [--steps 1900] [--seed 0] [--output FILE]

The datalist is that of `scripts.prepare brain_mr`: whole heads. What lies beside an image as ``t1`` and ``t1gd`` is on its
grid, so that the image's mask is theirs too. The other folder has images ``elderly/*_flair.nii.gz`` of other people, of whom
eight are learned from, and ``ms`` and ``tumour``, which are only measured on, by ``brain_extractor.py``.

A training that was broken off goes on where it was, and gives what an unbroken one gives.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
import torch.nn.functional as F
from keeping import ROOT
from monai.data import MetaTensor
from monai.losses import DiceLoss
from monai.transforms import Compose, RandAdjustContrastd, RandBiasFieldd, RandGaussianNoised, RandGaussianSmoothd
from monai.transforms.utils import create_rotate, create_scale, create_shear
from tqdm import tqdm

from scripts.bundle import cache_dir as bundles_cache
from scripts.bundle import declared
from scripts.device import autocast, fastest_precision
from scripts.images.brain_network import FACTOR, LEAST, SPACING, as_input, head_box
from scripts.learning.datalists import read_datalist
from scripts.weights import for_training, write_tensors

WEIGHTS = str(ROOT / "bundle" / "models" / "brain.pt")
ELDERLY = 8
"""Of the others' elderly, so many are learned from."""
SPLIT_SEED = 0
"""By which these are drawn, in every training."""
CHECKPOINT = 100
"""Steps between two checkpoints."""
WARM_UP, DECAY = 90, 0.4
"""Steps in which the learning rate rises, and the last part of all in which it falls to 0."""


def heads(datalist: str, others: str, split: str) -> Iterator[dict[str, Any]]:
    """The items of a split, "training", "validation" or "test", with their ``source``."""
    for item in read_datalist(datalist, split):
        yield {**item, "source": "TCGA-LGG"}
    elderly = sorted(Path(others).glob("elderly/*_flair.nii.gz"))
    learned = random.Random(SPLIT_SEED).sample(elderly, ELDERLY)
    if split == "training":
        yield from ({"image": str(path), "source": "elderly"} for path in sorted(learned))
    if split == "test":
        for kind in ("elderly", "ms", "tumour"):
            for path in sorted(Path(others).glob(f"{kind}/*_flair.nii.gz")):
                if path not in learned:
                    yield {"image": str(path), "source": kind}


def preprocessing(cache_dir: str) -> tuple[Compose, Compose]:
    """The model's as far as to the brain, which HD-BET finds, and the same without the brain."""
    steps = [*declared("preprocessing", **{"foreground#network": None, "brain_cache": cache_dir}).transforms]
    brain = [type(step).__name__ for step in steps].index("ExtractBraind")
    return Compose(steps[: brain + 1]), Compose(steps[:brain])


def head_of(item: dict[str, Any], steps: Compose) -> MetaTensor:
    """An image ``(1, X, Y, Z)``."""
    image: MetaTensor = steps({k: v for k, v in item.items() if k in ("image", "spacing")})["image"]
    return image


def masked_head(item: dict[str, Any], steps: Compose) -> tuple[MetaTensor, torch.Tensor]:
    """An image, and its brain likewise, bool."""
    d = steps({k: v for k, v in item.items() if k in ("image", "spacing")})
    return d["image"], d["foreground"].as_tensor() > 0


class Heads:
    """Examples to learn from.

    Args:
        items: see `heads`.
        cache_dir: of HD-BET's masks.
        seed: each step's example is drawn from it and the step's number alone.
    """

    def __init__(self, items: list[dict[str, Any]], cache_dir: str, seed: int) -> None:
        self.seed = seed
        self.heads: dict[str, list[tuple[list[torch.Tensor], torch.Tensor, list[float]]]] = {}
        masked, unmasked = preprocessing(cache_dir)
        for item in tqdm(items, "heads", unit="head"):
            image, mask = masked_head(item, masked)
            images = [image.as_tensor()]
            for name in ("t1", "t1gd"):
                beside = Path(item["image"]).with_name(f"{name}.nii.gz")
                if beside.is_file():
                    images.append(head_of({**item, "image": str(beside)}, unmasked).as_tensor())
            self.heads.setdefault(item["source"], []).append((images, mask, image.pixdim.tolist()))
        one = ["image"]
        self.intensities = Compose(
            [
                RandAdjustContrastd(one, prob=0.5, gamma=(0.6, 1.6)),
                RandBiasFieldd(one, prob=0.4, coeff_range=(-0.3, 0.3)),
                RandGaussianSmoothd(one, prob=0.2, sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0), sigma_z=(0.1, 0.4)),
                RandGaussianNoised(one, prob=0.4, std=0.1),
            ]
        )

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network gets, see `as_input`, and the part of each voxel that is brain, on the same grid."""
        draw = np.random.default_rng([self.seed, step])
        sources = sorted(self.heads)
        source = "elderly" if "elderly" in sources and draw.random() < 0.25 else sources[0]
        images, mask, spacing = self.heads[source][draw.integers(len(self.heads[source]))]
        number = 0 if draw.random() < 0.5 else int(draw.integers(len(images)))
        image, brain, spacing = images[number], mask, list(spacing)
        box = head_box(image)
        image, brain = image[box], brain[box].float()
        if spacing[2] < 3 and draw.random() < 0.5:
            image, brain, spacing[2] = thicker(image, brain, spacing[2], int(draw.integers(2, 5)))
        if draw.random() < 0.3:
            image, brain = cut(image, brain, draw)
        self.intensities.set_random_state(int(draw.integers(2**31)))
        # a scale at which the amounts of noise and of contrast mean the same in every image
        image = (
            self.intensities({"image": image / image[image > image.mean() * 0.5].mean()})["image"]
            .as_tensor()
            .clamp_min(0)
        )
        return turned(image, brain, spacing, draw)


def thicker(
    image: torch.Tensor, brain: torch.Tensor, thickness: float, factor: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Means over `factor` slices each, and how thick they are then."""
    pooled = (F.avg_pool3d(x[None], (1, 1, factor), ceil_mode=True)[0] for x in (image, brain))
    first, second = pooled
    return first, (second > 0.5).float(), thickness * factor


def cut(image: torch.Tensor, brain: torch.Tensor, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Without up to half of the slices, at the top or the bottom."""
    slices = image.shape[-1]
    lost = int(draw.uniform(0, 0.5) * slices)
    kept = slice(lost, slices) if draw.random() < 0.5 else slice(0, slices - lost)
    return image[..., kept], brain[..., kept]


def turned(
    image: torch.Tensor, brain: torch.Tensor, spacing: list[float], draw: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirrored, turned, scaled, sheared and moved, on the network's grid, of the whole head or of a part of it."""
    extent = np.array(image.shape[1:]) * spacing
    angles = draw.uniform(-0.45, 0.45, 3) * (draw.random() < 0.7)
    scale = draw.uniform(0.8, 1.25) * draw.uniform(0.94, 1.06, 3)
    matrix = create_rotate(3, angles)[:3, :3] @ create_scale(3, scale)[:3, :3]
    matrix = matrix @ create_shear(3, draw.uniform(-0.06, 0.06, 6))[:3, :3]
    if draw.random() < 0.5:
        matrix = matrix @ np.diag([-1, 1, 1])
    part = draw.uniform(0.5, 0.95, 3) if draw.random() < 0.65 else draw.uniform(0.97, 1.1, 3)
    wanted = np.maximum(LEAST, FACTOR * (extent * part / scale / SPACING / FACTOR).round())
    size = [int(n) for n in wanted]
    target = np.array(size) * SPACING
    slack = np.abs(extent - target) / 2 * draw.uniform(-1, 1, 3)
    # from the target's cube of [-1, 1] to that of the source; PyTorch names the axes from the last one on
    theta = np.concatenate(
        [matrix * (target / 2)[None] / (extent / 2)[:, None], (slack / (extent / 2))[:, None]], axis=1
    )
    theta = theta[::-1, [2, 1, 0, 3]].copy()
    grid = F.affine_grid(torch.from_numpy(theta).float()[None], [1, 1, *size], align_corners=False)
    both = F.grid_sample(torch.cat([image, brain])[None].float(), grid, align_corners=False)
    return as_input(both[:, :1]), both[:, 1:]


def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Soft Dice and cross-entropy."""
    dice: torch.Tensor = DiceLoss(sigmoid=True, soft_label=True)(logits, target)
    return dice + F.binary_cross_entropy_with_logits(logits, target)


def train(
    datalist: str,
    others: str,
    steps: int = 1900,
    seed: int = 0,
    learning_rate: float = 2e-3,
    output: str = WEIGHTS,
    cache_dir: str | None = None,
    initial_weights: str | None = None,
) -> None:
    """Learn, beginning with other weights if they are given, and write the weights in float16."""
    cache = cache_dir or bundles_cache()
    data = Heads(list(heads(datalist, others, "training")), cache, seed)
    torch.manual_seed(seed)
    network = for_training(declared("brain_def"), "cpu", initial_weights)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
    # so that how long a training is to last can be decided late: only its last part depends on it
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / WARM_UP, (steps - n) / (DECAY * steps))
    )
    kept, begun = Path(f"{output}.training"), 0
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        begun = state.pop("step")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    precision, seen, begin = fastest_precision("cpu"), [], time.process_time()
    for step in (bar := tqdm(range(begun, steps), "training", initial=begun, total=steps)):
        x, target = data(step)
        with autocast("cpu", precision):
            logits = network(x)
        logits = logits.float()[(..., *(slice(0, n) for n in target.shape[2:]))]
        value = loss_of(logits, target)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen.append(value.item())
        if (step + 1) % CHECKPOINT == 0:
            bar.write(f"{step + 1}: {np.mean(seen[-CHECKPOINT:]):.4f}, {time.process_time() - begin:.0f} s")
            write_tensors(kept, {"step": step + 1} | {name: part.state_dict() for name, part in parts.items()})
    write_tensors(Path(output), {name: value.half() for name, value in network.state_dict().items()})
    kept.unlink(missing_ok=True)


if __name__ == "__main__":
    fire.Fire(train)
