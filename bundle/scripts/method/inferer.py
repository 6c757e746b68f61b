"""The healthy counterpart of slices, and a student that learned from many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.schedulers import Scheduler

from ..checks import check_number
from ..device import autocast
from .guidance import Guidance
from .sampler import decode, encode, timestep_grid
from .slices import Findings, SliceInferer


def with_counterpart(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What a student gives of slices, with the healthy counterpart in place of the change that heals.

    Args:
        x: slices ``(N, C, H, W)``.
        out: the student's ``(N, 1 + C, H, W)``: the map's logits, and what is to be added to the slice.

    Returns:
        ``(N, 1 + C, H, W)``: the logits and the counterparts.
    """
    return torch.cat([out[:, :1], x + out[:, 1:]], dim=1)


def learned(student: torch.nn.Module, x: torch.Tensor, foreground: torch.Tensor) -> Findings:
    """What a student says of slices, in one call: ``student``, its map, and ``counterpart``.

    Args:
        student: its forward is x -> ``(N, 1 + C, H, W)``, see `with_counterpart` and `learning.pseudo_labels.Lesson`.
        x: slices ``(N, C, H, W)`` in [-1, 1].
        foreground: bool ``(N, 1, H, W)``; what lies outside is its own counterpart.
    """
    out = with_counterpart(x, student.to(x.device).eval()(x).float())
    return {"student": out[:, :1].sigmoid(), "counterpart": torch.where(foreground, out[:, 1:].clamp(-1, 1), x)}


def unlearned(x: torch.Tensor) -> Findings:
    """The same of slices that are not assessed, ``(B, D, C, H, W)``: no map, and each is its own counterpart."""
    return {"student": torch.full_like(x[:, :, :1], torch.nan), "counterpart": x.clone()}


class CounterfactualInferer(SliceInferer):
    """Encode every slice to noise level L without guidance, decode it guided to healthy (Wolleb et al. 2022).

    Args:
        guidance: turns the diffusion network's noise model into a guided one, see `guidance`.
        scheduler: MONAI's, for its schedule.
        noise_level: L, in timesteps; 0 < L < T.
        num_inference_steps: steps up, and as many down; up to L, which is every timestep.
        num_fixed_point_iterations: a step of the encoding, from 0 to 100; 0 is the paper's plain DDIM.
        guidance_exponent: from 0 to 10. The guidance scale of a slice is multiplied by p(diseased), before any temperature, to
            this power, so that what is healthy is left as it is; with 0, as in the paper, every slice has the same.
        student: see `learned`; what it says is given beside the counterfactual.
        network: the diffusion network, where the inferer is called with another one: MONAI Label calls it with what a bundle's
            ``network_def`` is, and that of a released bundle is the student.
        options: see `SliceInferer`; the target class is that of the guidance.

    The paper's setting is ``noise_level=500, num_inference_steps=500, num_fixed_point_iterations=0`` and a guidance
    scale of 100.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        guidance: Guidance,
        classifier: torch.nn.Module,
        scheduler: Scheduler,
        noise_level: int,
        num_inference_steps: int,
        num_fixed_point_iterations: int,
        guidance_exponent: float = 0,
        student: torch.nn.Module | None = None,
        network: torch.nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(classifier, guidance.target_class, scheduler=scheduler, **options)
        check_number("num_fixed_point_iterations", num_fixed_point_iterations, 0, 100, whole=True)
        check_number("guidance_exponent", guidance_exponent, 0, 10)
        self.guidance = guidance
        self.timesteps = timestep_grid(noise_level, num_inference_steps, scheduler.num_train_timesteps)
        self.num_fixed_point_iterations = num_fixed_point_iterations
        self.guidance_exponent = guidance_exponent
        self.student, self.network = student, network

    @property
    def settings(self) -> dict[str, Any]:
        return {
            **super().settings,
            "noise_level": self.timesteps[-1],
            "num_inference_steps": len(self.timesteps) - 1,
            "num_fixed_point_iterations": self.num_fixed_point_iterations,
            "guidance_exponent": self.guidance_exponent,
            **self.guidance.settings,
        }

    def slices(self, x: torch.Tensor, foreground: torch.Tensor, network: Callable[..., torch.Tensor]) -> Findings:
        """``counterfactual``, what `learned` gives if there is a student, and ``probability``.

        Args:
            x: ``(N, C, H, W)`` in [-1, 1].
            foreground: bool ``(N, 1, H, W)``; what lies outside is its own counterfactual.
            network: the diffusion network, f(x, t) -> eps ``(N, C, H, W)``, or ``(N, 2C, H, W)`` if it learned the variance
                too, which deterministic DDIM has no use for.
        """
        assert self.alphas_cumprod is not None
        alphas = self.alphas_cumprod.to(x.device)
        predict = network if self.network is None else self.network.to(x.device).eval()

        def noise_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return predict(x, t)[:, : x.shape[1]].float()

        # the option decides, also under a caller's autocast
        with torch.no_grad(), autocast(x.device, self.precision):
            # first, as it puts the classifier on the device and in eval mode for the guidance
            logits = self.logits(x)
            found: Findings = {"probability": self.diseased(logits / self.temperature)}
            noise = encode(noise_model, x, self.timesteps, alphas, self.num_fixed_point_iterations)
            if self.guidance_exponent:
                guided = self.guidance(noise_model, self.diseased(logits) ** self.guidance_exponent)
            else:
                guided = self.guidance(noise_model)
            healthy = decode(guided, noise, self.timesteps, alphas)
            if self.student is not None:
                found |= learned(self.student, x, foreground)
        found["counterfactual"] = torch.where(foreground, healthy.clamp(-1, 1), x)
        return found

    def unassessed(self, x: torch.Tensor) -> Findings:
        """Their counterfactuals are the slices themselves; the student says nothing of them."""
        found: Findings = {"counterfactual": x.clone()}
        if self.student is not None:
            found |= unlearned(x)
        return found


class StudentInferer(SliceInferer):
    """The student alone: one call of it a slice, and one of the classifier for the gate.

    Args:
        classifier: see `SliceInferer`.
        options: see `SliceInferer`.
    """

    def slices(self, x: torch.Tensor, foreground: torch.Tensor, network: Callable[..., torch.Tensor]) -> Findings:
        """``student``, ``counterpart`` and ``probability``.

        Args:
            x: ``(N, C, H, W)`` in [-1, 1].
            foreground: bool ``(N, 1, H, W)``; what lies outside is its own counterpart.
            network: the student, a module, see `learned`.

        Raises:
            ValueError: there is no student.
        """
        if not isinstance(network, torch.nn.Module):
            raise ValueError(
                "the preview is the student's, and there is none; leave out configs/preview.json or --student."
            )
        with torch.no_grad(), autocast(x.device, self.precision):
            return {**learned(network, x, foreground), "probability": self.probability(x)}

    def unassessed(self, x: torch.Tensor) -> Findings:
        """The student says nothing of them; each is its own counterpart."""
        return unlearned(x)
