"""Deterministic DDIM (Song et al. 2021, eq. 12 with sigma = 0) along one explicit grid of timesteps, up and down.

A *noise model* is any ``f(x, t) -> eps`` with ``x`` and ``eps`` of shape ``(N, ...)`` and ``t`` int64 ``(N,)``. MONAI's
`DDIMScheduler` is not used for stepping: its `set_timesteps` and its `step` assume different strides (1.6.1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..checks import check_number

NoiseModel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def timestep_grid(noise_level: int, num_inference_steps: int, num_train_timesteps: int) -> list[int]:
    """The grid 0 = t_0 < t_1 < ... < t_K = L, as even as integers allow; all are whole numbers.

    Args:
        noise_level: L, 0 < L < `num_train_timesteps`.
        num_inference_steps: K, 1 <= K <= L.
        num_train_timesteps: T.

    Raises:
        ValueError: L or K is no whole number, or out of range.
    """
    allowed = f"above 0 and below {num_train_timesteps}"
    check_number("noise_level", noise_level, 1, num_train_timesteps - 1, allowed, whole=True)
    # every step needs a timestep of its own
    allowed = f"from 1 to the noise_level, {noise_level}"
    check_number("num_inference_steps", num_inference_steps, 1, noise_level, allowed, whole=True)
    return [round(k * noise_level / num_inference_steps) for k in range(num_inference_steps + 1)]


def ddim_step(x: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, alpha_next: torch.Tensor) -> torch.Tensor:
    """Carry ``x`` from the noise level of ``alpha`` to that of ``alpha_next`` (both cumulated) along ``eps``; either way."""
    x0 = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    return alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * eps


def encode(
    noise_model: NoiseModel,
    x: torch.Tensor,
    timesteps: list[int],
    alphas_cumprod: torch.Tensor,
    num_fixed_point_iterations: int = 0,
) -> torch.Tensor:
    """Image to noise: walk the grid up, without guidance.

    Plain DDIM takes eps at the start of a step though decoding will take it at the end, an error that grows with the
    stride. A fixed-point iteration takes it at the end as found so far, and again: where it converges, that is the exact
    inverse of `decode`; with long strides it may oscillate instead. K steps cost K network calls without iterations and
    K * `num_fixed_point_iterations` + 1 with them: the first guess of a step is the last eps of the step before.

    Args:
        noise_model: f(x, t) -> eps.
        x: the images, ``(N, ...)``, taken as x at t_0 = 0.
        timesteps: the grid, rising.
        alphas_cumprod: of the schedule, ``(T,)``.
        num_fixed_point_iterations: a step; 0 is the paper's plain DDIM.

    Returns:
        x at t_K.
    """
    pairs = list(zip(timesteps[:-1], timesteps[1:], strict=True))
    eps = None
    for t, t_next in pairs:
        a, a_next = alphas_cumprod[t], alphas_cumprod[t_next]
        if eps is None or num_fixed_point_iterations == 0:
            eps = noise_model(x, _full(x, t))
        x_next = ddim_step(x, eps, a, a_next)
        for _ in range(num_fixed_point_iterations):
            eps = noise_model(x_next, _full(x, t_next))
            x_next = ddim_step(x, eps, a, a_next)
        x = x_next
    return x


def decode(
    noise_model: NoiseModel, x: torch.Tensor, timesteps: list[int], alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """Noise to image: walk the same grid down.

    Args:
        noise_model: f(x, t) -> eps, guided or not.
        x: x at t_K, ``(N, ...)``.
        timesteps: the grid, rising, as for `encode`.
        alphas_cumprod: of the schedule, ``(T,)``.

    Returns:
        x at t_0 = 0.
    """
    down = timesteps[::-1]
    for t, t_next in zip(down[:-1], down[1:], strict=True):
        x = ddim_step(x, noise_model(x, _full(x, t)), alphas_cumprod[t], alphas_cumprod[t_next])
    return x


def _full(x: torch.Tensor, t: int) -> torch.Tensor:
    return torch.full((x.shape[0],), t, dtype=torch.long, device=x.device)
