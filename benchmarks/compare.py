"""Algorithms side by side: the same weights, patients, preprocessing and metrics; quality and cost in one table.

    python benchmarks/compare.py --name NAME --datalist FILE [--model brats] [--device cuda] [--images 240000] [--seed 0]
        [--results DIR] [--beside NAME --beside_datalist FILE] [--settings_of FILE]

Thresholds, and the knobs of every algorithm that has some, are chosen on the validation patients; every number is of the test
patients. What takes a second a slice sees all their slices. The reference's algorithm and its kin take up to a minute a slice
on a CPU: they see a subset, drawn with `seed`, two slices a patient, on which everything else is reported too. Rivals are
trained on as many images as our configs give the trainings of all three networks, or on `images`.

All maps come from a pack, see `packs`, which is made of the datalist when it isn't there. A machine without the images makes
the maps of a pack with `--pack FILE` instead of `--datalist`, and no table. What was made is kept in `results`, so that a run
that was stopped, or was made elsewhere, goes on; `only` makes what begins with these letters: "ours", "rival: PatchCore",
"family: reference", "costs". It is found again by weights, data and settings; a change of the code that makes it wants an empty
folder. The costs are those of the machine that takes them, and want quiet cores: of the bundle's networks each in a process of
its own, with the batch and layout of the algorithm itself, of rivals for sixteen slices at once.

`settings_of` is the table of another data set, a JSON that this program wrote of the same weights. Then noise levels, scales
and knobs of training are those that were chosen there, as our own settings were, and nothing is tried here. Readings and
thresholds are still chosen here. Seconds and memory are those of that table too, on its machine.

`beside` names another data set whose pack is in `results`: paired differences with the reference and with brightness are told
of the subsets of both, as of one. Maps of it that are not there are made, in the settings of `settings_of` if given, but no
rival's.

Writes benchmarks/compare/NAME.json and .png; `python benchmarks/tables.py` makes the tables of it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import fire
import numpy as np
import torch
from algorithms import DEFAULT, FAMILIES, PAPERS_SETTING, REFERENCE, STUDENT
from keeping import ROOT, machine, versions
from matplotlib.figure import Figure
from packs import Split, write_pack
from rivals import RIVALS, SHARE
from taught import SUPERVISED
from tqdm import tqdm
from tuning import NUMBERS, Maps

from scripts.bundle import bundle_version, declared
from scripts.device import default_device, fastest_precision
from scripts.files import write
from scripts.judging.bootstrap import Measured, measured
from scripts.judging.cases import SliceCase
from scripts.judging.readings import COUNTERFACTUAL, OURS, PAPER, readings
from scripts.judging.sums import MIN_LESION_PIXELS, dice
from scripts.judging.thresholds import best_threshold, label_threshold
from scripts.method.maps import combined_map, gate, slice_score

COMPARED = ("pixel_ap", "dice_threshold", "image_auroc", "aupimo")
ALONE = "ours, counterfactual alone"
"""The default without the student's part of the map, as every other algorithm's counterfactual is read."""
PUBLISHED = f"{REFERENCE}, the paper's map"
"""The reference as it was published, its reading included."""
TUNED = "reference, tuned"
"""Of several data sets, the reference in the setting that was chosen for each."""
SIZES = {"to 250": (MIN_LESION_PIXELS, 250), "250 to 1,000": (250, 1000), "above 1,000": (1000, np.inf)}
"""Lesion pixels of a slice."""


def by_size(cases: list[SliceCase], method: str, threshold: float) -> dict[str, Any]:
    """The mean Dice of slices by the pixels of their lesion, and how many slices that is."""
    found: dict[str, list[float]] = {name: [] for name in SIZES}
    for case in cases:
        values, truth = case.values(method, "foreground"), case.lesion("foreground")
        for name, (low, high) in SIZES.items():
            if low < truth.sum() <= high:
                found[name].append(dice(values > threshold, truth))
    return {name: {"slices": len(d), "dice": float(np.mean(d)) if d else None} for name, d in found.items()}


def brightness(maps: Maps) -> tuple[str, str, str]:
    """The names of the plain intensity, of the best baseline of brightness, and of that with our classifier's gate.

    The last is what our map is without counterfactual and student.
    """
    names = [b.name for b in declared("baselines", *maps.overlays) if not b.on_networks_grid]
    return names[0], names[-1], f"{names[-1]}, gated"


class Maker:
    """The maps and scores of every method, one split after another.

    Args:
        maps: what they are read from.
        whole: make all rows; else ours and the reference's alone, which `together` reads.

    ``costs`` says what is known of each method's cost, ``on_all`` which methods saw all slices.
    """

    def __init__(self, maps: Maps, whole: bool = True) -> None:
        self.maps, self.whole = maps, whole
        self.costs: dict[str, dict[str, Any]] = {}
        self.on_all: list[str] = []
        self.tuned: dict[str, Any] = {}

    def of(self, split: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Maps ``(N, 1, H, W)`` and scores ``(N,)`` of a split's slices, zeros for slices that a method did not see."""
        made, slices = self.maps, self.maps.splits[split]
        p, subset = made.probability[split], made.subset[split]
        maps: dict[str, torch.Tensor] = {}
        scores: dict[str, torch.Tensor] = {"number": torch.arange(len(slices.x)), "p(diseased)": p}
        families = {family: made.tuned_settings(family) for family in (FAMILIES if self.whole else ("reference",))}
        self.tuned |= families
        shown = [name for found in families.values() for name in found["shown"]]
        for name in (DEFAULT, *([PAPERS_SETTING] if self.whole else []), *shown):
            which = torch.ones_like(subset) if name == DEFAULT else subset
            given = made.counterfactuals(name, split)
            x, inside = slices.x[which], slices.foreground[which]
            found = {"counterfactual": given["healthy"], "probability": p[which]}
            labels = {COUNTERFACTUAL: name, PAPER: f"{name}, the paper's map"}
            if name == DEFAULT and split in made.learned:
                found |= made.learned[split]
                labels |= {OURS: DEFAULT, COUNTERFACTUAL: ALONE}
            read = readings(x, found, inside, *made.reading)
            for method, label in labels.items():
                maps[label], scores[label] = (
                    torch.zeros(len(slices.x), 1, *slices.x.shape[2:]),
                    torch.zeros(len(slices.x)),
                )
                maps[label][which], scores[label][which] = read[0][method], read[1][method]
                self._note(
                    label, name == DEFAULT, network_calls=given["network"], gradients=given["gradient"], row=name
                )
        learned = {SUPERVISED: made.of_masks()[split]} if self.whole else {}
        if split in made.learned:
            learned[STUDENT] = made.learned[split]
        for name, of_network in learned.items():
            maps[name] = combined_map(slices.x, {**of_network, "probability": p}, slices.foreground, *made.reading)
            scores[name] = slice_score(maps[name], slices.foreground, p)
            self._note(name, True, network_calls=1, gradients=0, row=STUDENT)
        for name in RIVALS if self.whole else ():
            of_rival = made.of_rival(name)
            maps[name], scores[name] = of_rival[split]
            self.tuned[name] = {"tried": of_rival["tried"], "chosen": of_rival["chosen"]}
            self._note(name, True, **made.cost_of_rival(name))
        return maps, scores

    def _note(self, name: str, on_all: bool, **cost: Any) -> None:
        self.costs[name] = cost
        if on_all and name not in self.on_all:
            self.on_all.append(name)


def told(found: Measured, by_labels: Measured) -> dict[str, str]:
    """Values, with their intervals where they have one, as tables have them."""

    def cell(reached: Measured, metric: str) -> str:
        value, ends = f"{reached.values[metric]:.3f}", reached.intervals.get(metric)
        return value if ends is None else f"{value} ({ends[0]:.2f}-{ends[1]:.2f})"

    cells = {metric: cell(found, metric) for metric in found.values}
    if "dice_threshold" in by_labels.values:
        cells["dice_labels"] = cell(by_labels, "dice_threshold")
    return cells


def judged(
    cases: Mapping[str, list[SliceCase]], methods: list[str], against: tuple[str, ...]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each method, and how methods differ, on these cases of validation and test."""
    rows, record = [], {"thresholds": {}, "thresholds_without_masks": {}, "dice_by_lesion_pixels": {}}
    found: dict[str, Measured] = {}
    for method in methods:
        threshold = best_threshold(cases["validation"], method, "foreground")
        from_labels = label_threshold(cases["validation"], method, 3 if method in (DEFAULT, STUDENT) else 2)
        found[method] = measured(cases["test"], method, threshold, "foreground")
        by_labels = measured(cases["test"], method, from_labels, "foreground")
        record["thresholds"][method], record["thresholds_without_masks"][method] = threshold, from_labels
        record["dice_by_lesion_pixels"][method] = by_size(cases["test"], method, threshold)
        rows.append({"slices": len(cases["test"]), "method": method, **told(found[method], by_labels)})
        tqdm.write(f"{method}: AP {rows[-1]['pixel_ap']}, Dice {rows[-1]['dice_threshold']}")
    record["differences"] = {
        f"{ours} - {other}": {m: found[ours].minus(found[other], m) for m in COMPARED}
        for ours in (DEFAULT, ALONE, STUDENT)
        for other in against
        if ours in found and other in found
    }
    return rows, record


class Found(NamedTuple):
    """What was made of a data set."""

    maps: Maps
    maker: Maker
    cases: dict[str, list[SliceCase]]
    """Of validation and test, with the map and score of every method."""

    def of_subset(self, split: str) -> list[SliceCase]:
        """The cases of the slices that every algorithm saw; a few of a volume don't show how large its lesions are."""
        seen = (c for c in self.cases[split] if self.maps.subset[split][int(c.scores["number"])])
        return [replace(c, voxel_ml=None) for c in seen]


def found_in(maps: Maps, datalist: str, cache_dir: str, splits: Mapping[str, Split], whole: bool = True) -> Found:
    """The cases of a data set, of maps that were made before or are made now.

    Args:
        splits: of validation and test, where they are at hand.
        whole: see `Maker`.

    Raises:
        ValueError: the maps are of another datalist.
    """
    if not splits:
        preprocessing = declared("preprocessing", *maps.overlays, brain_cache=cache_dir)
        splits = {n: Split(datalist, n, preprocessing, *maps.overlays) for n in ("validation", "test")}
    maker = Maker(maps, whole)
    cases: dict[str, list[SliceCase]] = {}
    _, baseline, gated = brightness(maps)
    for split, of_split in splits.items():
        if of_split.slices.names != maps.splits[split].names:
            raise ValueError(f"{maps.pack}: is not made of {datalist}; give another --name, or remove it.")
        cases[split] = of_split.cases(*maker.of(split))
        for case in cases[split]:
            p = case.scores["p(diseased)"]
            kept_part = float(gate(torch.tensor([p])))
            case.maps[gated] = case.maps[baseline] * kept_part
            case.scores[gated] = case.scores[baseline] * kept_part * p
    return Found(maps, maker, cases)


def together(sets: Sequence[Found], baseline: str) -> dict[str, Any]:
    """`judged` on the subsets of several data sets, each with the reference's setting that was chosen for it."""
    cases: dict[str, list[SliceCase]] = {}
    for split in ("validation", "test"):
        cases[split] = [case for found in sets for case in found.of_subset(split)]
    read_by_paper = f"{TUNED}, the paper's map"
    for found in sets:
        best = found.maker.tuned["reference"]["best"]
        chosen = {TUNED: best[COUNTERFACTUAL], read_by_paper: f"{best[PAPER]}, the paper's map"}
        for case in (case for split in cases for case in found.of_subset(split)):
            case.maps |= {alias: case.maps[name] for alias, name in chosen.items()}
            case.scores |= {alias: case.scores[name] for alias, name in chosen.items()}
    against = (baseline, REFERENCE, PUBLISHED, TUNED, read_by_paper)
    ours = [name for name in (DEFAULT, ALONE, STUDENT) if name in cases["test"][0].maps]
    rows, record = judged(cases, [*ours, *against], against)
    patients = len({case.subject for case in cases["test"]})
    return {"patients": patients, "slices": len(cases["test"]), "rows": rows, **record}


def compare(
    name: str,
    datalist: str | None = None,
    model: str = "",
    pack: str | None = None,
    results: str | None = None,
    device: str | None = None,
    images: int | None = None,
    seed: int = 0,
    only: str = "",
    beside: str | None = None,
    beside_datalist: str | None = None,
    settings_of: str | None = None,
    output: str | None = None,
    cache_dir: str = str(ROOT / "bundle" / "cache"),
) -> None:
    """Write `output`.json and .png, by default benchmarks/compare/NAME; see the module."""
    if (beside is None) != (beside_datalist is None):
        raise ValueError("--beside and --beside_datalist are given together, or neither.")
    folder = Path(results or Path(cache_dir) / "compare")
    packed = Path(pack or folder / f"{name}.pt")
    overlays = [model] if model else []
    on = torch.device(device or default_device())
    splits: dict[str, Split] = {}
    if not packed.is_file():
        if datalist is None:
            raise ValueError(f"{packed}: there is no such pack; give the --datalist that it is made of.")
        splits = write_pack(datalist, packed, cache_dir, *overlays)
    maps = Maps(packed, folder, on, images, seed, only, settings_of)
    maps.make()
    if datalist is None or only:
        return
    found = found_in(maps, datalist, cache_dir, splits)
    maker = found.maker
    intensity, baseline, gated = brightness(maps)
    rows, record = [], {}
    for where in ("all", "subset"):
        chosen = found.cases if where == "all" else {split: found.of_subset(split) for split in found.cases}
        methods = [baseline, gated, intensity, *maker.on_all]
        against = (intensity, baseline, gated, SUPERVISED)
        if where == "subset":
            methods += [method for method in maker.costs if method not in methods]
            best = maker.tuned["reference"]["best"]
            tuned = (best[COUNTERFACTUAL], f"{best[PAPER]}, the paper's map")
            against += tuple(dict.fromkeys((REFERENCE, PUBLISHED, *tuned)))
        of_where, record[where] = judged(chosen, methods, against)
        for row in of_where:
            spent = dict(maker.costs.get(row["method"], {}))
            if "row" in spent:
                spent |= maps.cost(spent.pop("row"))
            rows.append({"where": where} | row | significant(spent))
    if beside is not None:
        of_other = Maps(folder / f"{beside}.pt", folder, on, images, seed, settings_of=settings_of)
        other = found_in(of_other, str(beside_datalist), cache_dir, {}, whole=False)
        record["together"] = {"with": beside} | together([found, other], baseline)
    elsewhere = maps.elsewhere
    whole = {
        "data": name,
        "model": model or "brain_flair",
        "bundle": bundle_version(),
        "weights": maps.weights_by_name,
        "seed": seed,
        "images_of_tuning_of_each_rival": maps.images // SHARE,
        "images_of_training_of_each_rival": maps.images,
        "machine": machine(maps.device) if elsewhere is None else elsewhere["machine"],
        "precision": fastest_precision(maps.device),
        "versions": versions(),
        "settings": maps.algorithms.default,
        "default_by_number_of_slices": {n: significant(maps.cost(DEFAULT, n)) for n in NUMBERS},
        "patients": {split: len({c.subject for c in of_split}) for split, of_split in found.cases.items()},
        "subset_slices": {
            split: [n for n, one in zip(maps.splits[split].names, chosen.tolist(), strict=True) if one]
            for split, chosen in maps.subset.items()
        },
        "settings_chosen_on": name if elsewhere is None else elsewhere.get("settings_chosen_on", elsewhere["data"]),
        "tuned": maker.tuned,
        **record,
        "rows": rows,
    }
    path = Path(output or ROOT / "benchmarks" / "compare" / name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path.with_suffix(".json"), (json.dumps(whole, indent=2, default=str) + "\n").encode())
    draw(rows, path.with_suffix(".png"), whole["machine"])


def significant(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers with three significant digits."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in values.items()}


def draw(rows: list[dict[str, Any]], path: Path, where: str) -> None:
    """Pixel AP against seconds a slice, on the subset that every algorithm saw."""
    shown = [r for r in rows if r["where"] == "subset" and "the paper's map" not in r["method"]]
    fewest = shown[0]["slices"]
    figure = Figure((10, 5), layout="constrained")
    ax = figure.subplots()
    shown.sort(key=lambda r: -float(r["pixel_ap"].split()[0]))
    for n, r in enumerate(shown, start=1):
        ap, label = float(r["pixel_ap"].split()[0]), f"{n}  {r['method']}"
        if "seconds" in r:
            color = "0.5" if r["method"] == SUPERVISED else "#d1495b" if r["method"].startswith("ours") else "#30638e"
            ax.plot(r["seconds"], ap, "o", color=color, markersize=13, label=label)
            ax.text(r["seconds"], ap, str(n), color="white", fontsize=8, ha="center", va="center")
        else:
            ax.axhline(ap, color="0.6", linewidth=0.8, linestyle="dashed", zorder=0, label=label)
            ax.text(1.01, ap, str(n), transform=ax.get_yaxis_transform(), fontsize=8, va="center")
    figure.legend(loc="outside right center", fontsize=8, markerscale=0.5, frameon=False)
    title = f"Quality against time: {fewest} test slices, {where}; dashed: no time taken"
    ax.set(xscale="log", xlabel="seconds a slice", ylabel="pixel average precision", title=title)
    ax.margins(x=0.1)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    write(path, buffer.getvalue())


if __name__ == "__main__":
    fire.Fire(compare)
