"""The loss of a network that learns its variance beside the noise (Nichol and Dhariwal 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from monai.networks.schedulers import Scheduler
from torch.special import ndtr

BIN = 1 / 255
"""Half of a grey value's width, where 256 of them span [-1, 1]."""


class HybridLoss(torch.nn.Module):
    """L_simple + lambda L_vlb, equation 16; the bound teaches the variance alone, as its mean is detached.

    The network gives the noise and v, a value each. The variance of a step down from t lies between beta, v = 1, and
    beta-tilde = beta (1 - alpha_(t-1)) / (1 - alpha_t), v = -1, interpolated in the logarithm: equation 15. (MONAI's
    ``learned_range`` is linear in the variance itself.) As beta-tilde is 0 at t = 0, that of t = 1 stands there.

    L_vlb is the sum over all T steps of their Kullback-Leibler divergence from the true step down, and at t = 0 of the negative
    log-likelihood of images of 256 grey values in [-1, 1], in bits a value of an image. The step that was drawn stands for all:
    with T = 1000 and lambda = 0.001, the loss is the reference's squared error and the term of that step, one to one.

    Args:
        scheduler: MONAI's, for its schedule, ``(T,)``.
        vlb_weight: lambda.
    """

    def __init__(self, scheduler: Scheduler, vlb_weight: float = 0.001) -> None:
        super().__init__()
        self.vlb_weight = vlb_weight
        betas = scheduler.betas.double()
        noise = 1 - (1 - betas).cumprod(0)  # 1 - alpha_t
        posterior = betas[1:] * noise[:-1] / noise[1:]
        self.log_largest = betas.log().float()
        self.log_smallest = torch.cat([posterior[:1], posterior]).log().float()
        self.mean_of_noise = (betas / ((1 - betas) * noise).sqrt()).float()
        """What an error of the noise is of the mean; at t = 0 the mean is an estimate of the image itself."""

    def forward(self, pred: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean over a batch.

        Args:
            pred: noise and v, ``(N, 2 C, H, W)``.
            target: ``image`` in [-1, 1] and ``noise``, ``(N, C, H, W)``, and ``timesteps``, ``(N,)``.
        """
        noise, v = pred.chunk(2, dim=1)
        error = noise - target["noise"]
        bound = self.bound(error.detach(), v, target["image"], target["timesteps"])
        return error.square().mean() + self.vlb_weight * len(self.log_largest) * bound.mean()

    def log_variance(self, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Of the step down from t: ``(N, ...)`` as v."""
        largest, smallest = (self._at(t, table, v) for table in (self.log_largest, self.log_smallest))
        share = (v + 1) / 2
        return share * largest + (1 - share) * smallest

    def bound(self, error: torch.Tensor, v: torch.Tensor, image: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The term of t in L_vlb, in bits, a value each; `error` is the noise predicted minus the noise."""
        log_variance = self.log_variance(v, t)
        # the true mean minus the predicted one: what both have of x_t is the same
        distance = self._at(t, self.mean_of_noise, v) * error
        log_ratio = self._at(t, self.log_smallest, v) - log_variance
        divergence = (distance.square() * (-log_variance).exp() + log_ratio.exp() - 1 - log_ratio) / 2
        deviation = (log_variance / 2).exp()
        closed = ndtr((BIN - distance.abs()) / deviation) - ndtr((-BIN - distance.abs()) / deviation)
        # what lies beyond the brightest and the darkest grey value belongs to it
        brightest, darkest = (ndtr((BIN - sign * distance) / deviation) for sign in (1, -1))
        likelihood = torch.where(image > 0.999, brightest, torch.where(image < -0.999, darkest, closed))
        first = t.view(-1, *[1] * (v.ndim - 1)) == 0
        return torch.where(first, -likelihood.clamp_min(1e-12).log(), divergence) / math.log(2)

    @staticmethod
    def _at(t: torch.Tensor, table: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return table.to(like.device)[t].view(-1, *[1] * (like.ndim - 1))


def images_in(target: Mapping[str, torch.Tensor]) -> int:
    """How many images a target of `HybridLoss` is of, for the mean over batches."""
    return len(target["noise"])
