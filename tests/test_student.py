"""The student: its map and the counterpart in one call, what it learns from, its loss, and its benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Rand2DElasticd, RandAdjustContrastd, RandBiasField, SpatialPadd, Transposed

from gaussians import NoisedClassifier, exact, images, modes
from scripts import DISEASED, HEALTHY
from scripts.bundle import declared
from scripts.judging.cases import SliceCase
from scripts.learning.augmenting import RandSharedBiasFieldd, RandSharedGammad, RandSyntheticLesionsd
from scripts.learning.datasets import check_moved_together
from scripts.learning.pseudo_labels import Teacher
from scripts.learning.seeding import augmented
from scripts.learning.student_loss import StudentLoss
from scripts.method.inferer import StudentInferer
from test_evaluation import parsed, write_patients
from test_pseudo_labels import FakeSlices, healed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import preview


class Heals(torch.nn.Module):
    """A perfect student: an even map, and the change to the healthy mode itself, three times too far in the first row."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        healthy = modes()[HEALTHY].expand_as(x).clone()
        healthy[:, :, 0] = 3
        return torch.cat([torch.zeros_like(x[:, :1]), healthy - x], dim=1)


def test_one_call_gives_map_and_counterpart() -> None:
    """The counterpart within [-1, 1], the slice itself outside the foreground and where not assessed; p(diseased); the map."""
    network, x = Heals(), torch.full((1, 1, 4, 4, 3), -1.0)
    x[..., 1], x[..., 2] = images(DISEASED, 1), images(HEALTHY, 1)
    x[..., 3, 1] = -1
    found = StudentInferer(NoisedClassifier(), min_area=5)(x, network, (x > -1).float())
    assert network.calls == 1 and found["assessed"].tolist() == [[False, True, True]]
    assert bool(found["student"][..., 0].isnan().all()) and bool((found["student"][..., 1:] == 0.5).all())
    exact_p = exact(NoisedClassifier(), min_area=5)(x, lambda x, t: x, (x > -1).float())["probability"]
    torch.testing.assert_close(found["probability"], exact_p, equal_nan=True)
    healthy = found["counterpart"]
    assert torch.equal(healthy[..., 0], x[..., 0]) and torch.equal(healthy[..., 3, 1], x[..., 3, 1])
    assert bool((healthy[:, :, 0, :3, 1:] == 1).all())
    torch.testing.assert_close(healthy[0, 0, 1:, :3, 1], modes()[HEALTHY, 0, 1:, :3])


def test_it_learns_labels_and_counterparts(tmp_path: Path) -> None:
    """Of a slice labelled diseased the teacher's, made once; a slice labelled healthy is its own; a dry run makes none."""
    slices: Any = FakeSlices()
    calls = []

    def teacher(dry_run: bool = False) -> Teacher:
        torch.manual_seed(0)
        inferer = exact(NoisedClassifier(), guidance_scale=1.0, batch_size=3)
        inferer.slices = lambda *given: calls.append(len(given[0])) or healed(*given)
        network = torch.nn.Conv2d(1, 1, 1)
        return Teacher(network, inferer, "hyperintense", 1, str(tmp_path), dry_run)

    planned = teacher(dry_run=True)(slices)
    assert not list(tmp_path.iterdir())
    lesson = teacher()(slices)
    assert lesson.digest == planned.digest and sum(calls) == 4
    assert lesson.digest != lesson.labels.digest
    for i in range(8):
        x = slices.image(i)
        healthy = torch.where(x > -1, 0.0, -1.0) if slices.labels[i] else x
        torch.testing.assert_close(lesson[i], torch.cat([lesson.labels[i], healthy]), atol=3e-4, rtol=0)
    calls.clear()
    assert teacher()(slices).digest == lesson.digest and not calls


def test_the_loss_in_closed_form() -> None:
    """A map of logit 0 on a quarter lesion has the cross entropy log 2 and a Dice loss; |d| + d^2 of +-0.5 is 0.75."""
    target = torch.zeros(1, 2, 2, 2)
    target[0, 0, 0, 0] = 1
    predicted = torch.zeros(1, 2, 2, 2)
    # Dice of 0.5 everywhere to one pixel of four: 2 * 0.5 / (2 + 1) = 1/3
    of_map = 0.693147 + 2 / 3
    assert float(StudentLoss()(predicted, target[:, :1])) == pytest.approx(of_map, abs=1e-4)
    assert float(StudentLoss()(predicted, target)) == pytest.approx(of_map, abs=1e-4)
    predicted[0, 1] = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    assert float(StudentLoss(2.0)(predicted, target)) == pytest.approx(of_map + 2 * 0.75, abs=1e-4)


def test_a_slice_and_its_counterpart_are_changed_by_one_curve() -> None:
    """-1 and 1 stay, 0 goes to 2 (1/2)^g - 1 in both, and the map before the counterpart stays as it is."""
    image = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3)
    label = torch.cat([torch.tensor([0.0, 1 / 3, 1.0]).view(1, 1, 3), torch.zeros(1, 1, 3)])
    gamma = RandSharedGammad(["image", "label"], kept=[0, 1], prob=1, gamma=(0.85, 1.18))
    middles = []
    for number in range(2):
        new = augmented({"image": image, "label": label}, gamma, 0, number)
        assert new["image"][0, 0, 0] == -1 and new["image"][0, 0, 2] == 1
        middles.append(float(new["image"][0, 0, 1]))
        assert bool((new["label"][1] == middles[-1]).all()) and torch.equal(new["label"][0], label[0])
    assert middles[0] != middles[1] and all(2 * 0.5**1.18 - 1 <= m <= 2 * 0.5**0.85 - 1 for m in middles)
    never = RandSharedGammad(["image", "label"], kept=[0, 1], prob=0)
    assert torch.equal(augmented({"image": image, "label": label}, never, 0, 0)["image"], image)


@pytest.mark.parametrize(("overlays", "made"), [((), True), (("brats",), False)])
def test_the_training_makes_lesions_before_scanners_change_them(overlays: tuple[str, ...], made: bool) -> None:
    """In one channel; slices of four sequences stay as they are."""
    lesions, *rest = declared("train#augmentation#transforms#2", *overlays, "train", "train_student").transforms
    assert [type(t) for t in rest] == [RandSharedGammad, RandSharedBiasFieldd]
    assert isinstance(lesions, RandSyntheticLesionsd)
    lesions.prob = 1
    x = torch.rand(4 if overlays else 1, 40, 40, generator=torch.Generator().manual_seed(0)) - 0.5
    new = lesions.set_random_state(0)({"image": x, "label": torch.cat([torch.zeros(1, 40, 40), x])})
    assert bool((new["label"][0] > 0).any()) == made


def test_a_slice_and_its_counterpart_lie_in_one_bias_field() -> None:
    """Magnitudes are multiplied, within [-1, 1]. The field changes along either axis; MONAI's of a slice along one."""
    image = torch.full((1, 16, 16), -0.5)  # a magnitude of 1/4
    image[0, 0, 0] = -1
    label = torch.cat([torch.full((1, 16, 16), 1 / 3), 2 * (image + 1) - 1])
    shared = RandSharedBiasFieldd(["image", "label"], kept=[0, 1], prob=1)
    along = []
    for number in range(8):
        new = augmented({"image": image, "label": label}, shared, 0, number)
        assert new["image"][0, 0, 0] == -1 and torch.equal(new["label"][0], label[0])
        assert torch.allclose(new["label"][1], 2 * new["image"][0] + 1, atol=1e-6)
        field = (new["image"][0, 1:, 1:] + 1).log()
        along.append([float(field.mean(dim).std()) for dim in (0, 1)])
    assert torch.tensor(along).mean(0).min() > 0.05
    monai = RandBiasField(coeff_range=(-0.12, 0.12), prob=1).set_random_state(0)
    assert np.log(np.asarray(monai(np.ones((1, 500, 500)))))[0].mean(0).std() < 2e-3
    strong = RandSharedBiasFieldd(["image", "label"], kept=[0, 1], prob=1, coefficient=3.0)
    new = augmented({"image": image, "label": label}, strong, 0, 0)
    assert new["image"].max() == 1 and new["image"].min() == -1


def test_how_far_counterparts_are_apart_is_the_median_over_healthy_tissue() -> None:
    """Two pixels of lesion and one outside the foreground don't count; the others differ by 0.1, 0.2 and 0.9."""
    foreground, truth = np.array([[0, 1, 1, 1, 1, 1]], bool), np.array([[0, 0, 0, 0, 1, 1]], bool)
    many = np.zeros((1, 6), np.float32)
    one = np.array([[5, 0.1, 0.2, -0.9, 1, 1]], np.float32)
    cases = [
        SliceCase("A", 0, many + 0.5, foreground, truth, 1, counterfactual=healthy.astype(np.float32))
        for healthy in (one, many)
    ]
    assert preview.apart(cases[:1], cases[1:])["healthy"] == pytest.approx(
        {"x1_to_x_many": 0.2, "x_to_x_many": 0.5}, abs=2e-4
    )


def test_the_benchmark_of_untrained_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both calls of a volume are timed in turns."""
    write_patients(tmp_path / "data")

    def tiny(*configs: str, **overrides: Any) -> ConfigParser:
        return parsed(tmp_path / "data", *configs, **{"displayable_configs#noise_level": 100} | overrides)

    monkeypatch.setattr(preview, "parsed", tiny)
    output = tmp_path / "record.json"
    preview.benchmark(
        str(tmp_path / "data" / "datalist.json"), timed=1, rounds=2, output=str(output), cache_dir=str(tmp_path)
    )
    record = json.loads(output.read_text())
    assert record["split"] == {"name": "test", "volumes": 2, "slices": 8}
    assert set(record["quality"]) == {"default", "preview"} == set(record["milliseconds_a_slice"])
    for readings in record["quality"].values():
        first = next(iter(readings.values()))
        assert 0 <= first["pixel_ap"]["value"] <= 1 and 0 <= first["image_auroc"]["value"] <= 1
    assert record["median_difference"]["healthy"].keys() == {"x1_to_x_many", "x_to_x_many"}
    assert 0 < record["time_of_the_default"]["preview"]["median"] < 1
    assert record["seed"] == 0 and "torch" in record["versions"] and record["machine"]


@pytest.mark.parametrize("model", [(), ("brats",), ("chest",)])
def test_a_slice_and_its_target_are_moved_together(model: tuple[str, ...]) -> None:
    """The chest's augmentation moves images alone, and takes the place of the student's where it goes last."""
    check_moved_together(declared("train#augmentation", *model, "train", "train_student"))
    with pytest.raises(ValueError, match="RandAffined moves image alone. Name train_student.json last"):
        check_moved_together(declared("train#augmentation", *model, "train", "train_student", "train_chest"))
    for moves in (Rand2DElasticd("image", (20, 20), (1, 2)), Transposed("image", (0, 2, 1)), SpatialPadd("image", 96)):
        with pytest.raises(ValueError, match="moves image alone"):
            check_moved_together(moves)
    check_moved_together(RandAdjustContrastd("image"))
