"""Networks of slices on whole volumes: the healthy counterpart, and a student that learned from many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.networks.schedulers import Scheduler
from monai.utils import convert_to_tensor
from tqdm import tqdm

from . import DISEASED
from .bundle import autocast, check_number
from .preprocessing import assessed_slices
from .sampler import NoiseModel, decode, encode, timestep_grid

CPU_BATCH, GPU_BATCH = 16, 256
"""Slices in one network call: a CPU gains nothing beyond, and a whole volume is one call on a GPU with the memory for it."""


def with_neighbours(probability: torch.Tensor) -> torch.Tensor:
    """Each slice's probabilities averaged with the slices above and below, in parts 1 : 2 : 1, as lesions span slices.

    Args:
        probability: of disease or, a pixel, of lesion, ``(..., D)``, NaN where not assessed, which counts for no neighbour.

    Returns:
        ``(..., D)``, NaN where it was.
    """
    around = torch.nn.functional.pad(probability, (1, 1), value=torch.nan).unfold(-1, 3, 1)  # (..., D, 3)
    weight = around.new_tensor([1.0, 2.0, 1.0]).where(~around.isnan(), 0)
    mean = (around.nan_to_num() * weight).sum(dim=-1) / weight.sum(dim=-1)
    return mean.where(~probability.isnan(), torch.nan)


class SliceInferer(Inferer):
    """Folds volumes into slices and takes those that are assessed through the networks in batches.

    A subclass says in `slices` what it gives for slices, and in `unassessed` what stands for the others. No noise
    is drawn; that two runs give the same bits is tested on the CPU only.

    Args:
        classifier: f(x, t) -> logits ``(N, 2)`` of noised slices, for p(diseased).
        min_area_fraction: slices with less of the largest slice's brain are not assessed; from 0 to 1.
        batch_size: slices in one network call, 1 or more; by default `CPU_BATCH`, or on a GPU the largest that its memory
            holds: from `GPU_BATCH` down, halved whenever memory runs out.
        precision: "float32", or "bfloat16" for autocast within the networks.
        progress: show a bar.

    Raises:
        ValueError: another precision, or a number out of range.
    """

    def __init__(
        self,
        classifier: torch.nn.Module,
        min_area_fraction: float = 0.5,
        batch_size: int | None = None,
        precision: str = "float32",
        progress: bool = False,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}.")
        check_number("min_area_fraction", min_area_fraction, 0, 1)
        if batch_size is not None:
            check_number("batch_size", batch_size, 1, 65536, whole=True)
        self.classifier = classifier
        self.min_area_fraction = min_area_fraction
        self.batch_size = batch_size
        self.precision = precision
        self.progress = progress

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        assessed: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The result for whole volumes.

        Args:
            inputs: ``(B, C, H, W, D)`` in [-1, 1], -1 outside the brain.
            network: what `slices` takes.
            assessed: bool ``(B, D)``, the slices to run; by default those with enough brain.

        Returns:
            What `slices` gives, each ``(B, ..., D)``, probabilities `with_neighbours`, NaN where not assessed; and
            ``assessed``, bool ``(B, D)``.
        """
        x = convert_to_tensor(inputs).float()
        if assessed is None:
            assessed = assessed_slices(x, self.min_area_fraction)
        slices = x.movedim(-1, 1)  # (B, D, C, H, W)
        found = self.unassessed(slices) | {"probability": torch.full(assessed.shape, torch.nan, device=x.device)}
        chosen = slices[assessed]
        if len(chosen):
            for name, values in self._batches(chosen, network).items():
                found[name][assessed] = values
        found = {name: values.movedim(1, -1) for name, values in found.items()}
        smoothed = {name: with_neighbours(found[name]) for name in ("probability", "student") if name in found}
        return found | smoothed | {"assessed": assessed}

    def _batches(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """`slices` in batches that fit the memory."""
        size = self.batch_size or (GPU_BATCH if x.device.type == "cuda" else CPU_BATCH)
        results: list[dict[str, torch.Tensor]] = []
        done = 0
        with tqdm(total=len(x), desc="slices", leave=False, disable=not self.progress) as bar:
            while done < len(x):
                batch = x[done : done + size]
                found = None
                try:
                    found = self.slices(batch, network)
                except torch.OutOfMemoryError:
                    if self.batch_size or len(batch) == 1:
                        raise
                if found is None:
                    # only here, as the error holds what every frame it passed through held
                    torch.cuda.empty_cache()
                    size = len(batch) // 2
                    continue
                results.append(found)
                done += len(batch)
                bar.update(len(batch))
        return {name: torch.cat([r[name] for r in results]) for name in results[0]}

    def slices(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is found in slices ``(N, C, H, W)``: images ``(N, ...)`` by name, and ``probability`` ``(N,)``."""
        raise NotImplementedError

    def unassessed(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The images of `slices` for ``(B, D, C, H, W)``, all as if not assessed."""
        raise NotImplementedError

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The classifier's p(diseased) ``(N,)`` of slices without noise."""
        timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.classifier.to(x.device).eval()(x, timesteps).float().softmax(dim=1)[:, DISEASED]


def learned_map(student: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The student's probability of lesion ``(N, 1, H, W)``.

    Args:
        student: its forward is x -> logits ``(N, 1, H, W)``, see `student`.
        x: slices ``(N, C, H, W)`` in [-1, 1], -1 outside the brain.
    """
    return student.to(x.device).eval()(x).float().sigmoid()


class CounterfactualInferer(SliceInferer):
    """Encode every slice to noise level L without guidance, decode it guided to healthy (Wolleb et al. 2022).

    Args:
        guidance: turns the diffusion network's noise model into a guided one, see `guidance`.
        scheduler: MONAI's, for its schedule.
        noise_level: L, in timesteps; 0 < L < T.
        num_inference_steps: steps up, and as many down; up to L, which is every timestep.
        num_fixed_point_iterations: a step of the encoding, from 0 to 100; 0 is the paper's plain DDIM.
        student: see `learned_map`; its map is given beside the counterfactual.
        options: see `SliceInferer`.

    The paper's setting is ``noise_level=500, num_inference_steps=500, num_fixed_point_iterations=0`` and a guidance
    scale of 100.

    Raises:
        ValueError: a number is out of range, of `guidance` too.
    """

    def __init__(
        self,
        guidance: Callable[[NoiseModel], NoiseModel],
        classifier: torch.nn.Module,
        scheduler: Scheduler,
        noise_level: int = 500,
        num_inference_steps: int = 20,
        num_fixed_point_iterations: int = 2,
        student: torch.nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(classifier, **options)
        check_number("num_fixed_point_iterations", num_fixed_point_iterations, 0, 100, whole=True)
        # now, so that what it refuses is refused before a volume is read
        guidance(lambda x, t: x)
        self.guidance = guidance
        # a copy: MONAI's add_noise casts the schedule in place to the dtype of the images it is given
        self.alphas_cumprod = scheduler.alphas_cumprod.float().clone()
        self.timesteps = timestep_grid(noise_level, num_inference_steps, scheduler.num_train_timesteps)
        self.num_fixed_point_iterations = num_fixed_point_iterations
        self.student = student

    @property
    def settings(self) -> str:
        """What the counterfactuals depend on beside the weights and the schedule."""
        options = getattr(self.guidance, "keywords", {})
        guidance = sorted((k, v) for k, v in options.items() if isinstance(v, (int, float)))
        return f"{self.timesteps}, {self.num_fixed_point_iterations}, {guidance}, {self.precision}"

    def slices(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """``counterfactual`` ``(N, C, H, W)``, ``student`` ``(N, 1, H, W)`` if there is one, ``probability`` ``(N,)``.

        Args:
            x: ``(N, C, H, W)`` in [-1, 1], -1 outside the brain.
            network: the diffusion network, f(x, t) -> eps.
        """
        alphas = self.alphas_cumprod.to(x.device)

        def noise_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return network(x, t).float()

        # the option decides, also under a caller's autocast
        with torch.no_grad(), autocast(x.device, self.precision):
            # first, as it puts the classifier on the device and in eval mode for the guidance
            found = {"probability": self.probability(x)}
            noise = encode(noise_model, x, self.timesteps, alphas, self.num_fixed_point_iterations)
            healthy = decode(self.guidance(noise_model), noise, self.timesteps, alphas)
            if self.student is not None:
                found["student"] = learned_map(self.student, x)
        # the outside of the brain has no counterfactual
        return found | {"counterfactual": torch.where(x > -1, healthy.clamp(-1, 1), x)}

    def unassessed(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Their counterfactuals are the slices themselves; the student says nothing of them."""
        learned = {"student": torch.full_like(x[:, :, :1], torch.nan)} if self.student is not None else {}
        return {"counterfactual": x.clone()} | learned


class StudentInferer(SliceInferer):
    """The student alone: one call a slice, and no counterfactual."""

    def slices(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """``student`` ``(N, 1, H, W)`` and ``probability`` ``(N,)``.

        Args:
            x: ``(N, C, H, W)`` in [-1, 1], -1 outside the brain.
            network: the student, a module, see `learned_map`.
        """
        assert isinstance(network, torch.nn.Module)
        with torch.no_grad(), autocast(x.device, self.precision):
            return {"student": learned_map(network, x), "probability": self.probability(x)}

    def unassessed(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The student says nothing of them."""
        return {"student": torch.full_like(x[:, :, :1], torch.nan)}
