"""Algorithms side by side: the same weights, patients, preprocessing and metrics; quality and cost in one table.

    python benchmarks/compare.py --datalist FILE [--masked_datalist FILE] [--minutes 3] [--supervised_minutes 12] [--seed 0]
        [--output FILE]

`masked_datalist` is for what is trained here: with brain masks of the data set's own, preparing it is faster.

Thresholds are chosen on the validation patients, every number is of the test patients. What takes a second a slice sees all
their slices; the reference's algorithm and its kin take up to a minute a slice on a CPU and see a subset, drawn with `seed`,
two slices a patient, on which everything else is reported too. Counterfactuals, rivals' maps and costs are kept in `cache_dir`:
a run that was stopped goes on. They are found again by weights, data and settings; a change of the code that makes them wants
an empty `cache_dir`. Costs are taken last, each in a process of its own, with the batch and layout of the algorithm itself.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import monai
import numpy as np
import torch
from matplotlib.figure import Figure
from rivals import RIVALS, supervised, trained
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts import HEALTHY
from scripts.bundle import declared
from scripts.device import autocast, fastest_precision
from scripts.files import write
from scripts.fingerprints import fingerprint
from scripts.images.geometry import slice_numbers
from scripts.judging.bootstrap import Measured, measured
from scripts.judging.cases import SliceCase
from scripts.judging.metrics import METRICS
from scripts.judging.on_input import cases_of
from scripts.judging.readings import COUNTERFACTUAL, OURS, PAPER, readings
from scripts.judging.sums import MIN_LESION_PIXELS, dice
from scripts.judging.thresholds import best_threshold, label_threshold
from scripts.learning.datalists import read_datalist
from scripts.learning.datasets import SliceDataset
from scripts.method.guidance import ClassifierGuidance
from scripts.method.inferer import learned_map
from scripts.method.maps import combined_map, gate, slice_score
from scripts.method.sampler import NoiseModel, ddim_step, timestep_grid
from scripts.method.slices import CPU_BATCH, with_neighbours
from scripts.weights import weights_digest

Sampler = Callable[[torch.Tensor], torch.Tensor]
"""Slices ``(N, C, H, W)`` to their healthy counterparts."""
SUBSET = {"validation": (6, 1), "test": (14, 2)}
"""Patients, and slices of each, for what takes up to a minute a slice."""
COMPARED = ("pixel_ap", "dice_threshold", "image_auroc")
DEFAULT, STUDENT, REFERENCE = "ours, default", "ours, student", "reference, L = 500, s = 100"
ALONE = "ours, counterfactual alone"
"""The default without the student's part of the map, as every other algorithm's counterfactual is read."""
PUBLISHED = f"{REFERENCE}, the paper's map"
"""The reference as it was published, its reading included."""
INTENSITY, BASELINE = "FLAIR intensity", "FLAIR minus slice median, 3x3 median"
GATED = f"{BASELINE}, gated"
"""The better intensity baseline with our classifier's gate: what our map is without counterfactual and student."""
SUPERVISED = "the student's network, taught by masks"
"""Not weakly supervised: what its labels cost the student."""
NUMBERS = (16, 32, 64, 128)
"""Of slices, for how the default's time and memory grow."""
SIZES = {"to 250": (MIN_LESION_PIXELS, 250), "250 to 1,000": (250, 1000), "above 1,000": (1000, np.inf)}
"""Lesion pixels of a slice."""


def everywhere(x: torch.Tensor) -> torch.Tensor:
    """Every pixel of slices ``(N, C, H, W)``, bool ``(N, 1, H, W)``."""
    return torch.ones_like(x[:, :1], dtype=torch.bool)


def times(x: torch.Tensor, t: int) -> torch.Tensor:
    """`t` for every slice."""
    return torch.full((len(x),), t, dtype=torch.long, device=x.device)


def reference_pairs(noise_level: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The timesteps of the reference's loop: at which the network is called, and to which that call takes the slice; -1 is x_0.

    As its ``ddim_sample_loop_progressive`` has them: up from 1 to L - 1, each one further, so that it ends at L; down from
    L - 2 to 0. The slice comes with the noise of timestep 0, so both ways begin one or two timesteps off.
    """
    return [(t, t + 1) for t in range(1, noise_level)], [(t, t - 1) for t in range(noise_level - 2, -1, -1)]


def reference(eps: NoiseModel, guidance: ClassifierGuidance, alphas: torch.Tensor, noise_level: int) -> Sampler:
    """The reference: one noise before the encoding, x_0 clipped and eps derived anew, timesteps of `reference_pairs`."""
    up, down = reference_pairs(noise_level)

    def clipped(x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        a = alphas[t]
        x0 = ((x - (1 - a).sqrt() * eps(x, times(x, t))) / a.sqrt()).clamp(-1, 1)
        return x0, (x - a.sqrt() * x0) / (1 - a).sqrt()

    def sample(x: torch.Tensor) -> torch.Tensor:
        x = alphas[0].sqrt() * x + (1 - alphas[0]).sqrt() * torch.randn_like(x)
        for t, t_next in up:
            x0, e = clipped(x, t)
            x = alphas[t_next].sqrt() * x0 + (1 - alphas[t_next]).sqrt() * e
        for t, t_next in down:
            _, e = clipped(x, t)
            e = e - guidance.guidance_scale * (1 - alphas[t]).sqrt() * guidance.gradient(x, times(x, t))
            a_next = alphas[t_next] if t_next >= 0 else torch.ones(())
            x = ddim_step(x, e, alphas[t], a_next)
        return x

    return sample


def tutorial(eps: NoiseModel, guided: NoiseModel, scheduler: Any, noise_level: int) -> Sampler:
    """MONAI's tutorial: its scheduler's own steps, 0 to L - 1 up and L to 1 down; here towards healthy."""
    scheduler.set_timesteps(scheduler.num_train_timesteps)

    def sample(x: torch.Tensor) -> torch.Tensor:
        for t in range(noise_level):
            x, _ = scheduler.reversed_step(eps(x, times(x, t)), t, x)
        for t in range(noise_level, 0, -1):
            x, _ = scheduler.step(guided(x, times(x, t)), t, x)
        return x

    return sample


def ancestral(eps: NoiseModel, alphas: torch.Tensor, noise_level: int, steps: int) -> Sampler:
    """Noise drawn at once to L, then DDPM's ancestral sampling along a grid of timesteps."""
    grid = timestep_grid(noise_level, steps, len(alphas))

    def sample(x: torch.Tensor) -> torch.Tensor:
        a = alphas[noise_level]
        x = a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)
        for t, t_next in zip(grid[:0:-1], grid[-2::-1], strict=True):
            a, a_next = alphas[t], alphas[t_next]
            x0 = ((x - (1 - a).sqrt() * eps(x, times(x, t))) / a.sqrt()).clamp(-1, 1)
            e = (x - a.sqrt() * x0) / (1 - a).sqrt()
            variance = (1 - a_next) / (1 - a) * (1 - a / a_next)
            x = a_next.sqrt() * x0 + (1 - a_next - variance).clamp_min(0).sqrt() * e
            if t_next:
                x = x + variance.sqrt() * torch.randn_like(x)
        return x

    return sample


def learned_maps(student: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The student's maps ``(N, 1, H, W)`` of slices ``(N, C, H, W)``, in batches."""
    with torch.no_grad(), autocast("cpu", fastest_precision("cpu")):
        return torch.cat([learned_map(student, b) for b in x.split(CPU_BATCH)])


class Split:
    """The labelled slices of a split's patients.

    ``x`` ``(N, C, H, W)``, ``foreground`` bool ``(N, 1, H, W)``, ``probability`` and ``subset``, bool, ``(N,)``.
    """

    def __init__(self, datalist: str, name: str, preprocessing: Any, classifier: torch.nn.Module, seed: int) -> None:
        self.items = read_datalist(datalist, name)
        self.baselines = declared("baselines")
        self.volumes = [
            preprocessing({k: v for k, v in item.items() if k in ("image", "spacing")})
            for item in tqdm(self.items, f"{name}, preprocessing")
        ]
        self.wanted = [
            torch.tensor([item["label"][n] >= 0 for n in slice_numbers(volume["image"])])
            for item, volume in zip(self.items, self.volumes, strict=True)
        ]
        planes, inside = (
            [v[key].as_tensor().movedim(-1, 0)[w] for v, w in zip(self.volumes, self.wanted, strict=True)]
            for key in ("image", "foreground")
        )
        self.x, self.foreground = torch.cat(planes), torch.cat(inside) >= 0.5
        self.depths = [len(p) for p in planes]
        with torch.no_grad():
            logits = torch.cat([classifier(b, times(b, 0)).float() for b in self.x.split(16)])
        self.probability = self.with_neighbours(1 - logits.softmax(dim=1)[:, HEALTHY])
        generator = random.Random(seed)
        begins = np.cumsum([0, *self.depths])
        patients, each = SUBSET[name]
        self.subset = torch.zeros(len(self.x), dtype=torch.bool)
        for p in generator.sample(range(len(planes)), min(patients, len(planes))):
            for n in generator.sample(range(len(planes[p])), min(each, len(planes[p]))):
                self.subset[int(begins[p]) + n] = True

    def with_neighbours(self, probability: torch.Tensor) -> torch.Tensor:
        """Probabilities ``(N, ...)`` of the slices, each volume's averaged as the inferer does."""
        volumes = probability.split(self.depths)
        return torch.cat([with_neighbours(p.movedim(0, -1)).movedim(-1, 0) for p in volumes])

    def cases(self, maps: dict[str, torch.Tensor], scores: dict[str, torch.Tensor]) -> list[SliceCase]:
        """Maps ``(N, 1, H, W)`` and scores ``(N,)`` of the slices, as cases on the grids of the volumes."""
        cases = []
        begin = 0
        for item, volume, kept in zip(self.items, self.volumes, self.wanted, strict=True):
            end = begin + int(kept.sum())

            def whole(values: torch.Tensor, kept: torch.Tensor = kept, part: slice = slice(begin, end)) -> torch.Tensor:
                full = torch.zeros(len(kept), *values.shape[1:])
                full[kept] = values[part].float()
                return full

            parts = ({name: whole(v) for name, v in values.items()} for values in (maps, scores))
            cases += cases_of(item, volume, *parts, self.baselines)
            begin = end
        return cases


@dataclass
class Row:
    """An algorithm, on all slices or the subset, and how its cost is taken: `timed` slices, `batch` of them a call."""

    sampler: Sampler
    on_all: bool
    timed: int
    batch: int
    memory_format: torch.memory_format
    precision: str


class Algorithms:
    """The rows that run the bundle's networks, which count their calls and the seconds within."""

    def __init__(self) -> None:
        self.network, self.classifier = declared("network"), declared("classifier")
        self.calls, self.seconds = {"network": 0, "gradient": 0, "student": 0}, 0.0
        scheduler, options = declared("scheduler"), declared("displayable_configs")
        alphas = scheduler.alphas_cumprod.float().clone()
        eps = self.counted("network", lambda x, t: self.network(x, t).float())

        def guided(scale: float) -> ClassifierGuidance:
            guidance = ClassifierGuidance(self.classifier, alphas, scale)
            guidance.gradient = self.counted("gradient", guidance.gradient)
            return guidance

        self.default = declared("inferer", classifier=self.classifier).settings

        def ours(scale: float, **settings: Any) -> Sampler:
            inferer = declared("inferer", classifier=self.classifier, **settings)
            inferer.guidance = guided(scale)
            return lambda x: inferer.slices(x, everywhere(x), eps)["counterfactual"]

        self.student = declared("student")
        self.student.forward = self.counted("student", self.student.forward)

        paper = {
            "displayable_configs#noise_level": 500,
            "displayable_configs#num_inference_steps": 500,
            "num_fixed_point_iterations": 0,
            "student": None,
        }
        scale = options["guidance_scale"]
        as_ours = (CPU_BATCH, torch.channels_last, fastest_precision("cpu"))
        as_theirs = (1, torch.contiguous_format, "float32")
        self.rows = {
            DEFAULT: Row(ours(scale, student=self.student), True, CPU_BATCH, *as_ours),
            "ours at the paper's setting, L = 500, s = 100": Row(ours(100.0, **paper), False, 2, *as_ours),
            REFERENCE: Row(reference(eps, guided(100.0), alphas, 500), False, 1, *as_theirs),
            "MONAI tutorial, L = 200, s = 10": Row(
                tutorial(eps, guided(10.0)(eps), scheduler, 200), False, 1, *as_theirs
            ),
            "DDPM, L = 500, guided, s = 10": Row(ancestral(guided(10.0)(eps), alphas, 500, 50), False, 16, *as_ours),
            "DDPM, L = 250, unguided": Row(ancestral(eps, alphas, 250, 50), False, 16, *as_ours),
        }

    def counted(self, name: str, f: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`f`, with its calls and seconds added up."""

        def call(x: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            result = f(x, *args)
            self.seconds += time.perf_counter() - start
            self.calls[name] += len(x)
            return result

        return call

    def run(self, name: str, x: torch.Tensor, foreground: torch.Tensor, batch: int, seed: int) -> dict[str, Any]:
        """The counterfactuals ``(N, C, H, W)``, the calls a slice, the seconds a slice and the share within networks.

        What lies outside the foreground is its own counterfactual, whatever the algorithm.
        """
        torch.manual_seed(seed)
        self.calls.update(network=0, gradient=0, student=0)
        self.seconds, start = 0.0, time.perf_counter()
        with torch.no_grad(), autocast("cpu", self.rows[name].precision):
            parts = [self.rows[name].sampler(b) for b in tqdm(x.split(batch), name)]
        seconds = time.perf_counter() - start
        healthy = torch.where(foreground, torch.cat(parts).float().clamp(-1, 1), x)
        calls = {k: v // len(x) for k, v in self.calls.items()}
        return {"healthy": healthy, **calls, "seconds": seconds / len(x), "share": self.seconds / seconds}


def cost(row: str, slices: str, number: str = "0") -> None:
    """Print what a row costs on the slices in a file: seconds a slice, share within the networks, peak memory in MiB.

    `number` is that of slices, by default the row's own.
    """
    x, foreground = torch.load(slices, weights_only=True)
    if row == STUDENT:
        student, inferer = declared("network", "preview"), declared("inferer", "preview")
        inferer.slices(x[:2], foreground[:2], student)
        start = time.perf_counter()
        inferer.slices(x[:16], foreground[:16], student)
        seconds, share = (time.perf_counter() - start) / len(x[:16]), 1.0
    else:
        algorithms = Algorithms()
        how = algorithms.rows[row]
        with torch.no_grad(), autocast("cpu", how.precision):
            for network in (algorithms.network, algorithms.classifier):
                network.to(memory_format=how.memory_format)(x[:1], times(x[:1], 0))
            learned_map(algorithms.student, x[:1])
        number = int(number) or how.timed
        x, foreground = (a.repeat(-(-number // len(a)), 1, 1, 1)[:number] for a in (x, foreground))
        result = algorithms.run(row, x, foreground, how.batch, 0)
        seconds, share = result["seconds"], result["share"]
    # not resource's ru_maxrss, which begins at that of the process that started this one
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "share": share, "memory": memory}))


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gave when `path` was written, or gives now."""
    if not path.is_file():
        result = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(result, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    return torch.load(path, weights_only=True)


def by_size(cases: list[SliceCase], method: str, threshold: float) -> dict[str, Any]:
    """The mean Dice of slices by the pixels of their lesion, and how many slices that is."""
    found: dict[str, list[float]] = {name: [] for name in SIZES}
    for case in cases:
        values, truth = case.values(method, "foreground"), case.lesion("foreground")
        for name, (low, high) in SIZES.items():
            if low < truth.sum() <= high:
                found[name].append(dice(values > threshold, truth))
    return {name: {"slices": len(d), "dice": float(np.mean(d)) if d else None} for name, d in found.items()}


def compare(
    datalist: str,
    masked_datalist: str | None = None,
    minutes: float = 3,
    supervised_minutes: float = 12,
    seed: int = 0,
    output: str = str(ROOT / "benchmarks" / "compare"),
    cache_dir: str = str(ROOT / "bundle" / "cache"),
) -> None:
    """Write `output`.csv, .json and .png; see the module."""
    algorithms = Algorithms()
    preprocessing = declared("preprocessing", brain_cache=cache_dir)
    reading = declared("polarity"), declared("median_size")
    splits = {
        name: Split(datalist, name, preprocessing, algorithms.classifier, seed) for name in ("validation", "test")
    }
    data = fingerprint([s.items for s in splits.values()], preprocessing)
    networks = {"model": algorithms.network, "classifier": algorithms.classifier, "student": algorithms.student}
    weights = {name: weights_digest(network) for name, network in networks.items()}

    def cache(*key: Any, of: tuple[str, ...] = ("model", "classifier")) -> Path:
        # the default's settings are the config's, the reference's timesteps were others once; the other rows are fixed
        key = (*key, algorithms.default) if DEFAULT in key else key
        key = (*key, reference_pairs(500)) if REFERENCE in key else key
        state = [*(weights[n] for n in of), data, seed, *key]
        return Path(cache_dir) / f"compare-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}.pt"

    train = SliceDataset(
        read_datalist(masked_datalist or datalist, "training"), preprocessing, cache_dir, declared("min_area")
    )

    def of_rival(name: str) -> dict[str, Any]:
        x = torch.stack([train[i]["image"] for i in range(len(train))])
        inside = torch.stack([train.foreground(i) for i in range(len(train))])
        read = trained(name, x, inside, torch.tensor(train.labels), algorithms.classifier, minutes, seed)
        start = time.perf_counter()
        maps, scores = read(splits["test"].x, splits["test"].foreground)
        seconds = (time.perf_counter() - start) / len(maps)
        return {
            "test": (maps, scores),
            "validation": read(splits["validation"].x, splits["validation"].foreground),
            "seconds": seconds,
        }

    def of_masks() -> dict[str, torch.Tensor]:
        network = supervised(masked_datalist or datalist, cache_dir, supervised_minutes)
        return {name: learned_maps(network, s.x) for name, s in splits.items()}

    # every method's maps and scores a split; the readings of the subset's rows are of the subset alone
    cases: dict[str, list[SliceCase]] = {}
    costs: dict[str, dict[str, Any]] = {}
    on_all = [BASELINE, GATED, INTENSITY]
    rivals = {name: kept(cache(name, minutes, of=("classifier",)), lambda n=name: of_rival(n)) for name in RIVALS}
    with_masks = kept(cache(SUPERVISED, supervised_minutes, of=()), of_masks)
    for split, s in splits.items():
        maps: dict[str, torch.Tensor] = {}
        scores: dict[str, torch.Tensor] = {"number": torch.arange(len(s.x)), "p(diseased)": s.probability}
        learned = s.with_neighbours(learned_maps(algorithms.student, s.x))
        for name, row in algorithms.rows.items():
            which = torch.ones_like(s.subset) if row.on_all else s.subset
            # the result does not depend on the batch, the time does
            kept_as = cache(name, split, SUBSET[split])
            x, inside = s.x[which], s.foreground[which]
            made = kept(kept_as, lambda n=name, x=x, inside=inside: algorithms.run(n, x, inside, 16, seed))
            found = {"counterfactual": made["healthy"], "probability": s.probability[which]}
            labels = {COUNTERFACTUAL: name, PAPER: f"{name}, the paper's map"}
            if name == DEFAULT:
                found["student"] = learned
                labels |= {OURS: DEFAULT, COUNTERFACTUAL: ALONE}
            read = readings(x, found, inside, *reading)
            for method, label in labels.items():
                maps[label], scores[label] = torch.zeros(len(s.x), 1, *s.x.shape[2:]), torch.zeros(len(s.x))
                maps[label][which], scores[label][which] = read[0][method], read[1][method]
                costs[label] = {"network_calls": made["network"], "gradients": made["gradient"], "row": name}
                on_all += [label] if row.on_all and label not in on_all else []
        for name, lesion in ((STUDENT, learned), (SUPERVISED, s.with_neighbours(with_masks[split]))):
            found = {"student": lesion, "probability": s.probability}
            maps[name] = combined_map(s.x, found, s.foreground, *reading)
            scores[name] = slice_score(maps[name], s.foreground, s.probability)
            costs[name] = {"network_calls": 1, "gradients": 0, "row": STUDENT}
        for name, made in rivals.items():
            maps[name], scores[name] = made[split]
            costs[name] = {"seconds": made["seconds"]}
        on_all += [n for n in (STUDENT, SUPERVISED, *rivals) if n not in on_all]
        cases[split] = s.cases(maps, scores)
        for case in cases[split]:
            p = case.scores["p(diseased)"]
            kept_part = float(gate(torch.tensor([p])))
            case.maps[GATED] = case.maps[BASELINE] * kept_part
            case.scores[GATED] = case.scores[BASELINE] * kept_part * p

    sample = cache("sample", SUBSET["test"])
    test = splits["test"]
    kept(sample, lambda: [a[test.subset].repeat(2, 1, 1, 1)[:16] for a in (test.x, test.foreground)])
    for c in costs.values():
        if "row" in c:
            c |= kept(cache("cost", c["row"], of=tuple(weights)), lambda row=c["row"]: cost_of(row, sample))

    scaling = {
        n: kept(cache("scaling", n, of=tuple(weights)), lambda n=n: cost_of(DEFAULT, sample, n)) for n in NUMBERS
    }
    rows, thresholds, without_masks, sizes = [], {}, {}, {}
    found: dict[tuple[str, str], Measured] = {}
    for where in ("all", "subset"):
        chosen = {
            split: [c for c in of_split if where == "all" or splits[split].subset[int(c.scores["number"])]]
            for split, of_split in cases.items()
        }
        for method in on_all if where == "all" else [*on_all, *(m for m in costs if m not in on_all)]:
            threshold = best_threshold(chosen["validation"], method, "foreground")
            from_labels = label_threshold(chosen["validation"], method)
            found[where, method] = measured(chosen["test"], method, threshold, "foreground")
            by_labels = measured(chosen["test"], method, from_labels, "foreground")
            point = found[where, method].values | {"dice_labels": by_labels.values["dice_threshold"]}
            interval = found[where, method].intervals | {"dice_labels": by_labels.intervals["dice_threshold"]}
            thresholds[where, method] = threshold
            without_masks[f"{where}: {method}"] = from_labels
            sizes.setdefault(where, {})[method] = by_size(chosen["test"], method, threshold)
            values = {
                m: f"{v:.3f} ({interval[m][0]:.2f}-{interval[m][1]:.2f})" for m, v in point.items() if m in interval
            }
            spent = {k: v for k, v in costs.get(method, {}).items() if k != "row"}
            rows.append({"slices": len(chosen["test"]), "method": method, **values, **rounded(spent)})
            tqdm.write(f"{where}: {method}: AP {values['pixel_ap']}, Dice {values['dice_threshold']}")
        against = (INTENSITY, BASELINE, GATED, SUPERVISED) + ((REFERENCE, PUBLISHED) if where == "subset" else ())
        differences = {
            f"{ours} - {other}": {m: found[where, ours].minus(found[where, other], m) for m in COMPARED}
            for ours in (DEFAULT, ALONE, STUDENT)
            for other in against
        }
        sizes[where] = {"dice_by_lesion_pixels": sizes[where], "differences": differences}

    measures = [m for m in METRICS if any(m in row for row in rows)]
    columns = ["slices", "method", *measures, "dice_labels", "seconds", "share", "network_calls", "gradients", "memory"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    record = {
        "seed": seed,
        "minutes_of_training_of_each_rival": minutes,
        "minutes_of_training_with_masks": supervised_minutes,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "bfloat16": fastest_precision("cpu") == "bfloat16",
        "versions": {"torch": torch.__version__, "monai": monai.__version__, "python": platform.python_version()},
        "settings": dict(declared("displayable_configs")),
        "default_by_number_of_slices": {n: rounded(c) for n, c in scaling.items()},
        "patients": {split: len({c.subject for c in of_split}) for split, of_split in cases.items()},
        "thresholds": {f"{where}: {method}": t for (where, method), t in thresholds.items()},
        "thresholds_without_masks": without_masks,
        **sizes,
        "rows": rows,
    }
    path = Path(output)
    write(path.with_suffix(".csv"), text.getvalue().encode())
    write(path.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    draw(rows, path.with_suffix(".png"))
    print(text.getvalue())


def cost_of(row: str, sample: Path, number: int = 0) -> dict[str, float]:
    """`cost` of a row in a process of its own."""
    command = [sys.executable, __file__, "cost", row, str(sample), str(number)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers with three digits."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in values.items()}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Pixel AP against seconds a slice, on the subset that every algorithm saw."""
    fewest = min(r["slices"] for r in rows)
    shown = [r for r in rows if r["slices"] == fewest and "the paper's map" not in r["method"]]
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
    title = f"Quality against time: {fewest} test slices, {torch.get_num_threads()} CPU cores; dashed: brightness"
    ax.set(xscale="log", xlabel="seconds a slice", ylabel="pixel average precision", title=title)
    ax.margins(x=0.1)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    write(path, buffer.getvalue())


if __name__ == "__main__":
    if sys.argv[1:2] == ["cost"]:
        cost(*sys.argv[2:])  # not by fire, to which a name with a comma is a tuple
    else:
        fire.Fire(compare)
