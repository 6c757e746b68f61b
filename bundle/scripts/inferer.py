"""Networks of slices on whole volumes: the healthy counterpart, and a student's short cut to its map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.networks.schedulers import Scheduler
from monai.utils import convert_to_tensor
from tqdm import tqdm

from . import DISEASED
from .bundle import autocast
from .preprocessing import assessed_slices
from .sampler import NoiseModel, decode, encode, timestep_grid

CPU_BATCH, GPU_BATCH = 16, 256
"""Slices in one network call: a CPU gains nothing beyond, and a whole volume is one call on a GPU with the memory for it."""


def with_neighbours(probability: torch.Tensor) -> torch.Tensor:
    """Each slice's p(diseased) averaged with the slices above and below, in parts 1 : 2 : 1, as lesions span slices.

    Args:
        probability: ``(..., D)``, NaN where not assessed, which counts for no neighbour.

    Returns:
        ``(..., D)``, NaN where it was.
    """
    around = torch.nn.functional.pad(probability, (1, 1), value=torch.nan).unfold(-1, 3, 1)  # (..., D, 3)
    weight = around.new_tensor([1.0, 2.0, 1.0]).where(~around.isnan(), 0)
    mean = (around.nan_to_num() * weight).sum(dim=-1) / weight.sum(dim=-1)
    return mean.where(~probability.isnan(), torch.nan)


class SliceInferer(Inferer):
    """Folds volumes into slices and takes those that are assessed through the networks in batches.

    A subclass says in `slices` what it gives for a slice, in `unassessed` what stands for the others, and in `result` what
    that is called. The result is deterministic.

    Args:
        classifier: f(x, t) -> logits ``(N, 2)`` of noised slices, for p(diseased).
        min_area_fraction: slices with less of the largest slice's brain are not assessed.
        batch_size: slices in one network call; by default `CPU_BATCH`, or on a GPU the largest that its memory holds: from
            `GPU_BATCH` down, halved whenever memory runs out.
        precision: "float32", or "bfloat16" for autocast within the networks.
        progress: show a bar.

    Raises:
        ValueError: another precision.
    """

    result: str

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
            What `slices` gives, under the name of `result`, ``(B, C, H, W, D)``; ``probability``, the classifier's
            p(diseased) `with_neighbours`, ``(B, D)``, NaN where not assessed; ``assessed``, bool ``(B, D)``.
        """
        x = convert_to_tensor(inputs).float()
        if assessed is None:
            assessed = assessed_slices(x, self.min_area_fraction)
        slices = x.movedim(-1, 1)  # (B, D, C, H, W)
        result = self.unassessed(slices)
        probability = torch.full(assessed.shape, torch.nan, device=x.device)
        chosen = slices[assessed]
        if len(chosen):
            result[assessed], probability[assessed] = self._batches(chosen, network)
        return {
            self.result: result.movedim(1, -1),
            "probability": with_neighbours(probability),
            "assessed": assessed,
        }

    def _batches(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """`slices` in batches that fit the memory."""
        size = self.batch_size or (GPU_BATCH if x.device.type == "cuda" else CPU_BATCH)
        results: list[tuple[torch.Tensor, torch.Tensor]] = []
        done = 0
        with tqdm(total=len(x), desc="slices", leave=False, disable=not self.progress) as bar:
            while done < len(x):
                batch = x[done : done + size]
                try:
                    results.append(self.slices(batch, network))
                except torch.OutOfMemoryError:
                    if self.batch_size or len(batch) == 1:
                        raise
                    size = len(batch) // 2
                    torch.cuda.empty_cache()
                    continue
                done += len(batch)
                bar.update(len(batch))
        return torch.cat([r[0] for r in results]), torch.cat([r[1] for r in results])

    def slices(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The result ``(N, C, H, W)`` and p(diseased) ``(N,)`` of slices ``(N, C, H, W)``."""
        raise NotImplementedError

    def unassessed(self, x: torch.Tensor) -> torch.Tensor:
        """What stands for slices ``(B, D, C, H, W)`` that are not assessed: themselves."""
        return x.clone()

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The classifier's p(diseased) ``(N,)`` of slices without noise."""
        timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.classifier.to(x.device).eval()(x, timesteps).float().softmax(dim=1)[:, DISEASED]


class CounterfactualInferer(SliceInferer):
    """Encode every slice to noise level L without guidance, decode it guided to healthy (Wolleb et al. 2022).

    Args:
        guidance: turns the diffusion network's noise model into a guided one, see `guidance`.
        scheduler: MONAI's, for its schedule.
        noise_level: L, in timesteps; 0 < L < T.
        num_inference_steps: steps up, and as many down; up to L, which is every timestep.
        num_fixed_point_iterations: a step of the encoding; 0 is the paper's plain DDIM.
        options: see `SliceInferer`.

    The paper's setting is ``noise_level=500, num_inference_steps=500, num_fixed_point_iterations=0`` and a guidance
    scale of 100.

    Raises:
        ValueError: `noise_level` or `num_inference_steps` is out of range.
    """

    result = "counterfactual"

    def __init__(
        self,
        guidance: Callable[[NoiseModel], NoiseModel],
        classifier: torch.nn.Module,
        scheduler: Scheduler,
        noise_level: int = 500,
        num_inference_steps: int = 20,
        num_fixed_point_iterations: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(classifier, **options)
        self.guidance = guidance
        # a copy: MONAI's add_noise casts the schedule in place to the dtype of the images it is given
        self.alphas_cumprod = scheduler.alphas_cumprod.float().clone()
        self.timesteps = timestep_grid(noise_level, num_inference_steps, scheduler.num_train_timesteps)
        self.num_fixed_point_iterations = num_fixed_point_iterations

    @property
    def settings(self) -> str:
        """What the counterfactuals depend on beside the weights and the schedule."""
        options = getattr(self.guidance, "keywords", {})
        guidance = sorted((k, v) for k, v in options.items() if isinstance(v, (int, float)))
        return f"{self.timesteps}, {self.num_fixed_point_iterations}, {guidance}, {self.precision}"

    def slices(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The counterfactuals ``(N, C, H, W)`` and p(diseased) ``(N,)`` of slices ``(N, C, H, W)``.

        Args:
            x: in [-1, 1], -1 outside the brain.
            network: the diffusion network, f(x, t) -> eps.
        """
        alphas = self.alphas_cumprod.to(x.device)
        # the option decides, also under a caller's autocast
        amp = autocast(x.device, self.precision)

        def noise_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return network(x, t).float()

        with torch.no_grad(), amp:
            probability = self.probability(
                x
            )  # first, as it puts the classifier on the device and in eval mode for the guidance
            noise = encode(noise_model, x, self.timesteps, alphas, self.num_fixed_point_iterations)
            healthy = decode(self.guidance(noise_model), noise, self.timesteps, alphas)
        # the outside of the brain has no counterfactual
        healthy = torch.where(x > -1, healthy.clamp(-1, 1), x)
        return healthy, probability


class StudentInferer(SliceInferer):
    """A segmentation network that was trained on the maps of counterfactuals: one call a slice, and no counterfactual."""

    result = "anomaly_map"

    def unassessed(self, x: torch.Tensor) -> torch.Tensor:
        """One empty map a slice."""
        return torch.zeros_like(x[:, :, :1])

    def slices(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's probability of lesion ``(N, 1, H, W)``, and p(diseased) ``(N,)``, of slices ``(N, C, H, W)``.

        Args:
            x: in [-1, 1], -1 outside the brain.
            network: the student, f(x) -> logits ``(N, 1, H, W)``.
        """
        with torch.no_grad(), autocast(x.device, self.precision):
            return network(x).float().sigmoid(), self.probability(x)
