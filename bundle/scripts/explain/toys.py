"""Two toys, images of two pixels and small images, and what the method makes of them: numbers only, no picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.schedulers import DDIMScheduler

from .. import DISEASED, HEALTHY
from ..method.guidance import ClassifierGuidance
from ..method.inferer import CounterfactualInferer
from ..method.maps import anomaly_map
from ..method.sampler import decode, encode, timestep_grid
from .gaussians import TwoGaussians

NOISE_LEVEL, STEPS, ITERATIONS = 500, 40, 5
"""The paper's noise level, in fewer steps, with fixed-point iterations that make the way up exact."""
RIGHT, TOO_STRONG = 2.0, 300.0
SCALES = (0.0, RIGHT, TOO_STRONG)
"""Of the guidance, for this exact classifier; those of trained ones are others."""


def schedule() -> DDIMScheduler:
    """MONAI's, with the paper's betas."""
    return DDIMScheduler(num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)


def two_pixels() -> TwoGaussians:
    """Images ``(2,)``: a pixel that says whose image it is, and one that a disease makes brighter by 1.2."""
    means = torch.zeros(2, 2)
    means[HEALTHY, 1], means[DISEASED, 1] = -0.6, 0.6
    return TwoGaussians(means, 0.15, schedule().alphas_cumprod)


def organ(size: int = 20) -> torch.Tensor:
    """The foreground of `small_images`, an ellipse: bool ``(size, size)``."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    return (x / 0.8) ** 2 + (y / 0.95) ** 2 < 1


def lesion(size: int = 20) -> torch.Tensor:
    """Where a disease makes `small_images` brighter by 0.5: bool ``(size, size)``, 12 pixels."""
    y, x = torch.meshgrid(*[torch.arange(size) - size // 2] * 2, indexing="ij")
    return (x - 2.5) ** 2 + (y + 3.5) ** 2 < 4


def small_images(size: int = 20) -> TwoGaussians:
    """Images ``(1, size, size)`` of an organ, black around it."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    healthy = torch.where(organ(size), 0.1 - 0.5 * (x**2 + y**2) * (x.abs() > 0.2), -1.0)
    return TwoGaussians(torch.stack([healthy, healthy + 0.5 * lesion(size)])[:, None], 0.12, schedule().alphas_cumprod)


@dataclass
class Paths:
    """x at every timestep of the grid, ``(K + 1, N, ...)``, in the grid's order: index 0 is t = 0."""

    timesteps: list[int]
    up: torch.Tensor
    down: torch.Tensor


def paths(toy: TwoGaussians, x: torch.Tensor, guidance_scale: float) -> Paths:
    """The way of ``x`` ``(N, ...)`` up without guidance, and from there down guided to healthy."""
    alphas = schedule().alphas_cumprod
    grid = timestep_grid(NOISE_LEVEL, STEPS, len(alphas))
    guided = ClassifierGuidance(toy, alphas, guidance_scale, HEALTHY)(toy.noise)
    # a point of the way is where a shorter grid ends
    up = [encode(toy.noise, x, grid[: k + 1], alphas, ITERATIONS) for k in range(len(grid))]
    down = [decode(guided, up[-1], grid[k:], alphas) for k in range(len(grid))]
    return Paths(grid, torch.stack(up), torch.stack(down))


def ends(toy: TwoGaussians, x: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Where the ways end, shaped like ``x``."""
    alphas = schedule().alphas_cumprod
    grid = timestep_grid(NOISE_LEVEL, STEPS, len(alphas))
    guided = ClassifierGuidance(toy, alphas, guidance_scale, HEALTHY)(toy.noise)
    return decode(guided, encode(toy.noise, x, grid, alphas, ITERATIONS), grid, alphas)


def example_images(size: int = 20) -> torch.Tensor:
    """A diseased image and a healthy one ``(2, 1, size, size)``."""
    toy = small_images(size)
    x = torch.cat([toy.draw(DISEASED, 1, seed=2), toy.draw(HEALTHY, 1, seed=1)])
    return torch.where(organ(size), x, -1.0)


def counterpart_and_map(toy: TwoGaussians, x: torch.Tensor, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The healthy counterparts of `small_images` ``(N, 1, H, W)``, by the inferer of the bundle, and the paper's map."""
    guidance = ClassifierGuidance(toy, schedule().alphas_cumprod, guidance_scale, HEALTHY)
    inferer = CounterfactualInferer(guidance, toy, schedule(), NOISE_LEVEL, STEPS, ITERATIONS)
    foreground = organ(x.shape[-1]).expand_as(x)
    volumes = inferer(x[..., None], toy.noise, foreground[..., None].float())  # of one slice each
    healthy = volumes["counterfactual"][..., 0]
    return healthy, anomaly_map(x, healthy, foreground, polarity="both", median_size=1)
