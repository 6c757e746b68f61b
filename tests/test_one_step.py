"""The counterfactual in one call: the network, what it learns from, its loss, and its training by its config."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from gaussians import NoisedClassifier, exact, images, modes
from scripts import DISEASED, HEALTHY
from scripts.bundle import declared
from scripts.judging.cases import SliceCase
from scripts.learning.augmenting import RandSharedGammad
from scripts.learning.counterfactuals import OneStepTeacher
from scripts.learning.one_step_loss import OneStepLoss
from scripts.learning.pseudo_labels import Teacher
from scripts.learning.seeding import augmented
from scripts.method.one_step import OneStepInferer
from test_evaluation import parsed, write_patients
from test_pseudo_labels import FakeSlices, healed
from test_training import run, tiny_weights
from tiny_run import TINY

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import onestep


def onestep_network(**options: Any) -> torch.nn.Module:
    network = declared("onestep_def", **{**TINY, **options})
    assert isinstance(network, torch.nn.Module)
    return network


@pytest.mark.parametrize("map_channels", [0, 1])
def test_an_untrained_network_gives_the_slice_back(map_channels: int) -> None:
    x = torch.randn(2, 1, 72, 88, generator=torch.Generator().manual_seed(0))
    out = onestep_network(map_channels=map_channels)(x)
    assert out.shape == (2, 1 + map_channels, 72, 88)
    assert torch.equal(out[:, :1], x) and not out[:, 1:].any()


def test_it_is_the_diffusion_network_at_timestep_0_added_to_the_slice() -> None:
    """But for its last layer, which both are given here; also of a network that learned its variance."""
    torch.manual_seed(0)
    network = onestep_network(**{"network_def#out_channels": 2})
    torch.nn.init.normal_(network.unet.out[-1].conv.weight)
    unet = declared("network_def", **TINY)
    unet.load_state_dict(network.unet.state_dict())
    x = torch.randn(2, 1, 72, 88)
    torch.testing.assert_close(network(x), x + unet(x, torch.zeros(2, dtype=torch.long)))


@pytest.mark.parametrize("number", [2, 0.5, True])
def test_there_is_one_map_or_none(number: Any) -> None:
    with pytest.raises(ValueError, match="map_channels"):
        OneStepInferer(NoisedClassifier(), map_channels=number)


class Heals(torch.nn.Module):
    """A perfect network of one step: the healthy mode itself, three times too far in the first row; the map is even."""

    def __init__(self, map_channels: int) -> None:
        super().__init__()
        self.map_channels, self.calls = map_channels, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        healthy = modes()[HEALTHY].expand_as(x).clone()
        healthy[:, :, 0] = 3
        return torch.cat([healthy, torch.zeros_like(x[:, : self.map_channels])], dim=1)


@pytest.mark.parametrize("map_channels", [0, 1])
def test_one_call_gives_what_the_others_give(map_channels: int) -> None:
    """The counterpart within [-1, 1], the slice itself outside the foreground and where not assessed, p(diseased), the map."""
    network, x = Heals(map_channels), torch.full((1, 1, 4, 4, 3), -1.0)
    x[..., 1], x[..., 2] = images(DISEASED, 1), images(HEALTHY, 1)
    x[..., 3, 1] = -1
    found = OneStepInferer(NoisedClassifier(), map_channels, min_area=5)(x, network, (x > -1).float())
    assert network.calls == 1 and found["assessed"].tolist() == [[False, True, True]]
    healthy = found["counterfactual"]
    assert torch.equal(healthy[..., 0], x[..., 0]) and torch.equal(healthy[..., 3, 1], x[..., 3, 1])
    assert bool((healthy[:, :, 0, :3, 1:] == 1).all())
    assert torch.equal(healthy[0, 0, 1:, :3, 1], modes()[HEALTHY, 0, 1:, :3])
    exact_p = exact(NoisedClassifier(), min_area=5)(x, lambda x, t: x, (x > -1).float())["probability"]
    torch.testing.assert_close(found["probability"], exact_p, equal_nan=True)
    assert ("student" in found) == bool(map_channels)
    if map_channels:
        assert bool(found["student"][..., 0].isnan().all()) and bool((found["student"][..., 1:] == 0.5).all())


def teacher(folder: Path, **options: Any) -> OneStepTeacher:
    torch.manual_seed(0)
    inferer = exact(NoisedClassifier(), guidance_scale=1.0, batch_size=3)
    inferer.slices = healed
    return OneStepTeacher(torch.nn.Conv2d(1, 1, 1), inferer, "hyperintense", 1, str(folder), **options)


def test_it_learns_from_the_counterfactual_of_every_slice(tmp_path: Path) -> None:
    """Of the healthy ones too; a dry run makes none, and a second run none again."""
    slices: Any = FakeSlices()
    planned = teacher(tmp_path, dry_run=True)(slices)
    assert not list(tmp_path.iterdir())
    targets = teacher(tmp_path)(slices)
    assert targets.digest == planned.digest
    for i in range(8):
        x = slices[i]["image"]
        assert torch.equal(targets[i], torch.where(x > -1, 0.0, -1.0))
    [path] = tmp_path.glob("healthy-*.f16")
    made = path.stat().st_mtime_ns
    assert teacher(tmp_path)(slices).digest == targets.digest and path.stat().st_mtime_ns == made


def test_with_a_map_it_learns_a_students_labels_too(tmp_path: Path) -> None:
    slices: Any = FakeSlices()
    torch.manual_seed(0)
    inferer = exact(NoisedClassifier(), guidance_scale=1.0, batch_size=3)
    inferer.slices = healed
    labels = Teacher(torch.nn.Conv2d(1, 1, 1), inferer, "hyperintense", 1, str(tmp_path))(slices)
    of_both = teacher(tmp_path / "both", map_channels=1)
    calls = []
    of_both.inferer.slices = lambda *given: calls.append(len(given[0])) or healed(*given)
    both, alone = of_both(slices), teacher(tmp_path)(slices)
    assert both.digest not in (alone.digest, labels.digest)
    assert sum(calls) == 8, "the labels are of the counterfactuals that were made"
    for i in range(8):
        assert torch.equal(both[i], torch.cat([alone[i], labels[i]]))


def test_the_loss_in_closed_form() -> None:
    """|d| + d^2 of +-0.5 is 0.75; a map of logit 0 on a quarter lesion adds its cross entropy log 2 and a Dice loss."""
    target = torch.zeros(1, 2, 2, 2)
    predicted = torch.tensor([0.5, -0.5]).view(1, 2, 1, 1).expand(1, 2, 2, 2).clone()
    assert float(OneStepLoss(channels=2)(predicted, target)) == pytest.approx(0.75)
    target[0, 1, 0, 0], predicted[0, 1] = 1, 0
    # Dice of 0.5 everywhere to one pixel of four: 2 * 0.5 / (2 + 1) = 1/3
    expected = 0.75 + 0.1 * (0.693147 + 2 / 3)
    assert float(OneStepLoss(channels=1)(predicted, target)) == pytest.approx(expected, abs=1e-4)


def test_a_slice_and_its_counterpart_are_changed_by_one_curve() -> None:
    """-1 and 1 stay, 0 goes to 2 (1/2)^g - 1 in both, and the map behind the counterpart stays as it is."""
    image = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3)
    label = torch.cat([torch.zeros(1, 1, 3), torch.tensor([0.0, 1 / 3, 1.0]).view(1, 1, 3)])
    gamma = RandSharedGammad(["image", "label"], channels=1, prob=1, gamma=(0.85, 1.18))
    middles = []
    for number in range(2):
        new = augmented({"image": image, "label": label}, gamma, 0, number)
        assert new["image"][0, 0, 0] == -1 and new["image"][0, 0, 2] == 1
        middles.append(float(new["image"][0, 0, 1]))
        assert bool((new["label"][0] == middles[-1]).all()) and torch.equal(new["label"][1], label[1])
    assert middles[0] != middles[1] and all(2 * 0.5**1.18 - 1 <= m <= 2 * 0.5**0.85 - 1 for m in middles)
    never = RandSharedGammad(["image", "label"], channels=1, prob=0)
    assert torch.equal(augmented({"image": image, "label": label}, never, 0, 0)["image"], image)


@pytest.mark.parametrize("map_channels", [0, 1])
def test_it_trains_by_its_config(map_channels: int, tmp_path: Path) -> None:
    """It begins with the diffusion network's weights; the weights fit inference.json's and say which networks taught it."""
    weights = tiny_weights(tmp_path)
    options = {**weights, "onestep_def#unet#initial_weights": weights["network#path"], "map_channels": map_channels}
    output = run("train_onestep", tmp_path, **options)
    assert "began with" in output and "val_loss" in output
    network = onestep_network(map_channels=map_channels)
    network.load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["teacher"].keys() == {"network", "classifier"}


def test_how_far_counterparts_are_apart_is_the_median_over_healthy_tissue() -> None:
    """Two pixels of lesion and one outside the foreground don't count; the others differ by 0.1, 0.2 and 0.9."""
    foreground, truth = np.array([[0, 1, 1, 1, 1, 1]], bool), np.array([[0, 0, 0, 0, 1, 1]], bool)
    many = np.zeros((1, 6), np.float32)
    one = np.array([[5, 0.1, 0.2, -0.9, 1, 1]], np.float32)
    cases = [
        SliceCase("A", 0, many + 0.5, foreground, truth, 1, counterfactual=healthy.astype(np.float32))
        for healthy in (one, many)
    ]
    assert onestep.apart(cases[:1], cases[1:]) == pytest.approx({"x1_to_x_many": 0.2, "x_to_x_many": 0.5}, abs=2e-4)


def test_the_benchmark_of_untrained_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained network of one step gives the slice back; calls of each algorithm are timed in turns."""
    write_patients(tmp_path / "data")

    def tiny(*configs: str, **overrides: Any) -> ConfigParser:
        parser = parsed(tmp_path / "data", *configs, **{"displayable_configs#noise_level": 100} | overrides)
        if "onestep" in configs:
            parser["network"] = "@onestep_def"
        return parser

    monkeypatch.setattr(onestep, "parsed", tiny)
    output = tmp_path / "record.json"
    onestep.benchmark(
        str(tmp_path / "data" / "datalist.json"), timed=1, rounds=2, output=str(output), cache_dir=str(tmp_path)
    )
    record = json.loads(output.read_text())
    assert record["split"] == {"name": "test", "volumes": 2, "slices": 8}
    assert set(record["quality"]) == {"default", "student", "one step"} == set(record["milliseconds_a_slice"])
    for readings in record["quality"].values():
        first = next(iter(readings.values()))
        assert 0 <= first["pixel_ap"]["value"] <= 1 and 0 <= first["image_auroc"]["value"] <= 1
    differences = record["median_difference_in_healthy_tissue"]
    assert differences["x1_to_x_many"] == pytest.approx(differences["x_to_x_many"], abs=1e-3)
    assert 0 < record["time_of_the_default"]["one step"]["median"] < 1
    assert record["seed"] == 0 and "torch" in record["versions"] and record["machine"]
