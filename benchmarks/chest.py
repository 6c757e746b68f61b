"""Healthy counterparts of radiographs, judged by another classifier; algorithms side by side; and a figure.

    python benchmarks/chest.py --datalist FILE [--training FILE] [--judge FILE] [--slow 8] [--minutes 3] [--images N] [--seed 0]
        [--output benchmarks/chest_effusion]

`datalist` holds the validation and test images; `training`, by default the same file, what the judge and the VAE learn from.

The judge is a DenseNet that learned from the training images by itself: another architecture, seed and augmentation draw, and
no noise. What an algorithm changes until *our* classifier says healthy may be a trick on that one; the judge was never asked
for a gradient. Its weights are read from `judge`, or trained for `minutes` and kept in the cache. The VAE learns from `images`,
by default as many as our three networks.

Maps are read in the lungs where the model declares such a region. Thresholds are Otsu's of the diseased validation images, so
no region that a reader drew chooses anything. `slow` diseased and as many healthy test images, those with regions first, and
half as many for the threshold, are what algorithms of up to a minute an image see; the others' rows on these are given too.
With 0 those algorithms are left out.

Writes into the folder `output`: maps.csv and counterparts.csv, chest.json with the seed and the thresholds, and
counterparts.png, ten diseased test images (those with regions first).
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from algorithms import DEFAULT, FAMILIES, REFERENCE, Algorithms
from keeping import ROOT, kept
from matplotlib.figure import Figure
from monai.networks.nets import DenseNet
from packs import Slices
from rivals import read as read_change
from rivals import reader_of
from sklearn.metrics import roc_auc_score
from tqdm import tqdm
from tuning import our_images

from scripts import DISEASED, HEALTHY
from scripts.bundle import parsed
from scripts.device import autocast, fastest_precision
from scripts.files import write
from scripts.fingerprints import fingerprint
from scripts.judging.bootstrap import measured
from scripts.judging.cases import SliceCase
from scripts.judging.metrics import METRICS
from scripts.judging.on_input import cases_of
from scripts.judging.readings import COUNTERFACTUAL, PAPER, baseline_readings, readings
from scripts.judging.tables import Result, table
from scripts.judging.thresholds import label_threshold
from scripts.learning.datalists import Item, read_datalist
from scripts.method.maps import gated_counterfactual, slice_score
from scripts.method.slices import Findings
from scripts.weights import weights_digest

MODEL = "chest"
VAE = "VAE of healthy slices"
DDPM = FAMILIES["DDPM, guided"].name("DDPM, guided", FAMILIES["DDPM, guided"].published)
SLOW = (REFERENCE, DDPM)
HEALING = {
    "found": "diseased that the judge calls diseased",
    "healed": "of these, called healthy afterwards",
    "distance": "mean change",
    "outside": "mean change outside the lungs",
    "diseased": "mean change, diseased",
    "healthy": "mean change, healthy",
    "ratio": "healthy / diseased",
}
"""Columns of the counterparts' table; intensities are from -1 to 1."""


class Images:
    """A split's radiographs: ``x`` ``(N, C, H, W)``, bool ``roi`` ``(N, 1, H, W)`` in which maps are read, ``labels`` ``(N,)``.

    Args:
        items: of a datalist, one label each.
        config: the model's.
    """

    def __init__(self, items: Sequence[Item], config: Any) -> None:
        self.items = [item for item in items if item["label"] in (HEALTHY, DISEASED)]
        self.mask_key = config.get_parsed_content("mask_key")
        preprocessing = config.get_parsed_content("preprocessing")
        self.volumes = [
            preprocessing({"image": item["image"]}) for item in tqdm(self.items, "preprocessing", unit="image")
        ]
        self.x, roi, inside = (
            torch.stack([volume[key].as_tensor()[..., 0].float() for volume in self.volumes])
            for key in ("image", self.mask_key, "foreground")
        )
        self.roi, self.foreground = roi >= 0.5, inside >= 0.5
        self.labels = torch.tensor([item["label"] for item in self.items])

    def cases(self, maps: dict[str, torch.Tensor], scores: dict[str, torch.Tensor]) -> list[SliceCase]:
        """Maps ``(N, 1, H, W)`` and scores ``(N,)`` as cases on the grids of the files."""
        cases = []
        for n, (item, volume) in enumerate(zip(self.items, self.volumes, strict=True)):
            of_image = ({name: v[n : n + 1] for name, v in values.items()} for values in (maps, scores))
            cases += cases_of(item, volume, *of_image, mask_key=self.mask_key)[0]
        return cases


def chosen(items: Sequence[Item], each: int, seed: int) -> list[Item]:
    """`each` diseased items, those with a mask first, and as many healthy ones, drawn by the seed."""
    shuffled = random.Random(seed).sample(list(items), len(items))
    diseased = [item for item in shuffled if item["label"] == DISEASED]
    diseased.sort(key=lambda item: "mask" not in item)
    return diseased[:each] + [item for item in shuffled if item["label"] == HEALTHY][:each]


def judge_def() -> DenseNet:
    """A classifier unlike the bundle's, of 0.4 million parameters."""
    return DenseNet(2, 1, 2, init_features=32, growth_rate=16, block_config=(4, 6, 8, 6), dropout_prob=0.1)


def trained_judge(training: str, cache_dir: str, minutes: float, seed: int) -> dict[str, torch.Tensor]:
    """The weights of a judge after as many minutes on the training images, classes equally often.

    The rate falls to 0 and the weights are those at the end, so no image chose when to stop.
    """
    values = {"datalist": training, "cache_dir": cache_dir, "class_balanced": True, "batch_size": 16, "num_workers": 0}
    config = parsed(MODEL, "train", "train_chest", **values, seed=seed + 1000)
    torch.manual_seed(seed + 1000)
    network = judge_def().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    begin = time.monotonic()
    with tqdm(total=round(60 * minutes), desc="judge", unit="s") as bar:
        for batch in config.get_parsed_content("train#dataloader"):
            passed = (time.monotonic() - begin) / (60 * minutes)
            bar.update(min(round(60 * minutes * passed), bar.total) - bar.n)
            if passed >= 1:
                break
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - passed)
            optimizer.zero_grad()
            with autocast("cpu", fastest_precision("cpu")):
                logits = network(batch["image"].contiguous(memory_format=torch.channels_last))
            loss(logits.float(), batch["label"]).backward()
            optimizer.step()
    return network.eval().state_dict()


def judge_of(path: str | None, training: str, cache_dir: str, minutes: float, seed: int) -> torch.nn.Module:
    """The judge with the weights in `path`, or as `trained_judge` makes it, once."""
    network = judge_def()
    if path is None:
        made_from = repr([training, minutes, seed, Path(training).stat().st_mtime_ns])
        kept_as = Path(cache_dir) / f"judge-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.pt"
        network.load_state_dict(kept(kept_as, lambda: trained_judge(training, cache_dir, minutes, seed)))
    else:
        network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def p_diseased(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A judge's probabilities ``(N,)``."""
    with torch.no_grad():
        return torch.cat([network(b).softmax(dim=1)[:, DISEASED] for b in x.split(16)])


def healing(
    x: torch.Tensor,
    healthy: torch.Tensor,
    roi: torch.Tensor,
    labels: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
) -> dict[str, float]:
    """What an algorithm did to images, see `HEALING`.

    Args:
        x, healthy: images and their counterparts ``(N, C, H, W)``.
        roi: bool ``(N, 1, H, W)``; where it is all of the image, nothing is outside.
        labels: ``(N,)``.
        before, after: the judge's p(diseased). Only diseased images that it calls so before can be healed.
    """
    change = (x - healthy).abs().mean(dim=1, keepdim=True)
    of_image = change.mean(dim=(1, 2, 3))
    sick = labels == DISEASED
    found = sick & (before >= 0.5)
    values = {
        "found": float(found.sum() / sick.sum()),
        "healed": float((after[found] < 0.5).float().mean()),
        "distance": float(of_image.mean()),
        "outside": float(change[~roi].mean()),
        "diseased": float(of_image[sick].mean()),
        "healthy": float(of_image[~sick].mean()),
    }
    values["ratio"] = values["healthy"] / max(values["diseased"], 1e-9)
    return {name: value for name, value in values.items() if np.isfinite(value)}


def read(
    images: Images, healthy: torch.Tensor, p: torch.Tensor, median_size: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Maps and scores of counterparts, read by both polarities, gated, and as the paper does."""
    given: Findings = {"counterfactual": healthy, "probability": p}
    found = {}
    for polarity in ("hyperintense", "both"):
        maps, scores = readings(images.x, given, images.roi, polarity, median_size)
        found[polarity] = maps[COUNTERFACTUAL], scores[COUNTERFACTUAL]
    found[PAPER.removeprefix("counterfactual, ")] = maps[PAPER], scores[PAPER]
    return found


def draw(images: Images, healthy: torch.Tensor, maps: torch.Tensor, path: Path) -> None:
    """Ten diseased images, their counterparts, and the map with the outlines of the roi and of known lesions."""
    cases = images.cases({}, {})
    shown = [n for n, case in enumerate(cases) if case.diseased]
    shown.sort(key=lambda n: cases[n].truth is None)
    shown = shown[:10]
    figure = Figure((1.7 * len(shown), 5.6), layout="constrained")
    axes = figure.subplots(3, len(shown), squeeze=False)
    high = max(float(maps[shown].max()), 1e-6)
    extent = (-0.5, images.x.shape[2] - 0.5, images.x.shape[3] - 0.5, -0.5)
    for n, column in zip(shown, axes.T, strict=True):
        for ax, picture in zip(column, (images.x[n, 0], healthy[n, 0], images.x[n, 0]), strict=True):
            ax.imshow(picture.T, cmap="gray", vmin=-1, vmax=1)
            ax.set(xticks=[], yticks=[])
        a = maps[n, 0].T.numpy()
        column[2].imshow(a, cmap="inferno", vmin=0, vmax=high, alpha=np.clip(2 * a / high, 0, 1))
        styles = ((images.roi[n, 0].numpy(), "white", "dotted"), (cases[n].truth, "#4cc9f0", "solid"))
        for mask, color, line in styles:
            if mask is not None and mask.any() and not mask.all():
                column[2].contour(
                    mask.T, [0.5], colors=color, linewidths=1, linestyles=line, extent=extent, origin="upper"
                )
        column[0].set_title(Path(cases[n].volume).stem, fontsize=6)
    for ax, name in zip(axes[:, 0], ("radiograph", "healthy counterpart", "map"), strict=True):
        ax.set_ylabel(name)
    figure.suptitle(
        "Diseased test images; solid: the lesion as a reader drew it, dotted: where the map is read", fontsize=9
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    write(path, buffer.getvalue())


def splits_of(items: dict[str, list[Item]], config: Any, slow: int, seed: int) -> dict[str, dict[str, Images]]:
    """The images of each split: "all" and, where `slow` is not 0, the "subset" that slow algorithms see too."""
    wanted = {"all": items}
    if slow:
        number = {"validation": -(-slow // 2), "test": slow}
        wanted["subset"] = {split: chosen(items[split], n, seed) for split, n in number.items()}
    return {
        where: {split: Images(of_split, config) for split, of_split in of_where.items()}
        for where, of_where in wanted.items()
    }


def vae_readings(
    splits: dict[str, dict[str, Images]], training: str, algorithms: Algorithms, budget: int, seed: int, weights: Path
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Maps and scores of the VAE by places such as "all test".

    Args:
        splits: see `splits_of`.
        training: the datalist that it learns from.
        algorithms: whose classifier and device it takes.
        budget: in images.
        seed: of its training.
        weights: the path of what it learned; its folder is the cache.
    """
    cache_dir = weights.parent
    data = parsed(MODEL, "train", datalist=training, cache_dir=str(cache_dir)).get_parsed_content("train#dataset")
    x = torch.stack([data[i]["image"] for i in range(len(data))])
    whole = torch.ones_like(x[:, :1], dtype=torch.bool)
    slices = Slices(x, whole, torch.tensor(data.labels), [], [str(n) for n in range(len(x))], None)
    kept_in = (cache_dir, algorithms.device, {}, str(weights))
    reader = reader_of(VAE, slices, algorithms.classifier, budget, seed, *kept_in)

    def mapped(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        a = read_change(reader(images.x, images.roi), images.roi, "hyperintense", 3)
        return a, slice_score(a, images.roi, torch.ones(len(a)))

    return {
        f"{where} {split}": mapped(images) for where, of_where in splits.items() for split, images in of_where.items()
    }


def healed(
    images: Images, counterparts: dict[str, torch.Tensor], p: torch.Tensor, judge: torch.nn.Module, before: torch.Tensor
) -> dict[str, dict[str, float]]:
    """What each algorithm did to the images, as it gives counterparts and gated as they are shown; see `healing`.

    Args:
        images: that the counterparts are of.
        counterparts: by the names of the algorithms.
        p: our p(diseased) of the images.
        judge: the other classifier.
        before: its p(diseased) of them.
    """
    found = {}
    for row, healthy in counterparts.items():
        for name, given in ((row, healthy), (f"{row}, gated", gated_counterfactual(images.x, healthy, p))):
            after = p_diseased(judge, given)
            found[f"{name} ({len(images.x)} images)"] = healing(
                images.x, given, images.roi, images.labels, before, after
            )
    return found


def write_tables(output: Path, counterparts: dict[str, dict[str, float]], quality: dict[str, Result]) -> None:
    """Write counterparts.csv and maps.csv, and print them."""
    of_counterparts: dict[str, Result] = {name: (values, {}) for name, values in counterparts.items()}
    headings = {name: heading for name, (heading, _) in METRICS.items()}
    for results, name, heading, columns in (
        (of_counterparts, "counterparts", "algorithm", HEALING),
        (quality, "maps", "map", headings),
    ):
        _, shown = table(results, output / name, heading, columns)
        print(shown.read_text())
        shown.unlink()


def main(
    datalist: str,
    training: str | None = None,
    judge: str | None = None,
    slow: int = 8,
    minutes: float = 3,
    images: int | None = None,
    seed: int = 0,
    output: str = str(ROOT / "benchmarks" / "chest_effusion"),
    cache_dir: str = str(ROOT / "bundle" / "cache"),
) -> None:
    """See the module."""
    training = training or datalist
    Path(output).mkdir(parents=True, exist_ok=True)
    config = parsed(MODEL, "evaluate", datalist=training, cache_dir=cache_dir)
    median_size, baselines = (config.get_parsed_content(name) for name in ("median_size", "baselines"))
    preprocessing = config.get_parsed_content("preprocessing")
    algorithms = Algorithms(MODEL, device="cpu")
    budget = our_images(MODEL) if images is None else images
    items = {split: read_datalist(datalist, split) for split in ("validation", "test")}
    splits = splits_of(items, config, slow, seed)
    weights = [weights_digest(algorithms.network), weights_digest(algorithms.classifier)]

    def cache(*key: Any) -> Path:
        state = repr([fingerprint(items, preprocessing), weights, seed, *key])
        return Path(cache_dir) / f"chest-{hashlib.sha256(state.encode()).hexdigest()[:16]}.pt"

    second = judge_of(judge, training, cache_dir, minutes, seed)
    vae = kept(
        cache(VAE, budget, slow, Path(training).stat().st_mtime_ns),
        lambda: vae_readings(splits, training, algorithms, budget, seed, cache("VAE weights")),
    )
    counterparts: dict[str, dict[str, float]] = {}
    quality: dict[str, Result] = {}
    thresholds: dict[str, float] = {}
    record: dict[str, Any] = {
        "settings": algorithms.default,
        "seed": seed,
        "minutes": minutes,
        "images": budget,
        "thresholds": thresholds,
    }
    for where, of_where in splits.items():
        cases: dict[str, list[SliceCase]] = {}
        for split, of_split in of_where.items():
            x = of_split.x
            p, of_judge = algorithms.probability(x, [1] * len(x)), p_diseased(second, x)
            maps: dict[str, torch.Tensor] = {}
            scores: dict[str, torch.Tensor] = {"p(diseased)": p, "the judge's p(diseased)": of_judge}
            found: dict[str, torch.Tensor] = {}
            for row in (DEFAULT, *(SLOW if where == "subset" else ())):
                kept_as = cache(row, where, split, slow, algorithms.default if row == DEFAULT else None)
                made = algorithms.run(row, x, of_split.foreground, seed, Path(cache_dir), str(kept_as))
                found[row] = made["healthy"]
                for name, (a, score) in read(of_split, found[row], p, median_size).items():
                    maps[f"{row}, {name}"], scores[f"{row}, {name}"] = a, score
            if split == "test":
                counterparts |= healed(of_split, found, p, second, of_judge)
            if (where, split) == ("all", "test"):
                both = (("ours", p), ("the judge", of_judge))
                record["image AUROC"] = {n: float(roc_auc_score(of_split.labels, values)) for n, values in both}
                shown = gated_counterfactual(x, found[DEFAULT], p)
                draw(of_split, shown, maps[f"{DEFAULT}, hyperintense"], Path(output) / "counterparts.png")
            maps[VAE], scores[VAE] = vae[f"{where} {split}"]
            of_baselines = baseline_readings(x, of_split.roi, baselines)
            maps, scores = maps | of_baselines[0], scores | of_baselines[1]
            cases[split] = of_split.cases(maps, scores)
        for method in maps:
            threshold = label_threshold(cases["validation"], method)
            reached = measured(cases["test"], method, threshold, "foreground")
            name = f"{method} ({len(cases['test'])} images)"
            quality[name], thresholds[name] = (reached.values, reached.intervals), threshold
    record |= {"counterparts": counterparts, "maps": {name: values for name, (values, _) in quality.items()}}
    write(Path(output) / "chest.json", (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record["image AUROC"]))
    write_tables(Path(output), counterparts, quality)


if __name__ == "__main__":
    fire.Fire(main)
