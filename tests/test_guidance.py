"""`method.guidance` on the two Gaussians: sign, polarity, gradient and the paper's own setting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from gaussians import (
    NoisedClassifier,
    T,
    alphas_cumprod,
    distance,
    gradient_log_p_healthy,
    healthy_ddim,
    images,
    modes,
    noise_model,
)
from scripts import DISEASED, HEALTHY
from scripts.method.guidance import ClassifierGuidance
from scripts.method.sampler import decode, encode, timestep_grid

ALPHAS = alphas_cumprod()


def guidance(scale: float, target_class: int = HEALTHY) -> ClassifierGuidance:
    """By the exact classifier."""
    return ClassifierGuidance(NoisedClassifier(), ALPHAS, scale, target_class)


def counterfactual(x: torch.Tensor, guided: ClassifierGuidance, steps: int = 100, iterations: int = 5) -> torch.Tensor:
    """Encode to L = 500 without guidance (round-trip error under 1e-6), decode with it."""
    grid = timestep_grid(500, steps, T)
    return decode(guided(noise_model()), encode(noise_model(), x, grid, ALPHAS, iterations), grid, ALPHAS)


def p_diseased(x: torch.Tensor) -> torch.Tensor:
    """The exact p(diseased | x, 0)."""
    return NoisedClassifier()(x, torch.zeros(len(x), dtype=torch.long)).softmax(1)[:, DISEASED].detach()


def off_line(x: torch.Tensor) -> torch.Tensor:
    """``x`` without its component along the line between the modes."""
    line = torch.nn.functional.normalize((modes()[DISEASED] - modes()[HEALTHY]).flatten(), dim=0)
    flat = x.flatten(1)
    return flat - (flat @ line)[:, None] * line


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_diseased_becomes_healthy(scale: float) -> None:
    """Within 2 std (.2 of the line) of the healthy mode, and nothing moves off the line between the modes."""
    x = images(DISEASED, 8)
    result = counterfactual(x, guidance(scale))
    assert float(p_diseased(x).min()) > 0.999 and float(p_diseased(result).max()) < 1e-9
    assert float(distance(x, HEALTHY).min()) > 0.8 and float(distance(result, HEALTHY).abs().max()) < 0.2
    torch.testing.assert_close(off_line(result), off_line(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("scale", "change"), [(1.0, 0.07), (3.0, 0.11)])
def test_healthy_stays(scale: float, change: float) -> None:
    """No pixel moves by much more than the mode's own std, .1 (measured .060 and .096; a lesion is .5)."""
    x = images(HEALTHY, 8)
    result = counterfactual(x, guidance(scale))
    assert float((result - x).abs().max()) < change
    torch.testing.assert_close(off_line(result), off_line(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [5, 20, 500])
def test_scale_one_is_the_healthy_mode(steps: int) -> None:
    """Bayes: the mixture's eps guided with scale 1 is the healthy mode's eps, whose DDIM is linear and known."""
    grid = timestep_grid(500, steps, T)
    noise = torch.randn((16, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    result = decode(guidance(1.0)(noise_model()), noise, grid, ALPHAS)
    torch.testing.assert_close(result, healthy_ddim(noise, grid), rtol=0, atol=5e-6)


def test_scale_zero_is_no_guidance() -> None:
    """Scale 0 gives the very bits of the noise model, and so returns the input."""
    x = torch.cat([images(HEALTHY, 4), images(DISEASED, 4)])
    t = torch.full((8,), 300)
    assert torch.equal(guidance(0.0)(noise_model())(x, t), noise_model()(x, t))
    torch.testing.assert_close(counterfactual(x, guidance(0.0)), x, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("scale", "target_class"), [(-1.0, HEALTHY), (-3.0, HEALTHY), (1.0, DISEASED), (3.0, DISEASED), (0.0, HEALTHY)]
)
def test_mistaken_guidance_does_not_heal(scale: float, target_class: int) -> None:
    """A flipped sign or the other class leaves all diseased images diseased, 80 % of the line away or more."""
    guided = guidance(abs(scale), target_class)
    guided.guidance_scale = scale  # below 0 it can't be made
    result = counterfactual(images(DISEASED, 8), guided)
    assert float(p_diseased(result).min()) > 0.999 and float(distance(result, HEALTHY).min()) > 0.8


def test_target_class_is_obeyed() -> None:
    """Guided to class 1 the healthy become diseased: the mirror image of healing, by the data's symmetry."""
    healthy = images(HEALTHY, 8)
    made_ill = counterfactual(healthy, guidance(1.0, DISEASED))
    assert float(p_diseased(made_ill).min()) > 1 - 1e-6 and float(distance(made_ill, DISEASED).abs().max()) < 0.2
    mirror = ALPHAS[0].sqrt() * modes().sum(0)
    healed = counterfactual(mirror - healthy, guidance(1.0, HEALTHY))
    torch.testing.assert_close(healed, mirror - made_ill, rtol=0, atol=5e-6)


def test_gradient_is_the_closed_form() -> None:
    """p(diseased | x, t) sqrt(alpha_t) (mu_healthy - mu_diseased) / v_t, each image at a time of its own."""
    t = torch.tensor([0, 1, 25, 137, 250, 500, 750, 999])
    noise = torch.randn((8, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    a = ALPHAS[t].view(-1, 1, 1, 1)
    x = a.sqrt() * modes().mean(0) + (1 - a).sqrt() * noise + 0.02 * (a > 0.9) * noise
    expected = gradient_log_p_healthy(x.double(), t)
    assert float(expected.flatten(1).norm(dim=1).min()) > 1e-3
    torch.testing.assert_close(guidance(1.0).gradient(x, t).double(), expected, rtol=1e-4, atol=1e-5)
    unguided, guided = noise_model()(x, t), guidance(10.0)(noise_model())(x, t)
    torch.testing.assert_close((unguided - guided).double(), 10 * (1 - a).sqrt() * expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradient_under_a_callers_context(context: Callable[[], AbstractContextManager[None]]) -> None:
    """The same bits as without, also for a classifier with parameters, which collect no gradient."""
    x, t = images(DISEASED, 4), torch.full((4,), 300)
    guided = guidance(10.0)
    expected = guided(noise_model())(x, t).detach()
    with context():
        inside = guided(noise_model())(x.clone(), t.clone())
        gradient = guided.gradient(x.clone(), t.clone())
    assert torch.equal(inside, expected)
    assert float(gradient.abs().max()) > 0.01 and not gradient.requires_grad
    assert all(p.grad is None for p in guided.classifier.parameters())


def test_input_gets_no_gradient() -> None:
    """The caller's tensor is neither marked nor changed."""
    x, t = images(DISEASED, 2), torch.full((2,), 300)
    before = x.clone()
    guidance(10.0)(noise_model())(x, t)
    assert not x.requires_grad and x.grad is None and torch.equal(x, before)


def test_determinism_bit_for_bit() -> None:
    """Two runs under different random states agree in every bit and draw no random number."""
    x = images(DISEASED, 4)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(counterfactual(x, guidance(10.0), steps=20, iterations=2))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("t", [500, 137, 1])
def test_papers_decode_step_by_hand(t: int) -> None:
    """s = 100, one timestep down: eps^ = eps - s sqrt(1 - a_t) grad, x_0 = (x - sqrt(1 - a_t) eps^) / sqrt(a_t), ..."""
    x = images(DISEASED, 4, dtype=torch.float64)
    t_full = torch.full((4,), t)
    betas = torch.linspace(1e-4, 0.02, T)
    a, b = (float((1 - betas[: k + 1]).prod()) for k in (t, t - 1))
    eps = noise_model()(x, t_full) - 100 * (1 - a) ** 0.5 * gradient_log_p_healthy(x, t_full)
    x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
    expected = b**0.5 * x0 + (1 - b) ** 0.5 * eps
    result = decode(guidance(100.0)(noise_model()), x.float(), [t - 1, t], ALPHAS)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_papers_setting_counts() -> None:
    """L = 500 at every timestep: 500 network calls up at 0..499, 500 down at 500..1, 500 classifier gradients."""
    times: list[int] = []
    exact, classifier = noise_model(), NoisedClassifier()

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(int(t[0]))
        return exact(x, t)

    grid = timestep_grid(500, 500, T)
    noise = encode(counted, images(DISEASED, 2), grid, ALPHAS)
    assert times == list(range(500)) and classifier.calls == 0
    times.clear()
    result = decode(ClassifierGuidance(classifier, ALPHAS, 100.0, HEALTHY)(counted), noise, grid, ALPHAS)
    assert times == list(range(500, 0, -1)) and classifier.calls == 500
    assert float(p_diseased(result).max()) < 1e-9
