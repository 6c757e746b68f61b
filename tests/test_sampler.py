"""`method.sampler` on noise models whose trajectories are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gaussians import T, alphas_cumprod, images, noise_model
from scripts.method import sampler
from scripts.method.sampler import decode, encode, timestep_grid

DOUBLE = torch.float64
ALPHAS = alphas_cumprod(DOUBLE)


def both_modes() -> torch.Tensor:
    """Four healthy and four diseased images, float64 ``(8, 1, 4, 4)``."""
    return torch.cat([images(0, 4, dtype=DOUBLE), images(1, 4, seed=1, dtype=DOUBLE)])


def round_trip_error(steps: int, iterations: int, noise_level: int = 500) -> float:
    """The mean absolute error of encoding and decoding without guidance."""
    x, f, grid = both_modes(), noise_model(), timestep_grid(noise_level, steps, T)
    noise = encode(f, x, grid, ALPHAS, iterations)
    return float((decode(f, noise, grid, ALPHAS) - x).abs().mean())


def recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Callable[..., torch.Tensor], list[int], list[tuple[float, float]]]:
    """A noise model, the timesteps it was asked at, and the pairs (alpha, alpha_next) of the steps taken."""
    times: list[int] = []
    pairs: list[tuple[float, float]] = []
    step = sampler.ddim_step

    def spied_step(x: torch.Tensor, eps: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs.append((float(a), float(b)))
        return step(x, eps, a, b)

    def spied_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.int64 and t.shape == (len(x),) and bool((t == t[0]).all())
        times.append(int(t[0]))
        return torch.zeros_like(x)

    monkeypatch.setattr(sampler, "ddim_step", spied_step)
    return spied_model, times, pairs


@pytest.mark.parametrize(
    ("noise_level", "steps", "grid"),
    [
        (500, 20, list(range(0, 501, 25))),
        (500, 500, list(range(501))),
        (500, 1, [0, 500]),
        (10, 4, [0, 2, 5, 8, 10]),
        (7, 3, [0, 2, 5, 7]),
        (1, 1, [0, 1]),
        (999, 2, [0, 500, 999]),
    ],
)
def test_grid_values(noise_level: int, steps: int, grid: list[int]) -> None:
    """Grids worked out by hand."""
    assert timestep_grid(noise_level, steps, T) == grid


@pytest.mark.parametrize("noise_level", [1, 2, 3, 7, 60, 97, 250, 500, 999])
def test_grid_at_every_number_of_steps(noise_level: int) -> None:
    """K strides, each L / K rounded down or up, from exactly 0 to exactly L."""
    for steps in range(1, noise_level + 1):
        grid = timestep_grid(noise_level, steps, T)
        assert (grid[0], grid[-1], len(grid)) == (0, noise_level, steps + 1)
        strides = {b - a for a, b in zip(grid[:-1], grid[1:], strict=True)}
        assert strides <= {noise_level // steps, -(-noise_level // steps)}


@pytest.mark.parametrize("noise_level", [-1, 0, 1000, 1001])
def test_grid_refuses_noise_level(noise_level: int) -> None:
    """The message names the allowed range and what was got."""
    with pytest.raises(ValueError, match=f"noise_level must be above 0 and below 1000, got {noise_level}"):
        timestep_grid(noise_level, 1, T)


@pytest.mark.parametrize("steps", [-1, 0, 501, 1000])
def test_grid_refuses_steps(steps: int) -> None:
    """The message names the allowed range and what was got."""
    with pytest.raises(ValueError, match=f"num_inference_steps must be from 1 to the noise_level, 500, got {steps}"):
        timestep_grid(500, steps, T)


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize(("noise_level", "steps"), [(500, 500), (500, 20), (500, 7), (999, 1), (1, 1)])
def test_constant_noise_is_exact(noise_level: int, steps: int, iterations: int) -> None:
    """If eps is constant, x_0 is conserved: x_L = sqrt(a_L) x_0 + sqrt(1 - a_L) eps on every grid, and back."""
    x, eps = both_modes(), 0.7
    grid = timestep_grid(noise_level, steps, T)

    def constant(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, eps)

    x0 = (x - (1 - ALPHAS[0]).sqrt() * eps) / ALPHAS[0].sqrt()
    expected = ALPHAS[noise_level].sqrt() * x0 + (1 - ALPHAS[noise_level]).sqrt() * eps
    noise = encode(constant, x, grid, ALPHAS, iterations)
    torch.testing.assert_close(noise, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(decode(constant, noise, grid, ALPHAS), x, rtol=0, atol=1e-11)


def test_one_step_by_hand() -> None:
    """alpha .64 to .36 with x = 1 and eps = .5: x_0 = (1 - .6 * .5) / .8 = .875, x' = .6 * .875 + .8 * .5 = .925."""
    a, b = torch.tensor(0.64, dtype=DOUBLE), torch.tensor(0.36, dtype=DOUBLE)
    x, eps = torch.ones(1, dtype=DOUBLE), torch.full((1,), 0.5, dtype=DOUBLE)
    up = sampler.ddim_step(x, eps, a, b)
    torch.testing.assert_close(up, torch.tensor([0.925], dtype=DOUBLE), rtol=0, atol=1e-14)
    torch.testing.assert_close(sampler.ddim_step(up, eps, b, a), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("steps", "tolerance"), [(500, 2.5e-3), (100, 1.2e-2), (20, 4.5e-2)])
def test_plain_round_trip(steps: int, tolerance: float) -> None:
    """Plain DDIM returns the input up to an error that grows with the stride: measured .0019, .0088, .035."""
    assert tolerance / 2 < round_trip_error(steps, 0) < tolerance


@pytest.mark.parametrize(
    ("steps", "iterations", "factor"), [(20, 1, 2), (20, 2, 5), (20, 3, 12), (20, 5, 60), (100, 2, 150)]
)
def test_fixed_point_reduces_the_error(steps: int, iterations: int, factor: float) -> None:
    """Measured 2.04, 5.4, 13, 77 and 207 times less than plain DDIM."""
    assert round_trip_error(steps, iterations) < round_trip_error(steps, 0) / factor


@pytest.mark.parametrize(("noise_level", "steps", "iterations"), [(500, 20, 60), (500, 100, 20), (250, 10, 60)])
def test_fixed_point_converges_to_the_inverse(noise_level: int, steps: int, iterations: int) -> None:
    """With enough iterations only float64 rounding is left, on strided grids, too."""
    assert round_trip_error(steps, iterations, noise_level) < 1e-14


@pytest.mark.parametrize(("steps", "share"), [(20, 0.96), (50, 0.99), (100, 1.0)])
def test_share_that_converges(steps: int, share: float) -> None:
    """Of 800 images, 20 iterations bring this share to 1e-4; between the modes a long stride makes them oscillate."""
    x = torch.cat([images(0, 400, dtype=DOUBLE), images(1, 400, seed=1, dtype=DOUBLE)])
    f, grid = noise_model(), timestep_grid(500, steps, T)
    error = (decode(f, encode(f, x, grid, ALPHAS, 20), grid, ALPHAS) - x).abs().amax((1, 2, 3))
    assert float((error < 1e-4).double().mean()) >= share


@pytest.mark.parametrize(("steps", "iterations"), [(20, 0), (20, 1), (20, 2), (20, 3), (1, 2), (500, 0)])
def test_number_of_network_calls(monkeypatch: pytest.MonkeyPatch, steps: int, iterations: int) -> None:
    """Up: one a step, or one an iteration and one more for the first guess of all; down: one a step."""
    model, times, _ = recorded(monkeypatch)
    grid = timestep_grid(500, steps, T)
    noise = encode(model, both_modes(), grid, ALPHAS, iterations)
    assert len(times) == (steps if iterations == 0 else steps * iterations + 1)
    times.clear()
    decode(model, noise, grid, ALPHAS)
    assert len(times) == steps


@pytest.mark.parametrize(
    ("noise_level", "all_steps"), [(1, [1]), (40, range(1, 41)), (500, [1, 3, 20, 333, 500]), (999, [1, 7, 999])]
)
def test_time_and_pair_agree(monkeypatch: pytest.MonkeyPatch, noise_level: int, all_steps: list[int]) -> None:
    """Time and alphas of every step are those of its pair in the grid, and the pairs down mirror those up."""
    model, times, pairs = recorded(monkeypatch)
    x = torch.zeros(2, 1, dtype=DOUBLE)
    for steps in all_steps:
        grid = timestep_grid(noise_level, steps, T)
        encode(model, x, grid, ALPHAS)
        up_times, up = times[:], pairs[:]
        times.clear()
        pairs.clear()
        decode(model, x, grid, ALPHAS)
        down_times, down = times[:], pairs[:]
        times.clear()
        pairs.clear()
        assert up_times == grid[:-1] and [a for a, _ in up] == ALPHAS[up_times].tolist()
        assert down_times == grid[:0:-1] and [a for a, _ in down] == ALPHAS[down_times].tolist()
        assert up == [(b, a) for a, b in reversed(down)]
        assert up[0][0] == float(ALPHAS[0]) and up[-1][1] == float(ALPHAS[noise_level])


def test_fixed_point_asks_at_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations on the grid 0, 5, 10: one guess at 0, then twice at the end of every step, the pair unchanged."""
    model, times, pairs = recorded(monkeypatch)
    encode(model, torch.zeros(2, 1, dtype=DOUBLE), timestep_grid(10, 2, T), ALPHAS, 2)
    a0, a5, a10 = ALPHAS[[0, 5, 10]].tolist()
    assert times == [0, 5, 5, 10, 10]
    assert pairs == [(a0, a5)] * 3 + [(a5, a10)] * 3


def test_input_is_left_alone_and_result_repeats() -> None:
    """No in-place change of the input, and the same bits twice whatever the random state is."""
    x, f, grid = both_modes().float(), noise_model(), timestep_grid(500, 20, T)
    before = x.clone()
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(decode(f, encode(f, x, grid, ALPHAS.float(), 2), grid, ALPHAS.float()))
    assert torch.equal(x, before) and torch.equal(results[0], results[1])
    assert results[0].dtype == torch.float32
