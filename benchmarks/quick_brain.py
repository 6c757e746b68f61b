"""The network that finds the brain sooner than HD-BET, taught by HD-BET's masks.

    python benchmarks/quick_brain.py --datalists "['a.json','b.json']" [--steps 6000] [--batch_size 8] [--learning_rate 0.002]
        [--seed 0] [--output bundle/models/brain.pt] [--record_path benchmarks/quick_brain.json]

Each datalist is a source: volumes with a skull, of any sequence. Its training section teaches, its test section
measures; readers' lesions are looked at there alone. HD-BET's masks are made first, on a GPU where there is one, and kept in
`cache_dir`. Printed and written to `record_path` are, for each source, the mean and lowest Dice to HD-BET's masks, on the
volumes' own grids, of what the network marks itself; how often HD-BET would take over; how much of the lesions that HD-BET's
mask holds is kept; and the seconds that both took, without what was kept.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    RandAffined,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandHistogramShiftd,
    ResizeWithPadOrCropd,
)
from monai.utils import set_determinism
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.bundle import parsed
from scripts.device import autocast, default_device, fastest_precision
from scripts.files import replacing, write
from scripts.images.brain import ExtractBraind
from scripts.images.heads import boxed
from scripts.images.masks import load_mask
from scripts.images.quick_brain import ExtractBrainQuicklyd
from scripts.learning.datalists import read_datalist

SIZE = (96, 112, 96)
"""Of what the network learns from: 23 x 27 x 23 cm."""


def volumes_of(datalist: str, section: str, cache_dir: str) -> list[dict[str, Any]]:
    """``image``, of one channel, and HD-BET's ``foreground`` of the volumes, on their grids, and their ``mask``'s path."""
    parser = parsed("quick_brain", foreground={"_target_": "scripts.images.brain.ExtractBraind", "keys": "image"})
    parser["foreground"] |= {"cache_dir": cache_dir}
    parser["num_channels"] = 1
    steps = parser.get_parsed_content("preprocessing").transforms
    until = next(n for n, step in enumerate(steps) if isinstance(step, ExtractBraind))
    prepare = Compose(steps[: until + 1])
    found = []
    for item in tqdm(read_datalist(datalist, section), f"{Path(datalist).stem}, {section}", unit="volume"):
        try:
            volume = prepare({k: v for k, v in item.items() if k in ("image", "spacing")})
        except RuntimeError as error:
            print(f"left out: {error}")
            continue
        found.append({key: volume[key] for key in ("image", "foreground")} | {"mask": item.get("mask")})
    return found


class Heads(Dataset):
    """``{"image", "label"}``, each ``(1, *SIZE)``, of volumes as the network gets them."""

    def __init__(self, volumes: list[dict[str, Any]], augmentation: Compose) -> None:
        self.augmentation, self.pairs = augmentation, []
        for volume in volumes:
            x, box = boxed(volume["image"][:1], ExtractBrainQuicklyd.quick_spacing, "cpu")
            brain = F.interpolate(volume["foreground"].as_tensor()[box][None].float(), x.shape[2:], mode="area")
            self.pairs.append((x[0].half(), brain[0].half()))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image, label = (a.float() for a in self.pairs[i])
        item = self.augmentation({"image": image, "label": label})
        x = item["image"]
        # as the network's input is, whatever was changed
        return {"image": (x - x.mean()) / x.std().clamp_min(1e-6), "label": item["label"]}


def augmentation(seed: int) -> Compose:
    """Mirrored, turned, stretched, of another contrast, uneven, blurred and noisy; then of one size."""
    both = ["image", "label"]
    return Compose(
        [
            RandFlipd(both, prob=0.5, spatial_axis=0),
            RandAffined(
                both,
                prob=0.8,
                rotate_range=(0.3, 0.2, 0.2),
                scale_range=0.15,
                shear_range=0.05,
                translate_range=6,
                mode="bilinear",
                padding_mode="border",
            ),
            RandHistogramShiftd("image", num_control_points=(5, 8), prob=0.5),
            RandBiasFieldd("image", prob=0.4, coeff_range=(0.0, 0.2)),
            RandGaussianSmoothd("image", prob=0.3, sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2), sigma_z=(0.3, 1.5)),
            RandGaussianNoised("image", prob=0.4, std=0.15),
            ResizeWithPadOrCropd(both, SIZE),
        ]
    ).set_random_state(seed)


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two masks."""
    return 2 * float((a & b).sum()) / max(1, int(a.sum()) + int(b.sum()))


def judged(volumes: list[dict[str, Any]], quick: ExtractBrainQuicklyd, hd_bet: ExtractBraind) -> dict[str, Any]:
    """What is written of a source's volumes that were left out."""
    scores, kept, took_over = [], [], 0
    seconds: dict[str, list[float]] = {"quick": [], "HD-BET": []}
    for volume in tqdm(volumes, "left out", unit="volume"):
        image: MetaTensor = volume["image"][:1]
        expected = volume["foreground"].as_tensor() > 0
        begin = time.perf_counter()
        mask = quick.quick(image)
        seconds["quick"].append(time.perf_counter() - begin)
        if len(seconds["HD-BET"]) < 3:
            begin = time.perf_counter()
            hd_bet._segment(image)
            seconds["HD-BET"].append(time.perf_counter() - begin)
        if mask is None:
            took_over += 1
            continue
        scores.append(dice(mask, expected))
        if volume["mask"] is not None:
            lesion = (load_mask(volume["mask"], image).as_tensor() > 0) & expected
            if bool(lesion.any()):
                kept.append(float((lesion & mask).sum() / lesion.sum()))
    found: dict[str, Any] = {"volumes": len(volumes), "HD-BET took over": took_over}
    if scores:
        found |= {"mean Dice": round(float(np.mean(scores)), 4), "lowest Dice": round(min(scores), 4)}
    if kept:
        found |= {"lesion kept, mean": round(float(np.mean(kept)), 4), "lesion kept, least": round(min(kept), 4)}
    return found | {f"seconds, {name}": round(float(np.median(of)), 2) for name, of in seconds.items() if of}


def main(
    datalists: list[str],
    steps: int = 6000,
    batch_size: int = 8,
    learning_rate: float = 0.002,
    seed: int = 0,
    workers: int | None = None,
    output: str = str(ROOT / "bundle" / "models" / "brain.pt"),
    record_path: str = str(ROOT / "benchmarks" / "quick_brain.json"),
    cache_dir: str = str(ROOT / "bundle" / "cache"),
) -> None:
    """Learn, judge and write; see the module."""
    set_determinism(seed)
    device = default_device()
    precision = fastest_precision(device)
    sources = [datalists] if isinstance(datalists, str) else list(datalists)
    taught = [volume for source in sources for volume in volumes_of(source, "training", cache_dir)]
    data = Heads(taught, augmentation(seed))
    network = parsed("quick_brain").get_parsed_content("brain_def").to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = DiceCELoss(sigmoid=True)
    draws = RandomSampler(data, replacement=True, num_samples=steps * batch_size)
    number = (8 if device.type == "cuda" else 0) if workers is None else workers
    batches = DataLoader(data, batch_size, sampler=draws, num_workers=number)
    network.train()
    for batch in (bar := tqdm(batches, "learning", unit="step")):
        x, label = (batch[key].to(device) for key in ("image", "label"))
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            logits = network(x).float()
        error = loss(logits, label)
        error.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{error.item():.4f}", refresh=False)
    network.eval()
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, partial)
    quick, hd_bet = ExtractBrainQuicklyd("image", network), ExtractBraind("image")
    record: dict[str, Any] = {
        "machine": torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "seed": seed,
        "parameters": sum(p.numel() for p in network.parameters()),
        "volumes learned from": len(data),
        "steps": steps,
        "batch_size": batch_size,
    }
    for source in sources:
        record[Path(source).stem] = judged(volumes_of(source, "test", cache_dir), quick, hd_bet)
    write(Path(record_path), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
