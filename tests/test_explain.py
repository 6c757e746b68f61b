"""`explain`: where the toys' paths end, and the command that draws them. No pixel of the picture is compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from scripts import DISEASED, HEALTHY
from scripts.explain import picture, toys
from scripts.explain.gaussians import TwoGaussians

ROOT = Path(__file__).resolve().parent.parent
TOY = toys.two_pixels()


def draws(label: int) -> torch.Tensor:
    """Forty images of two pixels."""
    return TOY.draw(label, 40, seed=label)


def test_the_toy_is_what_it_says() -> None:
    """Of many draws the mean, the spread, and the share that the classifier takes for what they are."""
    x = torch.cat([TOY.draw(label, 4000) for label in (HEALTHY, DISEASED)])
    for label, some in zip((HEALTHY, DISEASED), x.split(4000), strict=True):
        torch.testing.assert_close(some.mean(0), torch.tensor([0.0, 1.2 * label - 0.6]), rtol=0, atol=0.01)
        torch.testing.assert_close(some.std(0), torch.full((2,), 0.15), rtol=0, atol=0.005)
        right = TOY(some, torch.zeros(len(some), dtype=torch.long)).argmax(1) == label
        assert float(right.float().mean()) > 0.999
    torch.testing.assert_close(TOY.distance(torch.tensor([[0.3, -0.6], [7.0, 0.0]])), torch.tensor([0.0, 0.5]))


def test_the_noise_is_the_score_of_the_density() -> None:
    """eps = -sqrt(1 - alpha_t) grad log p_t, with p_t written down as the sum of both noised modes."""
    x = torch.tensor([[0.1, 0.2], [-0.5, 0.6], [1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([1, 150, 500])
    a = TOY.get_buffer("alphas")[t][:, None]
    v = a * 0.15**2 + 1 - a
    means = torch.tensor([[0.0, -0.6], [0.0, 0.6]], dtype=torch.float64)
    log_modes = torch.stack([-((x - a.sqrt() * mu) ** 2).sum(1) / (2 * v[:, 0]) for mu in means])
    (score,) = torch.autograd.grad(log_modes.logsumexp(0).sum(), x)
    torch.testing.assert_close(TOY.noise(x.detach(), t), -(1 - a).sqrt() * score, rtol=1e-6, atol=1e-8)


def test_the_diseased_arrive_among_the_healthy_and_the_healthy_stay() -> None:
    """At the right scale; pixel 1, which is the patient's own, comes back."""
    for label in (HEALTHY, DISEASED):
        x = draws(label)
        ways = toys.paths(TOY, x, toys.RIGHT)
        assert torch.equal(ways.up[0], x) and torch.equal(ways.up[-1], ways.down[-1])
        end = ways.down[0]
        assert float((end[:, 1] + 0.6).abs().max()) < 0.4  # the modes are 1.2 apart, with a standard deviation of 0.15
        assert float((end[:, 0] - x[:, 0]).abs().max()) < 0.01
        assert abs(float(end[:, 1].mean()) - {HEALTHY: -0.74, DISEASED: -0.58}[label]) < 0.02


def test_no_guidance_returns_and_too_much_leaves_the_data() -> None:
    """At scale 0 all return, but for strides; at 300 both classes end seven standard deviations beyond the healthy mode."""
    for label in (HEALTHY, DISEASED):
        x = draws(label)
        assert float((toys.ends(TOY, x, 0.0) - x).abs().max()) < 0.05
        beyond = toys.ends(TOY, x, toys.TOO_STRONG)[:, 1]
        assert -1.75 < float(beyond.min()) and float(beyond.max()) < -0.6 - 7 * 0.15


def test_paths_end_where_the_sampler_ends() -> None:
    """Points on the way are ends of shorter grids; the first of a way down is the counterpart itself."""
    ways = toys.paths(TOY, picture.X, toys.RIGHT)
    assert len(ways.timesteps) == len(ways.up) == len(ways.down) == toys.STEPS + 1
    assert torch.equal(ways.down[0], toys.ends(TOY, picture.X, toys.RIGHT))
    assert torch.equal(ways.down[0, :, 1] < 0, torch.ones(len(picture.X), dtype=torch.bool))


def test_the_map_of_an_image_is_its_lesion() -> None:
    """0.5 +- the noise of a pixel in the diseased image at the right scale, nearly nothing elsewhere and else."""
    toy, x, where = toys.small_images(), toys.example_images(), toys.lesion()
    assert int(where.sum()) == 12 and bool(toys.organ()[where].all())
    _, a = toys.counterpart_and_map(toy, x, 0.0)
    assert float(a.max()) < 0.01
    healthy, a = toys.counterpart_and_map(toy, x, toys.RIGHT)
    assert float(a[0, 0][~where].max()) < 0.01 and 0.45 < float(a[0, 0][where].min()) <= float(a[0, 0].max()) < 0.6
    assert float(a[1].max()) < 0.05
    torch.testing.assert_close(toy.distance(healthy), torch.zeros(2), rtol=0, atol=0.1)
    _, a = toys.counterpart_and_map(toy, x, toys.TOO_STRONG)
    assert float(a[1, 0][where].min()) > 0.15 and float(a[0, 0][where].min()) > 0.65


def test_any_shape_of_images() -> None:
    """The same numbers whether an image's pixels lie in a row or in a square."""
    means = torch.linspace(-0.5, 0.5, 8).view(2, 4)
    alphas = toys.schedule().alphas_cumprod
    flat, square = TwoGaussians(means, 0.1, alphas), TwoGaussians(means.view(2, 1, 2, 2), 0.1, alphas)
    x, t = flat.draw(DISEASED, 3), torch.tensor([1, 300, 700])
    torch.testing.assert_close(square.draw(DISEASED, 3), x.view(3, 1, 2, 2))
    torch.testing.assert_close(square.noise(x.view(3, 1, 2, 2), t), flat.noise(x, t).view(3, 1, 2, 2))
    torch.testing.assert_close(square(x.view(3, 1, 2, 2), t), flat(x, t))


def test_make_explain(tmp_path: Path) -> None:
    """The Makefile's own command writes a picture that can be looked at, and says where."""
    made = subprocess.run(
        ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", "explain", f"BIN={Path(sys.executable).parent}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    target = tmp_path / "new" / "explain.png"
    assert "output/explain.png" in made.stdout
    command = made.stdout.replace("output/explain.png", str(target))
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    with Image.open(target) as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 1000
        assert drawn.convert("L").getextrema() == (0, 255)
