"""`scripts.method.inferer.CounterfactualInferer` on volumes whose slices are drawn from the two Gaussians."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from gaussians import NoisedClassifier, distance, exact, images, noise_model, scheduler
from scripts import DISEASED, HEALTHY
from scripts.bundle import declared
from scripts.method.guidance import ClassifierGuidance
from scripts.method.inferer import CounterfactualInferer, StudentInferer
from scripts.method.slices import with_neighbours

EMPTY, SLIVER = -1, -2
"""Slices that are not assessed: no brain at all, and 4 of 16 pixels of it."""


def volume(slices: Sequence[int], channels: int = 1, seed: int = 0) -> torch.Tensor:
    """``(1, C, 4, 4, D)`` with one healthy, diseased, empty or sliver slice a label."""
    x = torch.full((1, channels, 4, 4, len(slices)), -1.0)
    for d, label in enumerate(slices):
        if label in (HEALTHY, DISEASED):
            x[..., d] = images(label, 1, channels, seed=seed + d)
        elif label == SLIVER:
            x[0, :, 0, :, d] = 0.25
    return x


def inside(x: torch.Tensor) -> torch.Tensor:
    """Where `volume` drew anything."""
    return x[:, :1] > -1


def inferer(channels: int = 1, **options: Any) -> CounterfactualInferer:
    """With the exact classifier, float32 and scale 1 unless told otherwise."""
    return exact(
        NoisedClassifier(channels), **{"guidance_scale": 1.0, "precision": "float32", "min_area": 5, **options}
    )


def lesion(x: torch.Tensor) -> torch.Tensor:
    """``(B, D)``: 0 at the healthy mode, 1 at the diseased one."""
    return torch.stack([distance(x[..., d], HEALTHY) for d in range(x.shape[-1])], dim=1)


def test_probability_with_neighbours() -> None:
    """1 : 2 : 1 by hand; ends and gaps average what there is, each volume by itself, and nothing crosses a gap."""
    nan = torch.nan
    p = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0], [1.0, nan, 0.4, 1.0, nan], [nan, nan, 0.7, nan, nan]])
    expected = [[1 / 3, 0.5, 0.25, 0.25, 2 / 3], [1.0, nan, 0.6, 0.8, nan], [nan, nan, 0.7, nan, nan]]
    torch.testing.assert_close(with_neighbours(p), torch.tensor(expected), rtol=0, atol=1e-6, equal_nan=True)
    assert with_neighbours(torch.tensor([0.3])).tolist() == pytest.approx([0.3])
    # what does not count for its neighbours is averaged with them all the same
    counted = torch.tensor([False, True, True, False, True])
    expected = [[1 / 3, 2 / 3, 1 / 3, 0.25, 1.0], [1.0, nan, 0.4, 0.8, nan], [nan, nan, 0.7, nan, nan]]
    torch.testing.assert_close(with_neighbours(p, counted), torch.tensor(expected), rtol=0, atol=1e-6, equal_nan=True)


def test_guidance_is_to_healthy() -> None:
    """Class 0 is healthy in labels, classifier, default target and config."""
    guided = ClassifierGuidance(NoisedClassifier(), scheduler().alphas_cumprod, 1.0)
    assert (HEALTHY, DISEASED, guided.target_class, declared("target_class")) == (0, 1, 0, 0)


def test_the_grid_goes_up_to_the_noise_level() -> None:
    """20 steps of 25 up to 500."""
    assert inferer(noise_level=500, num_inference_steps=20).timesteps == list(range(0, 501, 25))


def test_every_slice_by_its_kind() -> None:
    """Two volumes of five slices: diseased healed, healthy kept, the others the very bits of the input with NaN."""
    kinds = torch.tensor([[EMPTY, HEALTHY, DISEASED, SLIVER, HEALTHY], [DISEASED, SLIVER, DISEASED, HEALTHY, EMPTY]])
    x = torch.cat([volume(kinds[0].tolist()), volume(kinds[1].tolist(), seed=10)])
    before = x.clone()
    result = inferer(num_fixed_point_iterations=20)(x, noise_model(), inside(x))
    y, p, assessed = result["counterfactual"], result["probability"], result["assessed"]
    assert torch.equal(x, before) and y.shape == x.shape and y.dtype == torch.float32
    assert torch.equal(assessed, kinds >= 0) and torch.equal(p.isnan(), kinds < 0)
    assert torch.equal(y.movedim(-1, 1)[kinds < 0], x.movedim(-1, 1)[kinds < 0])
    alone = torch.where(kinds < 0, torch.nan, kinds.float())  # the classifier is exact to 1e-6
    torch.testing.assert_close(p, with_neighbours(alone), rtol=0, atol=1e-6, equal_nan=True)
    assert float(lesion(y)[kinds >= 0].abs().max()) < 0.25
    assert float(lesion(x)[kinds == DISEASED].min()) > 0.75
    change = (y - x).abs().amax((1, 2, 3))
    assert float(change[kinds == HEALTHY].max()) < 0.1 and float(change[kinds == DISEASED].min()) > 0.3


def test_scale_zero_returns_the_volume() -> None:
    """Converged fixed points: every slice comes back to its own place in the volume, to float32 rounding."""
    x = torch.cat([volume([HEALTHY, DISEASED, EMPTY]), volume([DISEASED, HEALTHY, HEALTHY], seed=5)])
    result = inferer(guidance_scale=0.0, num_inference_steps=100, num_fixed_point_iterations=10)(
        x, noise_model(), inside(x)
    )
    torch.testing.assert_close(result["counterfactual"], x, rtol=0, atol=1e-6)


def test_each_slice_is_guided_by_its_probability() -> None:
    """To the power that is asked for: as a scale of 0, of .36 and of all of it. Without, guidance is asked for no part."""
    x, scale = volume([DISEASED, DISEASED, DISEASED]), 2.0
    by_probability = inferer(guidance_scale=scale, guidance_exponent=2)
    by_probability.temperature = 4.0  # which changes p(diseased) alone
    p = torch.tensor([1e-9, 0.6, 1 - 1e-9], dtype=torch.float64)
    by_probability.logits = lambda x: torch.stack([1 - p, p], 1).log().float()  # type: ignore[method-assign]
    found = by_probability(x, noise_model(), inside(x))["counterfactual"]
    for n, part in enumerate((0.0, 0.36, 1.0)):
        expected = inferer(guidance_scale=part * scale)(x, noise_model(), inside(x))["counterfactual"]
        torch.testing.assert_close(found[..., n], expected[..., n], rtol=0, atol=1e-6)
        assert n == 0 or float((found[..., n] - found[..., 0]).abs().max()) > 0.05
    alike = inferer(guidance_scale=scale)
    expected, whole = alike(x, noise_model(), inside(x)), alike.guidance

    class OfOneArgument:
        target_class, settings = whole.target_class, whole.settings

        def __call__(self, noise_model: Any) -> Any:
            return whole(noise_model)

    alike.guidance = OfOneArgument()
    assert torch.equal(alike(x, noise_model(), inside(x))["counterfactual"], expected["counterfactual"])


def test_outside_of_the_brain_stays() -> None:
    """Pixels at -1 in an assessed slice come back as -1 exactly; inside stays within [-1, 1] at any scale."""
    x = volume([DISEASED, HEALTHY])
    x[:, :, 3] = -1.0
    result = inferer(guidance_scale=100.0)(x, noise_model(), inside(x))
    assert bool(result["assessed"].all())
    assert bool((result["counterfactual"][:, :, 3] == -1).all())
    assert float(result["counterfactual"].abs().max()) <= 1


@pytest.mark.parametrize("iterations", [0, 2])
def test_batching_changes_nothing(iterations: int) -> None:
    """Slices one by one, in threes and all at once agree to 1e-6."""
    x = torch.cat(
        [volume([HEALTHY, DISEASED, EMPTY, DISEASED]), volume([DISEASED, HEALTHY, DISEASED, HEALTHY], seed=7)]
    )
    whole = inferer(batch_size=16, num_fixed_point_iterations=iterations)(x, noise_model(), inside(x))
    for batch_size in (1, 3):
        parts = inferer(batch_size=batch_size, num_fixed_point_iterations=iterations)(x, noise_model(), inside(x))
        for key in ("counterfactual", "probability"):
            torch.testing.assert_close(parts[key], whole[key], rtol=0, atol=1e-6, equal_nan=True)
        assert torch.equal(parts["assessed"], whole["assessed"])


def test_batch_size_is_obeyed() -> None:
    """Seven assessed slices in batches of three: every network call sees 3, 3 or 1."""
    seen: list[int] = []
    exact = noise_model()

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return exact(x, t)

    x = volume([HEALTHY] * 7 + [EMPTY])
    inferer(batch_size=3, num_inference_steps=2, num_fixed_point_iterations=0)(x, counted, inside(x))
    assert seen == [3] * 8 + [1] * 4


def test_batch_size_is_chosen_by_the_memory() -> None:
    """A device that holds three slices: batches are halved until they fit, no slice is lost, the result is the same."""
    seen: list[int] = []
    exact, x = noise_model(), volume([HEALTHY, DISEASED] * 5)

    def small_device(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return exact(x, t)

    result = inferer(num_inference_steps=2)(x, small_device, inside(x))
    expected = inferer(num_inference_steps=2)(x, exact, inside(x))
    torch.testing.assert_close(result["counterfactual"], expected["counterfactual"], rtol=0, atol=1e-6)
    assert [n for n, before in zip(seen, [0, *seen], strict=False) if n != before] == [10, 5, 2]
    with pytest.raises(torch.OutOfMemoryError):
        inferer(num_inference_steps=2, batch_size=4)(x, small_device, inside(x))


def test_memory_is_freed_before_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the device is told to let go, nothing of the failed batch is held any more, nor by a pending error."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    exact = noise_model()

    def small_device(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if len(x) > 3:
            activations = x.repeat(1, 8, 1, 1)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("out of memory")
        return exact(x, t)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(sum(ref() is not None for ref in held)))
    inferer(num_inference_steps=2)(volume([HEALTHY, DISEASED] * 5), small_device)
    assert len(held) == 2 and alive == [0, 0]


BAD_NUMBERS: dict[str, tuple[list[Any], str]] = {
    "guidance_scale": ([-1.0, 1001, 1e30, "10", True, None], "from 0 to 1000"),
    "noise_level": ([500.5, "500", True, 1e30, None], "above 0 and below 1000"),
    "num_inference_steps": ([7.5, "7", True, None], "from 1 to the noise_level, 500"),
    "num_fixed_point_iterations": ([-1, 101, 1.5, "1", True], "from 0 to 100"),
    "guidance_exponent": ([-1, 10.5, "1", True], "from 0 to 10"),
    "min_area": ([-1, 0, 1.5, "87", True, None], "1 or more"),
    "batch_size": ([0, -1, 2.0, "16", True], "from 1 to 65536"),
    "target_class": ([-1, 2, 0.0, "0", True], "from 0 to 1"),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n, (values, _) in BAD_NUMBERS.items() for v in (*values, math.nan, math.inf, -math.inf)],
)
def test_refuses_what_is_no_number_of_its_range(name: str, value: Any) -> None:
    """Before a volume is read: the option, its range and what was got."""
    with pytest.raises(ValueError, match=rf"^{name} must be .*{BAD_NUMBERS[name][1]}, got {re.escape(repr(value))}"):
        inferer(**{name: value})


@pytest.mark.parametrize("label", [HEALTHY, DISEASED])
def test_one_slice_volume(label: int) -> None:
    """A radiograph: D = 1, assessed as every other."""
    x = volume([label])
    result = inferer()(x, noise_model(), inside(x))
    assert result["counterfactual"].shape == (1, 1, 4, 4, 1) and result["assessed"].tolist() == [[True]]
    assert float((result["probability"] - label).abs()) < 1e-6
    assert float(lesion(result["counterfactual"]).abs()) < 0.25


@pytest.mark.parametrize("channels", [2, 4])
def test_several_channels(channels: int) -> None:
    """Only the last channel holds the lesion, and only it is healed; the others come back within 1e-6."""
    x = volume([HEALTHY, DISEASED, EMPTY], channels)
    result = inferer(channels, num_fixed_point_iterations=20)(x, noise_model(channels), inside(x))
    y = result["counterfactual"]
    assert y.shape == x.shape
    assert float(lesion(x)[0, 1]) > 0.75 and float(lesion(y)[0, :2].abs().max()) < 0.25
    torch.testing.assert_close(y[:, :-1], x[:, :-1], rtol=0, atol=1e-6)
    assert float((y - x)[0, -1, 1:3, 1:3, 1].max()) < -0.3


def test_callers_choice_of_slices() -> None:
    """`assessed` replaces the rule: the diseased slice left out stays, the sliver chosen is run."""
    x = volume([DISEASED, DISEASED, SLIVER])
    chosen = torch.tensor([[False, True, True]])
    result = inferer()(x, noise_model(), inside(x), assessed=chosen)
    assert torch.equal(result["assessed"], chosen) and result["probability"].isnan().tolist() == [[True, False, False]]
    assert torch.equal(result["counterfactual"][..., 0], x[..., 0])
    assert float(lesion(result["counterfactual"])[0, 1].abs()) < 0.25
    # the sliver, which is not looked at by default, changes nothing of its neighbour
    torch.testing.assert_close(result["probability"][0, 1:], torch.tensor([1.0, 1 / 3]), rtol=0, atol=1e-6)


def test_nothing_to_assess() -> None:
    """A volume without brain comes back whole, with no network call."""
    x = volume([EMPTY, EMPTY])

    def never(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise AssertionError("called")

    result = inferer()(x, never, inside(x))
    assert torch.equal(result["counterfactual"], x) and bool(result["probability"].isnan().all())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
def test_same_bits_in_every_context(context: Callable[[], AbstractContextManager[None]], precision: str) -> None:
    """Twice, under other random states, with and without a caller's context: the same bits, no random number drawn."""
    x, run = volume([HEALTHY, DISEASED, EMPTY]), inferer(precision=precision, guidance_scale=10.0)
    expected = run(x, noise_model(), inside(x))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with context():
        result = run(x, noise_model(), inside(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(result["counterfactual"], expected["counterfactual"])
    assert torch.equal(result["probability"][:, :2], expected["probability"][:, :2])
    assert not result["counterfactual"].requires_grad


def test_metatensor_gives_the_same_numbers() -> None:
    """As a MONAI evaluator hands it over."""
    x = volume([HEALTHY, DISEASED, EMPTY])
    expected = inferer()(x, noise_model(), inside(x))["counterfactual"]
    result = inferer()(MetaTensor(x), noise_model(), MetaTensor(inside(x)))["counterfactual"]
    assert torch.equal(torch.as_tensor(result).as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision(precision: str) -> None:
    """The networks' matrix products run in the named precision; images stay float32; healing does not depend on it."""
    seen: set[torch.dtype] = set()
    run = inferer(precision=precision)
    run.classifier.register_forward_hook(
        lambda module, args, out: seen.add(torch.nn.functional.linear(args[0].flatten(1), module.weight).dtype)
    )
    x = volume([HEALTHY, DISEASED])
    result = run(x, noise_model(), inside(x))
    assert seen == {getattr(torch, precision)}
    assert result["counterfactual"].dtype == result["probability"].dtype == torch.float32
    exact = inferer()(x, noise_model(), inside(x))
    torch.testing.assert_close(result["counterfactual"], exact["counterfactual"], rtol=0, atol=5e-3)
    torch.testing.assert_close(result["probability"], torch.tensor([[1 / 3, 2 / 3]]), rtol=0, atol=1e-6)


def test_half_input_gives_float32() -> None:
    """A float16 volume is computed in float32."""
    x = volume([HEALTHY, DISEASED]).half()
    result = inferer()(x, noise_model(), inside(x))["counterfactual"]
    assert torch.equal(result, inferer()(x.float(), noise_model())["counterfactual"])


def test_classifier_is_run_in_eval_mode() -> None:
    """A classifier left in training mode with dropout gives the same bits as one without."""
    run = inferer()
    run.classifier.train()
    run.classifier.register_forward_pre_hook(lambda m, args: (torch.dropout(args[0], 0.5, m.training), args[1]))
    x = volume([HEALTHY, DISEASED])
    assert torch.equal(
        run(x, noise_model(), inside(x))["counterfactual"], inferer()(x, noise_model(), inside(x))["counterfactual"]
    )


@pytest.mark.parametrize("noise_level", [0, -5, 1000, 1500])
def test_refuses_noise_level(noise_level: int) -> None:
    """At construction, with the allowed range and what was got."""
    with pytest.raises(ValueError, match=f"noise_level must be above 0 and below 1000, got {noise_level}"):
        inferer(noise_level=noise_level)


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_refuses_steps(steps: int) -> None:
    """At construction, with the allowed range and what was got."""
    with pytest.raises(ValueError, match=f"num_inference_steps must be from 1 to the noise_level, 100, got {steps}"):
        inferer(noise_level=100, num_inference_steps=steps)


def test_papers_setting() -> None:
    """L = 500, s = 100, 500 steps: 500 + 500 network calls, 500 gradients and one probability."""
    calls = 0
    exact = noise_model()

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return exact(x, t)

    run = inferer(noise_level=500, guidance_scale=100.0, num_inference_steps=500, num_fixed_point_iterations=0)
    result = run(volume([HEALTHY, DISEASED]), counted)
    assert run.timesteps == list(range(501)) and calls == 1000 and run.classifier.calls == 501
    assert float(lesion(result["counterfactual"]).max()) < 0


def test_refuses_precision() -> None:
    """A precision it doesn't know is an error, not float32 in silence."""
    with pytest.raises(ValueError, match="float16"):
        inferer(precision="float16")


def test_float32_under_a_callers_autocast() -> None:
    """The option decides, not the evaluator's `amp`."""
    x, run = volume([HEALTHY, DISEASED]), inferer()
    expected = run(x, noise_model(), inside(x))["counterfactual"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(x, noise_model(), inside(x))["counterfactual"], expected)


class Bright(torch.nn.Module):
    """A student: lesion is where the last channel is bright; heals nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return torch.cat([torch.where(x[:, -1:] > 0.3, 2.0, -2.0), torch.zeros_like(x)], dim=1)


def test_a_student_beside_the_counterfactual_changes_nothing_of_it() -> None:
    """The same bits as without; the student sees the slices as they are, once each, the assessed ones only."""
    x, student = volume([HEALTHY, EMPTY, DISEASED]), Bright()
    alone, both = inferer()(x, noise_model(), inside(x)), inferer(student=student)(x, noise_model(), inside(x))
    assert set(both) - set(alone) == {"student", "counterpart"} and student.seen == [2]
    assert all(torch.equal(alone[name].nan_to_num(), both[name].nan_to_num()) for name in alone)
    preview = StudentInferer(NoisedClassifier(), precision="float32")
    expected = preview(x, Bright(), inside(x))["student"]
    with pytest.raises(ValueError, match="the preview is the student's, and there is none"):
        preview(x, None, inside(x))
    torch.testing.assert_close(both["student"], expected, rtol=0, atol=0, equal_nan=True)


def test_called_with_another_network_it_uses_its_own() -> None:
    """MONAI Label calls it with ``network_def``, which is the student in a released bundle."""
    x = volume([HEALTHY, DISEASED])
    expected = inferer()(x, noise_model(), inside(x))["counterfactual"]

    class Noise(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return noise_model()(x, t)

    given = inferer(network=Noise())(x, Bright(), inside(x))["counterfactual"]
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


def test_a_students_map_is_averaged_with_the_neighbouring_slices() -> None:
    """1 : 2 : 1 for every pixel: bright in the second slice of three, and after a gap in one slice alone."""
    x = volume([HEALTHY, HEALTHY, HEALTHY, EMPTY, HEALTHY])
    x[:, :, 1, 1] = torch.tensor([0.0, 0.5, 0.0, -1.0, 0.5])
    a = StudentInferer(NoisedClassifier(), precision="float32")(x, Bright(), inside(x))["student"][0, 0, 1, 1]
    low, high = 0.1192, 0.8808
    expected = torch.tensor([(2 * low + high) / 3, (low + high) / 2, (2 * low + high) / 3, torch.nan, high])
    torch.testing.assert_close(a, expected, rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_student_gives_one_map_a_slice(channels: int) -> None:
    """p = sigmoid(2) where the last channel is bright, once a slice; slices that are not assessed have none."""
    student = Bright()
    x = volume([HEALTHY, EMPTY, DISEASED], channels)
    result = StudentInferer(NoisedClassifier(channels))(x, student, inside(x))
    a = result["student"]
    assert set(result) == {"student", "counterpart", "probability", "assessed"} and student.seen == [2]
    assert a.shape == (1, 1, 4, 4, 3) and a[..., 1].isnan().all() and not a[..., [0, 2]].isnan().any()
    assert float(a[0, 0, 1, 1, 2]) == pytest.approx(0.8808, abs=1e-4)
    assert result["probability"][0, 0] < 0.5 < result["probability"][0, 2] and result["probability"][0, 1].isnan()


def test_no_intensity_says_what_is_inside() -> None:
    """Pixels of -1 within the foreground are changed as all others, bright ones outside are kept; without one all is inside."""
    x = volume([HEALTHY])
    foreground = torch.ones_like(x)
    foreground[..., 0, :] = 0
    x[..., 2, 2, 0] = -1
    part = inferer()(x, noise_model(), foreground)["counterfactual"]
    assert torch.equal(part[..., 0, :], x[..., 0, :]) and part[0, 0, 2, 2, 0] > -0.99
    whole = inferer()(x, noise_model())["counterfactual"]
    assert torch.equal(part[..., 1:, :], whole[..., 1:, :]) and not torch.equal(whole[..., 0, :], x[..., 0, :])
    assert torch.equal(whole, inferer()(x, noise_model(), torch.ones_like(x))["counterfactual"])


def test_a_network_that_learned_the_variance_too_gives_the_same() -> None:
    """2C outputs, of which DDIM takes the first C."""
    x = volume([DISEASED, HEALTHY], channels=2)
    exact = noise_model(2)

    def learned(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([exact(x, t), torch.full_like(x, 7.0)], dim=1)

    expected, result = (inferer(2)(x, network)["counterfactual"] for network in (exact, learned))
    assert torch.equal(expected, result)


@pytest.mark.parametrize("target", [HEALTHY, DISEASED])
def test_the_target_class_alone_says_what_p_diseased_is(target: int) -> None:
    """p(diseased) = 1 - p(target): with labels the other way round, the same classifier says the opposite."""
    x = volume([HEALTHY, EMPTY, DISEASED])
    p = inferer(target_class=target)(x, noise_model(), inside(x))["probability"][0]
    expected = [0.0, 1.0] if target == HEALTHY else [1.0, 0.0]
    assert p[[0, 2]].tolist() == pytest.approx(expected, abs=1e-3)
    alone = StudentInferer(NoisedClassifier(), target_class=target)(x, Bright(), inside(x))["probability"][0]
    torch.testing.assert_close(alone, p, equal_nan=True)


def test_what_the_counterfactuals_depend_on_is_stated() -> None:
    settings = inferer(guidance_scale=3.0, noise_level=100, num_inference_steps=2).settings
    stated = {"noise_level": 100, "num_inference_steps": 2, "guidance_scale": 3.0, "target_class": HEALTHY}
    assert settings.items() >= stated.items() and settings["precision"] == "float32"
    by_probability = [
        inferer(**options).settings
        for options in ({}, {"guidance_exponent": 2}, {"guidance_exponent": 2, "classified_at": [0, 250]})
    ]
    assert all(one not in by_probability[:n] for n, one in enumerate(by_probability))
