"""The network that finds the lungs in a frontal radiograph, taught by masks that need no reader.

    python benchmarks/lungs.py --datalist FILE [--steps 1200] [--seed 0] [--output bundle/models/chest/lungs.pt]

In radiographs labelled healthy, the lungs are what is dark, large, on both sides of the middle and touches no border: where
that gives two lungs that look like lungs, it is a mask, and where not, the image is left out. The network learns them with
fluid painted over the lower lung, so that it also finds lungs that fluid hides. No reader's mask is used, so there is no truth
to measure against: what is printed is the Dice to the masks of the validation images, with and without painted fluid.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from keeping import ROOT
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandGaussianNoised, RandGaussianSmoothd
from monai.utils import set_determinism
from scipy import ndimage
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import convex_hull_image, disk, opening
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm import tqdm

from scripts import HEALTHY
from scripts.bundle import parsed
from scripts.files import write
from scripts.learning.datalists import read_datalist
from scripts.weights import write_tensors

FACTORS = (0.78, 0.85, 0.92, 1.0, 1.08, 1.16)
"""Of Otsu's threshold of the body, as one that fits all exposures is not there."""


def lungs_of(x: np.ndarray) -> np.ndarray | None:
    """The lungs of a healthy radiograph, each its own convex hull, or None where nothing looks like two lungs.

    Args:
        x: ``(W, H)``, first axis to the patient's left, second to the feet, from -1 to 1.

    Returns:
        bool, the same shape.
    """
    smooth = gaussian((x + 1) / 2, 1.2)
    width, height = x.shape
    inner = np.zeros(x.shape, bool)
    inner[3:-3, 4:-4] = True
    threshold = threshold_otsu(smooth[inner & (smooth > 0.08)])
    found: list[tuple[float, np.ndarray]] = []
    for factor in FACTORS:
        parts = label(opening((smooth < threshold * factor) & inner, disk(1.5)))
        rim = np.unique(parts[inner & ~ndimage.binary_erosion(inner)])
        regions = [r for r in regionprops(parts) if r.label not in rim and r.area > 0.035 * x.size]
        regions.sort(key=lambda r: -r.area)
        sides = [[r for r in regions if (r.centroid[0] < width / 2) == left] for left in (True, False)]
        if all(sides) and _look_like_lungs(*(side[0] for side in sides), width, height):
            mask = np.zeros(x.shape, bool)
            for first, *_ in sides:
                mask[first.slice] |= convex_hull_image(first.image)
            # large and full is good, as a low threshold leaves out the bases
            found.append((sum(side[0].solidity for side in sides) + 3 * mask.mean(), mask))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _look_like_lungs(a: Any, b: Any, width: int, height: int) -> bool:
    """Two regions of about one size and height, neither small nor ragged."""
    small, large = sorted((a.area, b.area))
    tops, bottoms = (abs(a.bbox[n] - b.bbox[n]) for n in (1, 3))
    return bool(
        small > 0.6 * large
        and large < 0.25 * width * height
        and min(r.bbox[3] - r.bbox[1] for r in (a, b)) > 0.36 * height
        and abs(a.centroid[1] - b.centroid[1]) < 0.09 * height
        and tops < 0.1 * height
        and bottoms < 0.15 * height
        and min(a.solidity, b.solidity) > 0.75
    )


def with_fluid(x: torch.Tensor, mask: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """A radiograph in which one lung or both are white below a level that rises to the chest wall, as with an effusion.

    Args:
        x: ``(1, W, H)`` as in `lungs_of`.
        mask: of both lungs, the same shape.
        draw: of random numbers.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    painted, (_, width, height) = x.clone(), x.shape
    across, down = (torch.arange(n, dtype=torch.float32) for n in (width, height))
    for left in (True, False):
        lung = mask[0].clone()
        lung[(width // 2 if left else 0) : (width if left else width // 2)] = 0
        rows, columns = (torch.nonzero(lung.sum(dim=d)).flatten() for d in (0, 1))
        if len(rows) == 0 or uniform(0, 1) < 0.35:
            continue
        level = float(rows[-1]) - uniform(0.1, 0.8) * len(rows)
        # from the middle of the chest (0) to its wall (1)
        outwards = (columns[-1] - across) / len(columns) if left else (across - columns[0]) / len(columns)
        surface = level - uniform(0, 0.25) * len(rows) * outwards.clamp(0, 1) ** 3
        below = torch.sigmoid((down - surface[:, None]) / uniform(0.5, 4))
        beyond = ndimage.distance_transform_edt(lung.numpy() == 0) < uniform(0.5, 8)
        around = torch.from_numpy(gaussian(beyond.astype(np.float32), uniform(0.7, 3)))
        white = float(x.quantile(uniform(0.75, 0.97)))
        painted[0] += below * around * uniform(0.5, 1) * (white - painted[0])
    return painted


class LungImages(Dataset):
    """``{"image", "mask"}``, each float32 ``(1, W, H)``, of images in which `lungs_of` found lungs.

    Args:
        items: of a datalist, labelled healthy.
        preprocessing: the model's.
        augmentation: of both; without, images come as they are.
        fluid: paint it.
        seed: of the fluid.
    """

    def __init__(
        self, items: list[dict[str, Any]], preprocessing: Compose, augmentation: Compose | None, fluid: bool, seed: int
    ) -> None:
        self.augmentation, self.fluid = augmentation, fluid
        self.draw = torch.Generator().manual_seed(seed)
        self.pairs = []
        for item in tqdm(items, "lungs", unit="image"):
            image = preprocessing({"image": item["image"]})["image"].as_tensor()[..., 0].float()
            mask = lungs_of(image[0].numpy())
            if mask is not None:
                self.pairs.append((image, torch.from_numpy(mask)[None].float()))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image, mask = self.pairs[i]
        if self.fluid:
            image = with_fluid(image, mask, self.draw)
        item = {"image": image, "mask": mask}
        return item if self.augmentation is None else self.augmentation(item)


def augmentation(seed: int) -> Compose:
    """Turned, moved and scaled a little, with another exposure, sharpness and noise."""
    return Compose(
        [
            RandAffined(
                ["image", "mask"],
                prob=0.9,
                rotate_range=0.15,
                translate_range=8,
                scale_range=0.2,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandAdjustContrastd("image", prob=0.7, gamma=(0.6, 1.7)),
            RandGaussianSmoothd("image", prob=0.3, sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2)),
            RandGaussianNoised("image", prob=0.5, std=0.08),
        ]
    ).set_random_state(seed)


def dice_of(network: torch.nn.Module, data: LungImages) -> float:
    """The mean Dice of the network's masks to those of the images."""
    metric = DiceMetric()
    with torch.no_grad():
        for pair in data:
            metric((network(pair["image"][None]) > 0).float(), pair["mask"][None])
    return float(metric.aggregate())


def main(
    datalist: str,
    steps: int = 1200,
    seed: int = 0,
    output: str = str(ROOT / "bundle" / "models" / "chest" / "lungs.pt"),
) -> None:
    """Learn from the healthy images in training, print the Dice to the masks of those in validation, and write the weights."""
    set_determinism(seed)
    config: ConfigParser = parsed("chest", roi={"_target_": "Identityd", "keys": "image"})
    preprocessing = config.get_parsed_content("preprocessing")
    healthy = {
        split: [item for item in read_datalist(datalist, split) if item["label"] == HEALTHY]
        for split in ("training", "validation")
    }
    training = LungImages(healthy["training"], preprocessing, augmentation(seed), True, seed)
    network = config.get_parsed_content("lungs_def")
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = DiceCELoss(sigmoid=True)
    sampler = RandomSampler(training, replacement=True, num_samples=16 * steps)
    for batch in (bar := tqdm(DataLoader(training, batch_size=16, sampler=sampler), "training")):
        optimizer.zero_grad()
        value = loss(network(batch["image"]), batch["mask"])
        value.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
    network.eval()
    found = {"seed": seed, "steps": steps, "parameters": sum(p.numel() for p in network.parameters())}
    found |= {"images in training": len(healthy["training"]), "of these with a mask": len(training)}
    for name, fluid in (("Dice", False), ("Dice with painted fluid", True)):
        left_out = LungImages(healthy["validation"], preprocessing, None, fluid, seed)
        found |= {"images in validation with a mask": len(left_out), name: round(dice_of(network, left_out), 3)}
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, network.state_dict())
    write(ROOT / "benchmarks" / "lungs.json", (json.dumps(found, indent=2) + "\n").encode())
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
