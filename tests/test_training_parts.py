"""The parts of training: what is drawn, noised, limited, clipped and measured."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor, get_track_meta
from monai.networks.schedulers import DDIMScheduler
from monai.transforms import Compose, RandShiftIntensityd
from monai.utils import set_determinism

from scripts.bundle import declared
from scripts.learning.budget import Budget
from scripts.learning.datasets import SliceDataset
from scripts.learning.ema import WarmedEMA
from scripts.learning.handlers import ClipGradients
from scripts.learning.noising import AutocastDiffusionInferer, NoisedPrepareBatch, StudentTrainingInferer
from scripts.learning.progress import Progress
from scripts.learning.seeding import RandomBatches, SeedSteps, seed_of
from scripts.learning.settings import differing
from scripts.learning.validation import AtNoiseLevel
from scripts.weights import for_training
from training_data import datalist, parsed, write_datalist


class Ninety:
    """Ninety healthy slices and ten diseased ones."""

    labels = [0] * 90 + [1] * 10


def drawn(batches: RandomBatches, number: int) -> list[list[tuple[int, int]]]:
    return [batch for batch, _ in zip(batches, range(number), strict=False)]


def test_balanced_batches_draw_both_classes_equally() -> None:
    for balanced, share in ((True, 0.5), (False, 0.1)):
        indices = [i for batch in drawn(RandomBatches(Ninety(), 10, balanced, 0), 400) for i, _ in batch]
        assert abs(np.mean(np.array(Ninety.labels)[indices]) - share) < 0.03
        counts = np.bincount(indices, minlength=100)
        assert counts.min() > 0 and counts[:90].std() < 2 * math.sqrt(counts[:90].mean())


class OneClass:
    labels = [1] * 10


def test_balanced_batches_need_both_classes() -> None:
    for balanced in (False, "false"):  # as MONAI's command line leaves it
        assert drawn(RandomBatches(OneClass(), 2, balanced, 0), 1)
    with pytest.raises(ValueError, match="all 10 slices are labelled diseased; this training needs both classes"):
        RandomBatches(OneClass(), 2, True, 0)
    with pytest.raises(ValueError, match="seed must be .*, got -1"):
        RandomBatches(Ninety(), 2, True, -1)


def test_a_batch_depends_on_the_seed_and_its_number_alone() -> None:
    batches = RandomBatches(Ninety(), 3, False, 7)
    whole = drawn(batches, 6)
    assert [n for batch in whole for _, n in batch] == list(range(18))
    engine = Engine(lambda e, b: None)
    batches.attach(engine)
    engine.add_event_handler(Events.STARTED, lambda e: e.terminate())
    engine.run(range(1), max_epochs=1)
    assert drawn(batches, 2) == whole[:2]
    engine.state.iteration = 4
    batches._start(engine)
    assert drawn(batches, 2) == whole[4:]
    assert drawn(RandomBatches(Ninety(), 3, False, 8), 6) != whole


def test_seeds_are_of_their_own_streams() -> None:
    seeds = {seed_of(a, b, c) for a in range(5) for b in range(3) for c in range(20)}
    assert len(seeds) == 300 and all(0 <= seed < 2**32 for seed in seeds) and seed_of(1, 2) == seed_of(1, 2)


def test_a_step_draws_from_its_own_seed() -> None:
    values: list[float] = []
    for waste in (0, 5):
        engine = Engine(lambda e, b, waste=waste: (values.append(float(torch.rand(()))), torch.rand(waste)))
        SeedSteps(3).attach(engine)
        engine.run(range(3), max_epochs=1)
    assert values[:3] == values[3:] and len(set(values)) == 3


def test_every_draw_is_augmented_anew_and_alike_wherever_it_is_drawn(tmp_path: Path) -> None:
    """Also under a global seed, with which MONAI seeds a `Compose` anew whenever one asks whether it is true."""
    set_determinism(0)
    try:
        shift = Compose([RandShiftIntensityd("image", offsets=0.5, prob=1.0)])
        dataset = SliceDataset(
            datalist(tmp_path), declared("preprocessing"), str(tmp_path / "cache"), 0.5, augmentation=shift, seed=1
        )
        shifts = [float(dataset[0, n]["image"][0, 0, 0]) for n in range(20)]
        assert len(set(shifts)) == 20 and max(shifts) - min(shifts) > 0.5
        assert [float(dataset[0, n]["image"][0, 0, 0]) for n in reversed(range(20))] == shifts[::-1]
        assert not isinstance(dataset[0, 0]["image"], MetaTensor) and get_track_meta()
        assert float(dataset[0]["image"][0, 0, 0]) == -1.0
    finally:
        set_determinism(None)


def test_prepare_batch_for_training_and_validation() -> None:
    batch = {"image": torch.rand(3, 1, 4, 4), "label": torch.tensor([0, 1, 1]), "number": torch.tensor([7, 0, 8])}
    images, target, _, extra = NoisedPrepareBatch(1000, "noise")(batch)
    assert torch.equal(target, extra["noise"]) and images.shape == target.shape
    assert extra["timesteps"].shape == (3,) and 0 <= extra["timesteps"].min() and extra["timesteps"].max() < 1000
    prepare = NoisedPrepareBatch(1000, "label", noise_levels=[0, 500], seed=3)
    images, target, _, extra = prepare(batch)
    assert images.shape == (6, 1, 4, 4) and target.tolist() == [0, 1, 1, 0, 1, 1]
    assert extra["timesteps"].tolist() == [0, 0, 0, 500, 500, 500]
    torch.rand(5)
    assert torch.equal(prepare(batch)[3]["noise"], extra["noise"])
    # an image's noise is its own, whatever batch it is in
    part = {key: values[1:2] for key, values in batch.items()}
    assert torch.equal(prepare(part)[3]["noise"], extra["noise"][[1, 4]])
    assert not torch.equal(extra["noise"][1], extra["noise"][4]) and not torch.equal(*extra["noise"][:2])
    drawn = NoisedPrepareBatch(1000, "noise", seed=3)
    assert torch.equal(drawn(part)[3]["timesteps"], drawn(batch)[3]["timesteps"][1:2])
    with pytest.raises(ValueError, match="target must be"):
        NoisedPrepareBatch(1000, "mask")


def test_metrics_at_one_noise_level() -> None:
    output = {
        "pred": torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 0.0], [0.0, 0.0]]),
        "label": torch.tensor([0, 1, 0, 1]),
    }
    pred, label = AtNoiseLevel(0, 2)(output)
    assert torch.equal(pred, output["pred"][:2]) and label.tolist() == [0, 1]
    pred, _ = AtNoiseLevel(1, 2, probability=True)(output)
    assert pred.tolist() == [0.5, 0.5]


def test_autocast_runs_the_network_in_low_precision_and_returns_float32() -> None:
    seen = []

    def network(x: torch.Tensor, timesteps: torch.Tensor, context: None) -> torch.Tensor:
        y = torch.nn.functional.conv2d(x, torch.ones(1, 1, 1, 1))
        seen.append(y.dtype)
        return y

    x, t = torch.rand(2, 1, 4, 4), torch.tensor([1, 2])
    for precision in ("float32", "bfloat16"):
        out = AutocastDiffusionInferer(DDIMScheduler(1000), precision=precision)(x, network, noise=x, timesteps=t)
        assert out.dtype == torch.float32
        out = StudentTrainingInferer(precision=precision)(x, lambda y: network(y, t, None))
        assert out.dtype == torch.float32
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    with pytest.raises(ValueError, match="precision must be"):
        AutocastDiffusionInferer(DDIMScheduler(1000), precision="int8")


def budgeted(step: Any, images: int, **options: Any) -> tuple[Engine, Budget, list[tuple[float, ...]]]:
    """An engine within a budget of batches of four and epochs of twelve images, and the rates that it took."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1], "lr": 0.8}, {"params": parameters[1:], "lr": 0.4}])
    engine, budget = Engine(step), Budget(images, 4, 12, optimizer, **options)
    rates: list[tuple[float, ...]] = []
    budget.attach(engine)
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda e: rates.append(tuple(g["lr"] for g in optimizer.param_groups))
    )
    return engine, budget, rates


def test_a_budget_of_images_ends_the_training() -> None:
    """Half a cosine over ten steps, of each group from its own; the last epoch is shorter and ends as an epoch."""
    engine, budget, rates = budgeted(lambda e, b: None, 38)
    assert (budget.steps, budget.epoch_length, budget.epochs) == (10, 3, 4)
    ended: list[int] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: ended.append(e.state.iteration))
    engine.run(range(1000), max_epochs=budget.epochs, epoch_length=budget.epoch_length)
    assert ended == [3, 6, 9, 10] and len(rates) == 10
    for step, found in enumerate(rates):
        assert found == pytest.approx([r * (1 + math.cos(math.pi * step / 10)) / 2 for r in (0.8, 0.4)])
    # one that goes on after its end does no more
    again, budget, rates = budgeted(lambda e, b: None, 38)
    again.state.max_epochs, again.state.epoch_length = 4, 3
    again.state.iteration, again.state.epoch = 10, 3
    again.run(range(1000))
    assert rates == [] and again.state.iteration == 10


def test_minutes_are_a_cap(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = 100.0

    def step(engine: Engine, batch: int) -> None:
        nonlocal clock
        clock += 12

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    engine, budget, rates = budgeted(step, 400, minutes=1)
    engine.run(range(1000), max_epochs=budget.epochs, epoch_length=budget.epoch_length)
    said = "stopped by max_minutes after 20 of 400 images; the same command, without --overwrite, goes on from there"
    assert engine.state.iteration == 5 and said in caplog.text
    assert rates[4][0] == pytest.approx(0.8 * (1 + math.cos(math.pi * 4 / 100)) / 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 0}, "max_images must be 1 or more, got 0"),
        ({"batch_size": 0.5}, "batch_size must be a whole number, 1 or more, got 0.5"),
        ({"epoch_images": -1}, "epoch_images must be 1 or more, got -1"),
        ({"minutes": 0}, "max_minutes must be above 0, got 0"),
    ],
)
def test_a_budget_out_of_range_is_refused(wrong: dict[str, Any], message: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        Budget(**{"images": 1, "batch_size": 1, "epoch_images": 1, "optimizer": optimizer, **wrong})


def test_progress_is_told_in_images(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level("INFO")
    engine, budget, _ = budgeted(lambda e, b: {"loss": torch.tensor(float(e.state.iteration))}, 24)
    Progress(budget).attach(engine)
    engine.run(range(1000), max_epochs=budget.epochs, epoch_length=budget.epoch_length)
    lines = [r.getMessage() for r in caplog.records if r.name == "scripts.learning.progress"]
    assert len(lines) == 2 and lines[0].startswith("12 of 24 images: loss 2.0000, ") and "24 of 24" in lines[1]
    assert all("images/s, " in line and "waiting for data, about 0 minutes left" in line for line in lines)
    assert "/24 [" in capsys.readouterr().err


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    """Bit for bit, trainable and in training's layout; without a file the network is as it was made."""
    torch.manual_seed(0)
    made, given = (torch.nn.Conv2d(2, 2, 3) for _ in range(2))
    before = made.weight.detach().clone()
    torch.save(given.state_dict(), tmp_path / "given.pt")
    assert torch.equal(for_training(made, "cpu").weight, before)
    started = for_training(made, "cpu", str(tmp_path / "given.pt"))
    assert torch.equal(started.weight, given.weight) and all(p.requires_grad for p in started.parameters())
    assert started.training and started.weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        for_training(made, "cpu", str(tmp_path / "nowhere.pt"))


def test_gradients_are_clipped() -> None:
    network = torch.nn.Linear(4, 1, bias=False)
    (1000 * network(torch.ones(1, 4))).sum().backward()
    ClipGradients(network, 1.0)._clip(Engine(lambda e, b: None))
    assert network.weight.grad is not None
    assert network.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("norm", [0, -1.0])
def test_a_norm_that_trains_nothing_or_backwards_is_refused(norm: float) -> None:
    with pytest.raises(ValueError, match=f"max_norm must be above 0, got {norm}"):
        ClipGradients(torch.nn.Linear(4, 1), norm)


def steps_to_one(network: torch.nn.Linear) -> Engine:
    """An engine whose every step leaves the weight at 1."""
    return Engine(lambda engine, batch: torch.nn.init.ones_(network.weight))


def test_the_average_begins_with_what_was_loaded_at_the_start() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    ema = WarmedEMA(network, momentum=0.1)
    engine = steps_to_one(network)
    engine.add_event_handler(Events.STARTED, lambda: torch.nn.init.constant_(network.weight, 11.0))
    ema.attach(engine)
    engine.run([0], max_epochs=1)
    assert ema.ema_model.weight.item() == pytest.approx(0.9 * 11 + 0.1)


def test_the_momentum_of_the_average_falls_with_the_steps_of_the_training() -> None:
    """0.5 at step 1, 0.3 at step 2, 0.1 from step 3 on; a training that goes on at step 3 does not begin anew."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema = WarmedEMA(network, momentum=0.1, momentum_warmup=0.5, warmup_iters=3)
    engine = steps_to_one(network)
    ema.attach(engine)
    engine.run([0] * 3, max_epochs=1)
    assert ema.ema_model.weight.item() == pytest.approx(1 - 0.5 * 0.7 * 0.9)
    later = Engine(lambda engine, batch: None)
    ema.attach(later)
    later.state.iteration = 7
    later.fire_event(Events.ITERATION_COMPLETED)
    assert later.state.ema_momentum == pytest.approx(0.1)


def test_an_average_without_a_warm_up_keeps_its_momentum() -> None:
    """As the paper's, whose overlay says so."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema = WarmedEMA(network, momentum=0.1, momentum_warmup=None, warmup_iters=None)
    engine = steps_to_one(network)
    ema.attach(engine)
    engine.run([0] * 2, max_epochs=1)
    assert ema.ema_model.weight.item() == pytest.approx(1 - 0.9 * 0.9)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"train#trainer#prepare_batch#num_train_timesteps": 10}, "prepare_batch"),
        ({"train#trainer#prepare_batch#clean": 0.5}, "prepare_batch"),
        ({"max_norm": 100.0}, "max_norm"),
        ({"learning_rate": 0.5}, "learning_rate"),
    ],
    ids=str,
)
def test_a_checkpoint_knows_all_that_changes_what_is_learned(
    changed: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """Also how a batch is prepared, and how far gradients are clipped."""
    write_datalist(tmp_path)
    before, now = (parsed("train", tmp_path, **more).get_parsed_content("checkpoint") for more in ({}, changed))
    assert name in [said.split(" was ")[0] for said in differing(before.settings, now.settings)]
