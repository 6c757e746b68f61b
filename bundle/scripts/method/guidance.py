"""Guidance turns a noise model into a noise model, so the sampler never knows that it is guided."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .. import DISEASED, HEALTHY
from ..checks import check_number
from .sampler import NoiseModel

MAX_SCALE = 1000
"""Ten times the paper's scale."""


class Guidance(Protocol):
    """What a guidance is: ``guidance(noise_model)`` is the guided noise model."""

    target_class: int
    """The class to guide to, as in the labels: the healthy one."""

    def __call__(self, noise_model: NoiseModel, strength: torch.Tensor | None = None) -> NoiseModel:
        """The same, guided; each slice by its part of the scale, ``strength`` ``(N,)``, by default all of it."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the guided noise depends on beside weights and schedule."""


class ClassifierGuidance:
    """eps(x, t) - s * sqrt(1 - alpha_t) * grad_x log p(target | x, t), Dhariwal and Nichol 2021, algorithm 2.

    It is the paper's equation for the guided noise, with each slice's part of s where a ``strength`` is given. The gradient
    works under a caller's `torch.no_grad` and `torch.inference_mode`.

    Args:
        classifier: f(x, t) -> logits ``(N, classes)`` of noised images.
        alphas_cumprod: of the schedule, ``(T,)``.
        guidance_scale: s, from 0 to `MAX_SCALE`.
        target_class: the class to guide to, as in the labels, 0 or 1.

    Raises:
        ValueError: the scale or the class is out of range.
    """

    def __init__(
        self,
        classifier: torch.nn.Module,
        alphas_cumprod: torch.Tensor,
        guidance_scale: float,
        target_class: int = HEALTHY,
    ) -> None:
        check_number("guidance_scale", guidance_scale, 0, MAX_SCALE)
        check_number("target_class", target_class, HEALTHY, DISEASED, whole=True)
        self.classifier = classifier
        self.alphas_cumprod = alphas_cumprod.float().clone()
        self.guidance_scale = guidance_scale
        self.target_class = target_class

    @property
    def settings(self) -> dict[str, Any]:
        """The scale and the class."""
        return {"guidance_scale": self.guidance_scale, "target_class": self.target_class}

    def gradient(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """grad_x log p(target | x, t), same shape as ``x``."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            log_p = self.classifier(x, t.clone()).float().log_softmax(dim=1)[:, self.target_class]
            return torch.autograd.grad(log_p.sum(), x)[0]

    def __call__(self, noise_model: NoiseModel, strength: torch.Tensor | None = None) -> NoiseModel:
        def guided(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            sigma = (1 - self.alphas_cumprod.to(x.device)[t]).sqrt()
            scale = self.guidance_scale * (sigma if strength is None else sigma * strength)
            return noise_model(x, t) - scale.view(-1, *[1] * (x.ndim - 1)) * self.gradient(x, t)

        return guided
