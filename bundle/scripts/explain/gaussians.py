"""A data set whose noise model and classifier are known in closed form: healthy and diseased are a Gaussian mode each."""

from __future__ import annotations

import torch

from .. import HEALTHY


def column(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``(N,)`` as ``(N, 1, ...)``, to multiply ``x``."""
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class TwoGaussians(torch.nn.Module):
    """The mixture 1/2 N(mu_healthy, std^2 I) + 1/2 N(mu_diseased, std^2 I), and what is exact of it.

    Noised to alpha_t (cumulated) a mode becomes N(sqrt(alpha_t) mu, v_t I) with v_t = alpha_t std^2 + 1 - alpha_t. So
    p(y | x, t), the score, and with it the noise eps(x, t) = -sqrt(1 - alpha_t) * score, are known. As a module it is the
    classifier: x, t -> logits ``(N, 2)``; `noise` is the noise model. Nothing is trained.

    Args:
        means: mu of the healthy and of the diseased ``(2, ...)``, of any shape: two numbers or a whole image.
        std: of every pixel, in both modes.
        alphas_cumprod: of the schedule, ``(T,)``.
    """

    def __init__(self, means: torch.Tensor, std: float, alphas_cumprod: torch.Tensor) -> None:
        super().__init__()
        # like a network's weights; flat, as those of a linear layer
        self.weight = torch.nn.Parameter(means.flatten(1).clone())
        self.shape = means.shape[1:]
        self.std = std
        self.register_buffer("alphas", alphas_cumprod.double())

    def draw(self, label: int, number: int, seed: int = 0) -> torch.Tensor:
        """``(N, ...)`` of the mode of `label`."""
        noise = torch.randn((number, *self.shape), generator=torch.Generator().manual_seed(seed))
        return self.weight.detach()[label].view(self.shape) + self.std * noise

    def variance(self, t: torch.Tensor) -> torch.Tensor:
        """v_t, as `t`."""
        alphas = self.get_buffer("alphas")[t]
        return alphas * self.std**2 + 1 - alphas

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The part of log N(x; sqrt(alpha_t) mu, v_t) that depends on the class, ``(N, 2)``."""
        a, v = (values.to(x.dtype)[:, None] for values in (self.get_buffer("alphas")[t], self.variance(t)))
        mu = self.weight.to(x.dtype)
        return (a.sqrt() * torch.nn.functional.linear(x.flatten(1), mu) - a * mu.square().sum(1) / 2) / v

    def noise(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """eps(x, t) = sqrt(1 - alpha_t) (x - sqrt(alpha_t) E[mu | x, t]) / v_t, shaped like ``x``."""
        a, v = column(self.get_buffer("alphas")[t], x), column(self.variance(t), x)
        with torch.no_grad():
            mean = (self(x, t).softmax(1).to(x.dtype) @ self.weight.to(x.dtype)).view_as(x)
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / v

    def distance(self, x: torch.Tensor, label: int = HEALTHY) -> torch.Tensor:
        """``(N,)``: how far along the line between the modes, from the mode of `label` (0) to the other (1)."""
        mu = self.weight.detach().to(x.dtype)
        line = mu[1 - label] - mu[label]
        return (x.flatten(1) - mu[label]) @ line / line.square().sum()
