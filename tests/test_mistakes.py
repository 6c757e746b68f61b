"""The mistakes that others made with this method, each re-made here in small.

Every test shows the mistake failing and our code passing the same check. Not here: what has no counterpart in our code
(`learned_range` variances: DDIM with eta = 0 has none) and files and resuming, which the tests of training check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler

from gaussians import STD, NoisedClassifier, T, alphas_cumprod, distance, exact, images, modes, noise_model, scheduler
from scripts import DISEASED, HEALTHY
from scripts.learning.noising import AutocastDiffusionInferer
from scripts.method.guidance import ClassifierGuidance
from scripts.method.sampler import NoiseModel, ddim_step, decode, encode, timestep_grid

ALPHAS = alphas_cumprod(torch.float64)


def constant_noise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """eps = .7 everywhere: then x_0 = (x - sqrt(1 - a) eps) / sqrt(a) is conserved by every rightly paired step."""
    return torch.full_like(x, 0.7)


def predicted_x0(x: torch.Tensor, t: int) -> torch.Tensor:
    """What `constant_noise` conserves, for x at t."""
    return (x - (1 - ALPHAS[t]).sqrt() * 0.7) / ALPHAS[t].sqrt()


def diseased(number: int = 4) -> torch.Tensor:
    """Float64 images of the diseased mode."""
    return images(DISEASED, number, dtype=torch.float64)


def monai_scheduler(steps: int, clip_sample: bool = False) -> DDIMScheduler:
    """MONAI's DDIM set to `steps`."""
    s = DDIMScheduler(
        num_train_timesteps=T, schedule="linear_beta", beta_start=1e-4, beta_end=0.02, clip_sample=clip_sample
    )
    s.set_timesteps(steps)
    return s


def reversed_steps(s: DDIMScheduler, f: NoiseModel, x: torch.Tensor, times: Iterable[int]) -> torch.Tensor:
    """MONAI's encoding: `reversed_step` at each of `times`."""
    for t in times:
        x, _ = s.reversed_step(f(x, torch.full((len(x),), t)), t, x)
    return x


def test_polarity() -> None:
    """MONAI tutorial: labels healthy = 1, tumour = 0, guided to y = 0, towards the tumour. Ours goes to the healthy."""
    x = diseased().float()
    grid, alphas = timestep_grid(500, 20, T), ALPHAS.float()
    ours = exact(NoisedClassifier(), guidance_scale=3.0, precision="float32")
    result = ours(x.movedim(0, -1)[None], noise_model())["counterfactual"][0].movedim(-1, 0)
    assert float(distance(result, HEALTHY).abs().max()) < 0.2

    healthy_is_one = NoisedClassifier()
    healthy_is_one.register_forward_hook(lambda module, args, logits: logits.flip(1))
    towards_y0 = ClassifierGuidance(healthy_is_one, alphas, 3.0, target_class=0)
    mistaken = decode(towards_y0(noise_model()), encode(noise_model(), x, grid, alphas, 2), grid, alphas)
    assert float(distance(mistaken, HEALTHY).min()) > 0.8


@pytest.mark.parametrize("steps", [500, 100])
def test_decoding_starts_where_encoding_ended(steps: int) -> None:
    """Reference: encoded to L, decoded from L - 2. With an exact inverse that alone breaks the round trip."""
    x, grid = diseased(), timestep_grid(500, steps, T)
    for f, mistaken_error in ((constant_noise, 2e-3), (noise_model(), 1e-4)):
        noise = encode(f, x, grid, ALPHAS, 6)
        assert float((decode(f, noise, grid, ALPHAS) - x).abs().mean()) < 1e-8
        assert float((decode(f, noise, grid[:-2], ALPHAS) - x).abs().mean()) > mistaken_error


def test_no_random_noise_is_added() -> None:
    """Reference: the image is noised once before it is encoded, so two runs differ. Ours agree in every bit."""
    x, f, grid = diseased(), noise_model(), timestep_grid(500, 20, T)
    torch.manual_seed(0)
    ours = [decode(f, encode(f, x, grid, ALPHAS, 2), grid, ALPHAS) for _ in range(2)]
    assert torch.equal(ours[0], ours[1])
    noised = [ALPHAS[0].sqrt() * x + (1 - ALPHAS[0]).sqrt() * torch.randn_like(x) for _ in range(2)]
    mistaken = [decode(f, encode(f, n, grid, ALPHAS, 2), grid, ALPHAS) for n in noised]
    assert float((mistaken[0] - mistaken[1]).abs().max()) > 0.01


@pytest.mark.parametrize("noise_level", [200, 500])
def test_loop_moves_as_far_as_its_steps(noise_level: int) -> None:
    """MONAI tutorial: set_timesteps(500), whose steps go from t to t + 2, in a loop over t = 0, 1, 2, ..."""
    x, grid = diseased(), timestep_grid(noise_level, noise_level, T)
    x0 = predicted_x0(x, 0)
    ours = encode(constant_noise, x, grid, ALPHAS)
    assert float((predicted_x0(ours, noise_level) - x0).abs().max()) < 1e-12
    mistaken = reversed_steps(monai_scheduler(500), constant_noise, x, range(noise_level))
    assert float((predicted_x0(mistaken, noise_level) - x0).abs().mean()) > 0.2
    # with the exact score: 5 to 9 times the spread that x_L must have
    exact = noise_model()
    spread = reversed_steps(monai_scheduler(500), exact, x, range(noise_level)).std()
    assert float(spread) > 4 * float(encode(exact, x, grid, ALPHAS).std())


def test_monai_steps_mismatch_its_timesteps() -> None:
    """MONAI 1.6.1: 19 of the 49 transitions at n = 50 are not the stride 20 that `step` assumes."""
    s = monai_scheduler(50)
    times = s.timesteps.tolist()
    assert len(times) == 50 and (times[0], times[-1]) == (999, 0)
    assert sum(t - T // 50 != t_next for t, t_next in zip(times[:-1], times[1:], strict=True)) == 19
    up = [t for t in reversed(times) if t <= 510]
    x = diseased()
    mistaken = reversed_steps(s, constant_noise, x, up[:-1])
    assert float((predicted_x0(mistaken, 510) - predicted_x0(x, 0)).abs().mean()) > 1e-2
    ours = encode(constant_noise, x, up, ALPHAS)
    assert float((predicted_x0(ours, 510) - predicted_x0(x, 0)).abs().max()) < 1e-12


def test_top_timestep() -> None:
    """MONAI 1.6.1: `reversed_step` at 999 raises IndexError. Our grid ends at 999 at most."""
    x = diseased()
    with pytest.raises(IndexError):
        reversed_steps(monai_scheduler(50), constant_noise, x, [999])
    grid = timestep_grid(T - 1, 50, T)
    assert grid[-1] == 999
    back = decode(constant_noise, encode(constant_noise, x, grid, ALPHAS), grid, ALPHAS)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)


def test_clipping_breaks_the_inverse() -> None:
    """MONAI 1.6.1 clips x_0 to [-1, 1] and keeps eps: a step there and back is lost. Our steps undo each other."""
    s = monai_scheduler(T, clip_sample=True)
    x, eps = torch.full((1, 1), 1.5, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    down, x0 = s.step(eps, 500, x)
    assert float(x0) == 1 and float(x) / float(ALPHAS[500].sqrt()) > 5
    # clipped alone: sqrt(a) * 1; the eps that goes with x_0 = 1 would have added sqrt(1 - a) eps
    assert float(down) == pytest.approx(float(ALPHAS[499].sqrt()), abs=1e-6)
    rederived = (x - ALPHAS[500].sqrt()) / (1 - ALPHAS[500]).sqrt()
    assert float((1 - ALPHAS[499]).sqrt() * rederived) > 1.2
    up, _ = s.reversed_step(eps, 499, down)
    assert float((up - x).abs()) > 1.2
    ours = ddim_step(ddim_step(x, eps, ALPHAS[500], ALPHAS[499]), eps, ALPHAS[499], ALPHAS[500])
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "worst"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-2)])
def test_add_noise_casts_the_schedule(dtype: torch.dtype, worst: float) -> None:
    """MONAI 1.6.1: `add_noise` on half images turns the scheduler's alphas to half for good; 1 - a_0 becomes 0."""
    s = scheduler()
    image = torch.zeros(1, 1, 4, 4, dtype=dtype)
    s.add_noise(image, image, torch.tensor([0]))
    assert s.alphas_cumprod.dtype == dtype and float(1 - s.alphas_cumprod[0]) == 0
    exact = alphas_cumprod()
    noise_std = (1 - s.alphas_cumprod.float()).sqrt()
    assert float((noise_std - (1 - exact).sqrt()).abs().max()) >= worst


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_keeps_the_schedule(precision: str) -> None:
    """Our autocast starts after float32 images are there, so training leaves every alpha as it was."""
    s = scheduler()
    image = torch.zeros(2, 1, 4, 4)
    network: Callable[..., torch.Tensor] = lambda x, timesteps, context: x  # noqa: E731
    AutocastDiffusionInferer(s, precision=precision)(
        image, network, torch.ones_like(image), timesteps=torch.tensor([0, 500])
    )
    assert s.alphas_cumprod.dtype == torch.float32 and torch.equal(s.alphas_cumprod, alphas_cumprod())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_inferer_survives_add_noise(dtype: torch.dtype) -> None:
    """Whoever noises half or double images with the same scheduler must not change a counterfactual."""
    x = diseased().float().movedim(0, -1)[None]
    s = scheduler()
    ours = exact(NoisedClassifier(), s, guidance_scale=3.0, precision="float32")
    expected = ours(x, noise_model())["counterfactual"]
    image = torch.zeros(1, 1, 4, 4, dtype=dtype)
    s.add_noise(image, image, torch.tensor([0]))
    torch.testing.assert_close(ours(x, noise_model())["counterfactual"], expected, rtol=0, atol=1e-6)


def test_guidance_inside_no_grad() -> None:
    """Many: a plain autograd call under `torch.no_grad` raises; ours gives the closed form."""
    x, t, classifier = diseased(), torch.full((4,), 300), NoisedClassifier()

    def mistaken(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(classifier(x, t).log_softmax(1)[:, HEALTHY].sum(), x)[0]

    with torch.no_grad():
        with pytest.raises(RuntimeError, match="does not require grad"):
            mistaken(x)
        ours = ClassifierGuidance(classifier, ALPHAS, 1.0, HEALTHY).gradient(x, t)
    a = ALPHAS[300]
    p = classifier(x, t).softmax(1)[:, DISEASED].detach().view(-1, 1, 1, 1)
    expected = p * a.sqrt() * (modes()[HEALTHY] - modes()[DISEASED]) / (a * STD**2 + 1 - a)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours, mistaken(x), rtol=1e-5, atol=1e-7)
