"""Ways to a healthy counterpart that run the bundle's networks, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from keeping import kept, place
from tqdm import tqdm

from scripts.bundle import declared
from scripts.device import autocast, default_device, fastest_precision
from scripts.learning.seeding import seed_of
from scripts.method.guidance import ClassifierGuidance
from scripts.method.inferer import learned
from scripts.method.sampler import NoiseModel, ddim_step, timestep_grid
from scripts.method.slices import CPU_BATCH, GPU_BATCH, Findings, with_neighbours

Sampler = Callable[[torch.Tensor], torch.Tensor]
"""Slices ``(N, C, H, W)`` to their healthy counterparts."""
DEFAULT, STUDENT = "ours, default", "ours, student"
PAPERS_SETTING = "ours at the paper's setting, L = 500, s = 100"
BATCH = 16
"""Slices that are sampled and kept together, whatever the device; noise is drawn for a batch."""
Setting = tuple[int, float]
"""Noise level L and guidance scale s."""


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
            a_next = alphas[t_next] if t_next >= 0 else torch.ones_like(alphas[0])
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


def smoothed(values: torch.Tensor, depths: list[int]) -> torch.Tensor:
    """Values ``(N, ...)`` of slices, each volume's averaged with their neighbours' as the inferer does."""
    return torch.cat([with_neighbours(p.movedim(0, -1)).movedim(-1, 0) for p in values.split(depths)])


def now(device: torch.device) -> float:
    """The time, all work on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Family:
    """An algorithm with knobs: as it was published, and among what it is tuned; the scale 0 where it has none."""

    published: Setting
    settings: tuple[Setting, ...]
    scaled: bool = True

    def name(self, family: str, setting: Setting) -> str:
        return f"{family}, L = {setting[0]}" + (f", s = {setting[1]:g}" if self.scaled else "")


FAMILIES = {
    "reference": Family((500, 100), ((250, 30), (250, 100), (500, 3), (500, 10), (500, 30), (500, 100))),
    "MONAI tutorial": Family((200, 10), ((200, 3), (200, 10), (200, 30))),
    "DDPM, guided": Family((500, 10), ((250, 3), (250, 10), (350, 10), (500, 3), (500, 10), (500, 30))),
    "DDPM, unguided": Family((250, 0), ((100, 0), (150, 0), (250, 0), (350, 0), (500, 0)), scaled=False),
}
"""What others do with the bundle's networks. None is AnoDDPM: that has simplex noise and learns from healthy slices alone."""
NAMES = {family.name(name, s): (name, s) for name, family in FAMILIES.items() for s in family.settings}
REFERENCE = FAMILIES["reference"].name("reference", FAMILIES["reference"].published)


@dataclass
class Row:
    """How an algorithm runs where its cost is taken: on `timed` slices, `batch` of them a call."""

    sampler: Sampler
    timed: int
    batch: int
    memory_format: torch.memory_format
    precision: str


class Algorithms:
    """The bundle's networks on a device, and the algorithms that run them; calls are counted.

    Args:
        overlays: of another model than the first.
        device: of the networks.
    """

    def __init__(self, *overlays: str, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or default_device())
        on_device = {"device": str(self.device)}
        self.network, self.classifier, self.student = (
            declared(name, *overlays, **on_device) for name in ("network", "classifier", "student")
        )
        self.calls = {"network": 0, "gradient": 0, "student": 0}
        self._scheduler = declared("scheduler", *overlays)
        self._alphas = self._scheduler.alphas_cumprod.float().clone().to(self.device)
        self._scheduler.alphas_cumprod = self._alphas
        self._eps = self.counted("network", lambda x, t: self.network(x, t)[:, : x.shape[1]].float())
        self._overlays, self._on_device = overlays, on_device
        self._inferer = declared("inferer", *overlays, classifier=self.classifier, **on_device)
        self.default = self._inferer.settings
        self.scale = declared("displayable_configs#guidance_scale", *overlays)
        if self.student is not None:
            self.student.forward = self.counted("student", self.student.forward)
        self.rows = self._rows()
        """Every algorithm that there is, by its name in the table."""

    def _rows(self) -> dict[str, Row]:
        fast = CPU_BATCH if self.device.type == "cpu" else GPU_BATCH
        precision = fastest_precision(self.device)
        ours = (fast, torch.channels_last, precision)
        theirs = (1, torch.contiguous_format, "float32")
        paper = {
            "displayable_configs#noise_level": 500,
            "displayable_configs#num_inference_steps": 500,
            "num_fixed_point_iterations": 0,
            "guidance_exponent": 0,
            "student": None,
        }
        rows = {
            DEFAULT: Row(self.ours(self.scale, student=self.student), fast, *ours),
            PAPERS_SETTING: Row(self.ours(100.0, **paper), min(fast, 2), *ours),
        }
        for name, (family, setting) in NAMES.items():
            slow = family in ("reference", "MONAI tutorial")
            rows[name] = Row(self.sampler(family, *setting), *((1, *theirs) if slow else (fast, *ours)))
        return rows

    def guided(self, scale: float) -> ClassifierGuidance:
        """Guidance whose gradients are counted."""
        guidance = ClassifierGuidance(self.classifier, self._alphas, scale)
        guidance.gradient = self.counted("gradient", guidance.gradient)
        return guidance

    def ours(self, scale: float, **settings: Any) -> Sampler:
        """The bundle's inferer with other settings."""
        inferer = declared(
            "inferer", *self._overlays, classifier=self.classifier, **self._on_device, **{"student": None, **settings}
        )
        inferer.guidance = self.guided(scale)
        return lambda x: inferer.slices(x, everywhere(x), self._eps)["counterfactual"]

    def sampler(self, family: str, noise_level: int, scale: float) -> Sampler:
        """That of a family."""
        if family == "reference":
            return reference(self._eps, self.guided(scale), self._alphas, noise_level)
        if family == "MONAI tutorial":
            return tutorial(self._eps, self.guided(scale)(self._eps), self._scheduler, noise_level)
        eps = self.guided(scale)(self._eps) if FAMILIES[family].scaled else self._eps
        return ancestral(eps, self._alphas, noise_level, 50)

    def counted(self, name: str, f: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`f`, with its calls added up."""

        def call(x: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
            self.calls[name] += len(x)
            return f(x, *args)

        return call

    def timed(self, sampler: Sampler, x: torch.Tensor, batch: int, precision: str) -> tuple[torch.Tensor, float]:
        """The counterfactuals ``(N, C, H, W)`` of slices, and the seconds of it all."""
        start = now(self.device)
        with torch.no_grad(), autocast(self.device, precision):
            parts = [sampler(b.to(self.device)).float().clamp(-1, 1).cpu() for b in x.split(batch)]
        return torch.cat(parts), now(self.device) - start

    def run(
        self, name: str, x: torch.Tensor, foreground: torch.Tensor, seed: int, folder: Path | None = None, *state: Any
    ) -> dict[str, Any]:
        """The counterfactuals ``(N, C, H, W)`` and the calls a slice.

        What lies outside the foreground is its own counterfactual, whatever the algorithm. All are made in the precision that
        is fastest here; a row's own is that of its cost. Every batch is kept in `folder`, found again by the algorithm, what
        it was given and `state`.
        """
        sampler, precision = self.rows[name].sampler, fastest_precision(self.device)
        # the default's settings are the config's; the reference's timesteps were others once
        settings = self.default if name == DEFAULT else reference_pairs(3) if name.startswith("reference") else None
        parts, calls = [], dict.fromkeys(self.calls, 0)
        for n, b in enumerate(tqdm(x.split(BATCH), name)):

            def make(n: int = n, b: torch.Tensor = b) -> dict[str, Any]:
                torch.manual_seed(seed_of(seed, n))
                self.calls.update(network=0, gradient=0, student=0)
                healthy, _ = self.timed(sampler, b, BATCH, precision)
                return {"healthy": healthy, "calls": dict(self.calls)}

            found = (
                make()
                if folder is None
                else kept(place(folder, name, settings, precision, seed, n, len(x), *state), make)
            )
            parts.append(found["healthy"])
            calls = {k: v + found["calls"][k] for k, v in calls.items()}
        return {
            "healthy": torch.where(foreground, torch.cat(parts), x),
            **{k: v // len(x) for k, v in calls.items()},
        }

    def probability(self, x: torch.Tensor, depths: list[int]) -> torch.Tensor:
        """p(diseased) of slices, read and in each volume averaged as the inferer does, ``(N,)``."""
        with torch.no_grad():
            p = torch.cat([self._inferer.probability(b).cpu() for b in x.to(self.device).split(64)])
        return smoothed(p, depths)

    def learned(self, x: torch.Tensor, depths: list[int], student: torch.nn.Module | None = None) -> Findings:
        """What the student says, or another network like it, see `learned`; each volume's maps are averaged likewise.

        Args:
            x: slices ``(N, C, H, W)``.
            depths: how many are of each volume.
            student: by default the bundle's.
        """
        network = self.student if student is None else student
        with torch.no_grad(), autocast(self.device, fastest_precision(self.device)):
            parts = [learned(network, b.to(self.device), everywhere(b).to(self.device)) for b in x.split(BATCH)]
        found = {key: torch.cat([part[key].cpu() for part in parts]) for key in ("student", "counterpart")}
        return {"student": smoothed(found["student"], depths), "counterpart": found["counterpart"]}
