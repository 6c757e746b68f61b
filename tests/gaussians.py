"""A data set whose noise model and classifier are known in closed form: healthy and diseased are a Gaussian mode each.

Images are drawn from 1/2 N(mu_healthy, std^2 I) + 1/2 N(mu_diseased, std^2 I). Noised to alpha (cumulated) a mode
becomes N(sqrt(alpha) mu, v I) with v = alpha std^2 + 1 - alpha, so the score, eps = -sqrt(1 - alpha) * score and
p(y | x, t) are exact. What a sampler should give is known, too: guided with scale 1 the model is the healthy mode's
own, whose DDIM steps are linear (`healthy_ddim`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler

from scripts import DISEASED, HEALTHY
from scripts.method.guidance import ClassifierGuidance
from scripts.method.inferer import CounterfactualInferer

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


def images(
    label: int, number: int, channels: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """``(N, C, 4, 4)`` drawn from one mode."""
    mu = modes(channels)[label]
    noise = torch.randn((number, *mu.shape), generator=torch.Generator().manual_seed(seed))
    return (mu + STD * noise).to(dtype)


def _column(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class NoisedClassifier(torch.nn.Module):
    """The exact p(y | x, t) of noised images, as logits ``(N, 2)``; counts its calls."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(modes(channels).flatten(1))
        self.register_buffer("alphas", alphas_cumprod(torch.float64))
        self.calls = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The part of log N(x; sqrt(alpha) mu, v) that depends on the class."""
        self.calls += 1
        a = self.get_buffer("alphas")[t].to(x.dtype)[:, None]
        mu = self.weight.to(x.dtype)
        v = a * STD**2 + 1 - a
        return (a.sqrt() * torch.nn.functional.linear(x.flatten(1), mu) - a * mu.square().sum(1) / 2) / v


def noise_model(channels: int = 1) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The exact eps(x, t) = -sqrt(1 - alpha) * score of the mixture."""
    classifier = NoisedClassifier(channels).requires_grad_(False)
    mu, alphas = modes(channels), alphas_cumprod(torch.float64)

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = _column(alphas[t], x)
        p = classifier(x, t).softmax(1).to(x.dtype)
        mean = torch.einsum("ny,ychw->nchw", p, mu.to(x.dtype))
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * STD**2 + 1 - a)

    return eps


def gradient_log_p_healthy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The closed form p(diseased | x, t) * sqrt(alpha) * (mu_healthy - mu_diseased) / v."""
    channels = x.shape[1]
    a = _column(alphas_cumprod(torch.float64)[t], x)
    p = NoisedClassifier(channels).requires_grad_(False)(x, t).softmax(1)[:, DISEASED]
    mu = modes(channels).to(x.dtype)
    return _column(p, x) * a.sqrt() * (mu[HEALTHY] - mu[DISEASED]) / (a * STD**2 + 1 - a)


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
    mu = modes(x.shape[1]).to(x.dtype)
    line = mu[1 - label] - mu[label]
    return ((x - mu[label]) * line).flatten(1).sum(1) / line.square().sum()


def exact(
    classifier: torch.nn.Module,
    schedule: DDIMScheduler | None = None,
    guidance_scale: float = 1.0,
    target_class: int = HEALTHY,
    **options: Any,
) -> CounterfactualInferer:
    """An inferer guided by `classifier`."""
    schedule = schedule or scheduler()
    guidance = ClassifierGuidance(
        classifier=classifier,
        alphas_cumprod=schedule.alphas_cumprod,
        guidance_scale=guidance_scale,
        target_class=target_class,
    )
    return CounterfactualInferer(guidance, classifier, schedule, **options)
