"""The two Gaussians of `explain.gaussians` as images of 4 x 4 pixels, and what a sampler should give on them.

Guided with scale 1 the model is the healthy mode's own, whose DDIM steps are linear (`healthy_ddim`).
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler

from scripts import DISEASED, HEALTHY
from scripts.explain.gaussians import TwoGaussians, column
from scripts.method.guidance import ClassifierGuidance
from scripts.method.inferer import CounterfactualInferer
from scripts.method.sampler import NoiseModel

T = 1000
STD = 0.1
LESION = 0.5


def scheduler() -> DDIMScheduler:
    """MONAI's, with the paper's schedule."""
    return DDIMScheduler(num_train_timesteps=T, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)


def alphas_cumprod(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The schedule's cumulated alphas ``(T,)``."""
    return scheduler().alphas_cumprod.to(dtype)


def modes(channels: int = 1, size: int = 4) -> torch.Tensor:
    """The two means ``(2, C, size, size)``: a gradient; plus `LESION` on 2 x 2 pixels of the last channel."""
    mu = torch.linspace(-0.3, 0.3, size).expand(2, channels, size, size).clone()
    mu[DISEASED, -1, 1:3, 1:3] += LESION
    return mu


class NoisedClassifier(TwoGaussians):
    """The exact p(y | x, t) of noised images, as logits ``(N, 2)``; counts its calls."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(modes(channels), STD, alphas_cumprod())
        self.calls = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x, t)


def images(
    label: int, number: int, channels: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """``(N, C, 4, 4)`` drawn from one mode."""
    return NoisedClassifier(channels).draw(label, number, seed).to(dtype)


def noise_model(channels: int = 1) -> NoiseModel:
    """The exact eps(x, t) = -sqrt(1 - alpha) * score of the mixture."""
    return NoisedClassifier(channels).noise


def gradient_log_p_healthy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The closed form p(diseased | x, t) * sqrt(alpha) * (mu_healthy - mu_diseased) / v."""
    channels = x.shape[1]
    exact = NoisedClassifier(channels).requires_grad_(False)
    p, mu = exact(x, t).softmax(1)[:, DISEASED], modes(channels).to(x.dtype)
    a, v = column(alphas_cumprod(torch.float64)[t], x), column(exact.variance(t), x)
    return column(p, x) * a.sqrt() * (mu[HEALTHY] - mu[DISEASED]) / v


def healthy_ddim(x: torch.Tensor, timesteps: list[int]) -> torch.Tensor:
    """x at t_K carried down to t_0 by the healthy mode's own DDIM: every step multiplies the deviation from it."""
    alphas = alphas_cumprod(torch.float64)
    mu = modes(x.shape[1])[HEALTHY].to(x.dtype)
    deviation = x - alphas[timesteps[-1]].sqrt() * mu
    for t, t_next in zip(timesteps[:0:-1], timesteps[-2::-1], strict=True):
        a, b = alphas[t], alphas[t_next]
        v = a * STD**2 + 1 - a
        # sqrt(b) * x0 + sqrt(1 - b) * eps of the deviation, with eps = sqrt(1 - a) / v * deviation
        deviation = deviation * ((b / a).sqrt() * (1 - (1 - a) / v) + ((1 - a) * (1 - b)).sqrt() / v)
    return alphas[timesteps[0]].sqrt() * mu + deviation


def distance(x: torch.Tensor, label: int) -> torch.Tensor:
    """``(N,)``: how far along the line between the modes, from the mode of `label` (0) to the other (1)."""
    return NoisedClassifier(x.shape[1]).distance(x, label)


SAMPLING = {"noise_level": 500, "num_inference_steps": 20, "num_fixed_point_iterations": 2}


def exact(
    classifier: torch.nn.Module,
    schedule: DDIMScheduler | None = None,
    guidance_scale: float = 1.0,
    target_class: int = HEALTHY,
    **options: Any,
) -> CounterfactualInferer:
    """An inferer guided by `classifier`, in 20 steps of 25 up to 500 with two iterations unless told otherwise."""
    schedule = schedule or scheduler()
    guidance = ClassifierGuidance(
        classifier=classifier,
        alphas_cumprod=schedule.alphas_cumprod,
        guidance_scale=guidance_scale,
        target_class=target_class,
    )
    return CounterfactualInferer(guidance, classifier, schedule, **{**SAMPLING, **options})
