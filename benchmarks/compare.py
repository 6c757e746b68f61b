"""Algorithms side by side: the same weights, test slices, preprocessing and metrics; quality and wall time in one run.

    python benchmarks/compare.py --dataset_dir DIR [--slices 14] [--seed 0] [--output benchmarks/compare]

Rows: the reference's algorithm, written from the paper's equations with the reference's pairing of timesteps and its clipping
(every timestep, one slice at a time, float32); the loop of MONAI's tutorial; ours at the paper's setting and at the default;
stochastic encoding and ancestral sampling, guided and not (as in AnoDDPM). Each is read both ways: the paper's map, and the
brighter part gated by p(diseased). The baselines that need no network come along. A subset of test slices is drawn with `seed`,
one a patient, then a second one and so on: the reference takes a minute a slice on two cores.
"""

from __future__ import annotations

import csv
import json
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import monai
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts import DISEASED  # noqa: E402
from scripts.bundle import declared  # noqa: E402
from scripts.data import brain_mr  # noqa: E402
from scripts.evaluation import OURS, PAPER, cases_of  # noqa: E402
from scripts.guidance import ClassifierGuidance  # noqa: E402
from scripts.metrics import METRICS, SliceCase, metrics  # noqa: E402
from scripts.preprocessing import slice_numbers  # noqa: E402
from scripts.sampler import NoiseModel, ddim_step, timestep_grid  # noqa: E402

Sampler = Callable[[torch.Tensor], torch.Tensor]
"""Slices ``(N, C, H, W)`` to their healthy counterparts."""
# without validation runs of every row there is no threshold to report
COLUMNS = [m for m in METRICS if m not in ("dice_threshold", "dice_threshold_slice", "healthy_area")]


def times(x: torch.Tensor, t: int) -> torch.Tensor:
    """`t` for every slice."""
    return torch.full((len(x),), t, dtype=torch.long, device=x.device)


def reference(eps: NoiseModel, guidance: ClassifierGuidance, alphas: torch.Tensor, noise_level: int) -> Sampler:
    """The reference: one noise before the encoding, x_0 clipped and eps derived anew, decoding from L - 2."""

    def clipped(x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        a = alphas[t]
        x0 = ((x - (1 - a).sqrt() * eps(x, times(x, t))) / a.sqrt()).clamp(-1, 1)
        return x0, (x - a.sqrt() * x0) / (1 - a).sqrt()

    def sample(x: torch.Tensor) -> torch.Tensor:
        x = alphas[0].sqrt() * x + (1 - alphas[0]).sqrt() * torch.randn_like(x)
        for t in range(noise_level - 1):
            x0, e = clipped(x, t)
            x = alphas[t + 1].sqrt() * x0 + (1 - alphas[t + 1]).sqrt() * e
        for t in range(noise_level - 2, -1, -1):
            _, e = clipped(x, t)
            e = e - guidance.guidance_scale * (1 - alphas[t]).sqrt() * guidance.gradient(x, times(x, t))
            a_next = alphas[t - 1] if t else torch.ones(())
            x = ddim_step(x, e, alphas[t], a_next)
        return x

    return sample


def tutorial(eps: NoiseModel, guidance: ClassifierGuidance, scheduler: Any, noise_level: int) -> Sampler:
    """MONAI's tutorial: its scheduler's own steps, 0 to L - 1 up and L to 1 down; here towards healthy."""
    scheduler.set_timesteps(scheduler.num_train_timesteps)

    def sample(x: torch.Tensor) -> torch.Tensor:
        for t in range(noise_level):
            x, _ = scheduler.reversed_step(eps(x, times(x, t)), t, x)
        for t in range(noise_level, 0, -1):
            x, _ = scheduler.step(guidance(x, times(x, t)), t, x)
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


def chosen(items: list[dict[str, Any]], slices: int, seed: int) -> list[dict[str, Any]]:
    """`items` with the labels of all but `slices` slices taken away, spread over the patients."""
    generator = random.Random(seed)
    order = []
    for number, item in enumerate(items):
        labelled = [z for z, label in enumerate(item["label"]) if label >= 0]
        generator.shuffle(labelled)
        order += [(turn, generator.random(), number, z) for turn, z in enumerate(labelled)]
    kept = defaultdict(set)
    for _, _, number, z in sorted(order)[:slices]:
        kept[number].add(z)
    return [
        {**item, "label": [label if z in kept[n] else -1 for z, label in enumerate(item["label"])]}
        for n, item in enumerate(items)
        if kept[n]
    ]


def compare(
    dataset_dir: str,
    slices: int = 14,
    seed: int = 0,
    output: str = str(ROOT / "benchmarks" / "compare"),
    cache_dir: str = str(ROOT / "bundle" / "cache"),
    only: str = "",
) -> None:
    """Run every row, or those whose name holds `only`, and write `output`.csv and .json; see the module."""
    items = chosen(brain_mr(dataset_dir, "test"), slices, seed)
    preprocessing = declared("preprocessing", brain_cache=cache_dir)
    network, classifier, scheduler = declared("network"), declared("classifier"), declared("scheduler")
    alphas = scheduler.alphas_cumprod.float().clone()
    reading = declared("polarity"), declared("median_size")
    volumes = [preprocessing({k: item[k] for k in ("image", "spacing")}) for item in items]
    wanted = [
        torch.tensor([item["label"][n] >= 0 for n in slice_numbers(volume["image"])])
        for item, volume in zip(items, volumes, strict=True)
    ]
    planes = [volume["image"].as_tensor().movedim(-1, 0)[kept] for volume, kept in zip(volumes, wanted, strict=True)]
    x = torch.cat(planes)
    with torch.no_grad():
        probability = classifier(x, times(x, 0)).float().softmax(dim=1)[:, DISEASED]
    options = declared("displayable_configs")
    calls = {"network": 0, "gradient": 0}

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls["network"] += len(x)
        return network(x, t).float()

    class Counted(ClassifierGuidance):
        def gradient(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls["gradient"] += len(x)
            return super().gradient(x, t)

    def guided(scale: float) -> ClassifierGuidance:
        return Counted(eps, classifier, alphas, scale)

    def ours(scale: float, **settings: Any) -> Sampler:
        inferer = declared("inferer", classifier=classifier, **settings)
        inferer.progress = False
        inferer.guidance = lambda noise_model: Counted(noise_model, classifier, alphas, scale)

        def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls["network"] += len(x)
            return network(x, t)

        return lambda x: inferer.slices(x, counted)[0]

    default_scale = options["guidance_scale"]
    paper = {
        "displayable_configs#noise_level": 500,
        "displayable_configs#num_inference_steps": 500,
        "num_fixed_point_iterations": 0,
    }
    fast = {"displayable_configs#num_inference_steps": 5}
    # name: sampler, slices a call, bfloat16
    rows: dict[str, tuple[Sampler, int, bool]] = {
        "ours, default": (ours(default_scale), 16, True),
        "ours, 5 steps": (ours(default_scale, **fast), 16, True),
        "DDPM, L = 500, guided, s = 10": (ancestral(guided(10.0), alphas, 500, 50), 16, True),
        "DDPM, L = 250, unguided (as AnoDDPM)": (ancestral(eps, alphas, 250, 50), 16, True),
        "MONAI tutorial, L = 200, s = 10": (tutorial(eps, guided(10.0), scheduler, 200), 1, False),
        "reference, L = 500, s = 100": (reference(eps, guided(100.0), alphas, 500), 1, False),
        "reference, L = 500, s = 10": (reference(eps, guided(10.0), alphas, 500), 1, False),
        "ours at the paper's setting, L = 500, s = 100": (ours(100.0, **paper), 16, True),
    }
    results: list[dict[str, Any]] = []
    for name, (sampler, batch, bfloat16) in rows.items():
        if only not in name:
            continue
        torch.manual_seed(seed)
        calls.update(network=0, gradient=0)
        start = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            parts = x.split(batch)
            healthy = torch.cat([sampler(part).float() for part in tqdm(parts, name)]).clamp(-1, 1)
        seconds = time.perf_counter() - start
        healthy = torch.where(x > -1, healthy, x)
        cases: list[SliceCase] = []
        begin = 0
        for item, volume, kept in zip(items, volumes, wanted, strict=True):
            end = begin + int(kept.sum())
            result = volume["image"].as_tensor().movedim(-1, 0).clone()
            result[kept] = healthy[begin:end]
            p = torch.full(kept.shape, torch.nan)
            p[kept] = probability[begin:end]
            pred = {"counterfactual": result.movedim(0, -1)[None], "probability": p[None]}
            cases += cases_of(item, lambda _, v=volume: v, lambda *_, q=pred, **__: q, *reading)
            begin = end
        cost = {
            "seconds_a_slice": round(seconds / len(cases), 3),
            "network_calls_a_slice": calls["network"] // len(cases),
            "gradients_a_slice": calls["gradient"] // len(cases),
            "slices": len(cases),
        }
        maps = [PAPER, OURS] if results else list(cases[0].maps)
        for method in maps:
            network_row = method in (PAPER, OURS)
            found = metrics(cases, method, 0.0, "brain")
            results.append(
                {
                    "algorithm": name if network_row else "none",
                    "map": method,
                    **{m: round(found[m], 3) for m in COLUMNS},
                    **(cost if network_row else {"slices": len(cases)}),
                }
            )
        path = Path(output)
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["algorithm", "map", *COLUMNS, *cost], lineterminator="\n")
            writer.writeheader()
            writer.writerows(results)
        record = {
            "seed": seed,
            "patients": len(items),
            "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {"torch": torch.__version__, "monai": monai.__version__, "python": platform.python_version()},
            "settings": dict(options),
            "rows": results,
        }
        path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(path.with_suffix(".csv").read_text())


if __name__ == "__main__":
    fire.Fire(compare)
