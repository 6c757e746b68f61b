"""The loss of a network that learns its variance, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch.distributions import Normal, kl_divergence

from scripts.learning.hybrid_loss import HybridLoss, images_in

SCHEDULE = {"num_train_timesteps": 1000, "schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02}


def loss() -> HybridLoss:
    return HybridLoss(DDIMScheduler(**SCHEDULE))


def schedule() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """beta, alpha_t (the product) and that of the step before, in float64."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, 0)
    return betas, alphas, torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])


@pytest.mark.parametrize("t", [1, 2, 10, 500, 999])
def test_the_variance_is_interpolated_in_the_logarithm(t: int) -> None:
    """beta^((1 + v) / 2) beta-tilde^((1 - v) / 2); half-way their geometric mean, where MONAI gives the arithmetic one."""
    betas, alphas, before = schedule()
    largest = float(betas[t])
    smallest = float(betas[t] * (1 - before[t]) / (1 - alphas[t]))
    v = torch.tensor([[-1.0, -0.3, 0.0, 0.7, 1.0]])
    found = loss().log_variance(v, torch.tensor([t])).exp()[0].tolist()
    expected = [largest ** ((1 + x) / 2) * smallest ** ((1 - x) / 2) for x in v[0].tolist()]
    assert found == pytest.approx(expected, rel=2e-5)
    linear = DDPMScheduler(**SCHEDULE, variance_type="learned_range")._get_variance(t, v[0])
    assert float(linear[2]) == pytest.approx((largest + smallest) / 2, rel=1e-3)
    assert t > 1 or float(linear[2]) > 1.07 * found[2]  # far up, the two ends are next to one


def test_the_variance_of_the_last_step_lies_above_that_of_the_one_before() -> None:
    """beta-tilde is 0 at t = 0, which has no logarithm."""
    betas, alphas, before = schedule()
    v = torch.tensor([[-1.0]])
    first, second = (float(loss().log_variance(v, torch.tensor([t])).exp()) for t in (0, 1))
    assert first == second == pytest.approx(float(betas[1] * (1 - before[1]) / (1 - alphas[1])), rel=1e-5)


def noised(t: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A prediction for five images of two channels and its target; images hold both ends of the scale."""
    draw = torch.Generator().manual_seed(t)
    image = torch.rand(5, 2, 4, 4, generator=draw) * 2 - 1
    image[:, :, 0, 0], image[:, :, 1, 1] = 1.0, -1.0
    noise = torch.randn(5, 2, 4, 4, generator=draw)
    pred = torch.cat(
        [noise + 0.3 * torch.randn(5, 2, 4, 4, generator=draw), torch.rand(5, 2, 4, 4, generator=draw) * 2 - 1], 1
    )
    return pred, {"image": image, "noise": noise, "timesteps": torch.full((5,), t)}


@pytest.mark.parametrize("t", [1, 7, 300, 999])
def test_the_bound_is_the_divergence_from_the_posterior(t: int) -> None:
    """Of q(x_(t-1) | x_t, x_0), by its mean and variance as the paper writes them, in bits; and the squared error beside."""
    betas, alphas, before = schedule()
    pred, target = noised(t)
    noise, v = pred.double().chunk(2, 1)
    x0 = target["image"].double()
    x = alphas[t].sqrt() * x0 + (1 - alphas[t]).sqrt() * target["noise"].double()
    of_x0 = betas[t] * before[t].sqrt() / (1 - alphas[t])
    of_x = (1 - before[t]) * (1 - betas[t]).sqrt() / (1 - alphas[t])
    posterior = betas[t] * (1 - before[t]) / (1 - alphas[t])
    estimate = (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
    variance = betas[t] ** ((1 + v) / 2) * posterior ** ((1 - v) / 2)
    true = Normal(of_x0 * x0 + of_x * x, posterior.sqrt())
    divergence = kl_divergence(true, Normal(of_x0 * estimate + of_x * x, variance.sqrt())).mean() / math.log(2)
    simple = (noise - target["noise"]).square().mean()
    assert float(loss()(pred, target)) == pytest.approx(float(simple + 0.001 * 1000 * divergence), rel=1e-4)


def test_the_last_step_is_a_likelihood_of_grey_values() -> None:
    """That of a bin 2/255 wide around each value, open at both ends of the scale."""
    betas, alphas, _ = schedule()
    pred, target = noised(0)
    noise, v = pred.double().chunk(2, 1)
    x0 = target["image"].double()
    x = alphas[0].sqrt() * x0 + (1 - alphas[0]).sqrt() * target["noise"].double()
    mean = (x - (1 - alphas[0]).sqrt() * noise) / alphas[0].sqrt()
    smallest = betas[1] * (1 - alphas[0]) / (1 - alphas[1])
    step = Normal(mean, (betas[0] ** ((1 + v) / 2) * smallest ** ((1 - v) / 2)).sqrt())
    upper, lower = step.cdf(x0 + 1 / 255), step.cdf(x0 - 1 / 255)
    likelihood = torch.where(x0 > 0.999, 1 - lower, torch.where(x0 < -0.999, upper, upper - lower))
    simple = (noise - target["noise"]).square().mean()
    expected = simple - likelihood.log().mean() / math.log(2)
    assert float(loss()(pred, target)) == pytest.approx(float(expected), rel=1e-4)


def test_the_bound_teaches_the_variance_alone() -> None:
    """The noise has the gradient of the squared error; v falls to beta-tilde where the noise is known."""
    pred, target = noised(20)
    pred.requires_grad_(True)
    loss()(pred, target).backward()
    assert pred.grad is not None
    noise, v = pred.detach().chunk(2, 1)
    of_noise, of_v = pred.grad.chunk(2, 1)
    torch.testing.assert_close(of_noise, 2 * (noise - target["noise"]) / noise.numel())
    assert bool(of_v.any())
    known = torch.cat([target["noise"], v], 1).requires_grad_(True)
    loss()(known, target).backward()
    assert known.grad is not None and bool((known.grad.chunk(2, 1)[1] > 0).all())
    exact = torch.cat([target["noise"], torch.full_like(v, -1)], 1)
    assert float(loss()(exact, target)) == pytest.approx(0, abs=1e-6)


def test_a_batch_is_the_mean_of_its_images() -> None:
    """Whatever timestep each has."""
    parts = [noised(t) for t in (0, 1, 400)]
    pred = torch.cat([p for p, _ in parts])
    target = {name: torch.cat([t[name] for _, t in parts]) for name in parts[0][1]}
    each = [float(loss()(p, t)) for p, t in parts]
    assert float(loss()(pred, target)) == pytest.approx(sum(each) / 3, rel=1e-5)
    assert images_in(target) == 15
