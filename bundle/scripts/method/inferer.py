"""Networks of slices on whole volumes: the healthy counterpart, and a student that learned from many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.schedulers import Scheduler

from ..checks import check_number
from ..device import autocast
from .sampler import NoiseModel, decode, encode, timestep_grid
from .slices import SliceInferer


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
