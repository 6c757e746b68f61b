"""The rows of the comparison are what they are called: calls, pairing, polarity, and nothing outside the brain."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from gaussians import NoisedClassifier, alphas_cumprod, distance, images, noise_model, scheduler
from scripts import DISEASED, HEALTHY
from scripts.bundle import declared
from scripts.images.brain import ExtractBraind
from scripts.judging import bootstrap
from scripts.judging.cases import SliceCase
from scripts.method.guidance import ClassifierGuidance
from synthetic import head, write_head
from test_evaluation import write_patients

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import algorithms
import brain_coverage
import compare
import evaluated
import failures
import keeping
import packs
import paper_network
import patch_core
import pixel_size
import restoration
import rivals
import seeds
import speed
import stability
import starting
import sweep
import tables
import taught
import tuning

ROOT = Path(__file__).resolve().parent.parent


def test_the_reference_takes_998_calls_and_499_gradients_and_heals() -> None:
    calls: dict[str, list[int]] = {"network": [], "gradient": []}
    model = noise_model()

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls["network"].append(int(t[0]))
        return model(x, t)

    class Counted(ClassifierGuidance):
        def gradient(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls["gradient"].append(int(t[0]))
            return super().gradient(x, t)

    guidance = Counted(NoisedClassifier(), alphas_cumprod(), 1.0)
    healthy = algorithms.reference(eps, guidance, alphas_cumprod(), 500)(images(DISEASED, 4))
    up, down = list(range(1, 500)), list(range(498, -1, -1))
    assert calls == {"network": up + down, "gradient": down}
    assert len(up) == len(down) == 499
    assert distance(healthy, HEALTHY).abs().max() < 0.2


class NoGradient(ClassifierGuidance):
    def gradient(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def test_the_reference_pairs_timesteps_as_its_code_does() -> None:
    """Up t to t + 1 for 1, ..., L - 1; down t to t - 1 for L - 2, ..., 0, where -1 is x_0: so it ends.

    Where the network says eps = 0, a step scales by the square root of alpha-bar's ratio. Up that is alpha_L / alpha_1, down
    1 / alpha_(L-2): in all sqrt(alpha_L / (alpha_1 alpha_(L-2))), which no other pairing has.
    """
    alphas = alphas_cumprod().double()
    x = 0.1 * torch.rand(1, 1, 4, 4, dtype=torch.float64)  # so small that nothing is clipped
    for level in (2, 3, 20):
        guidance = NoGradient(NoisedClassifier(), alphas, 1.0)
        torch.manual_seed(0)
        y = algorithms.reference(lambda x, t: torch.zeros_like(x), guidance, alphas, level)(x)
        torch.manual_seed(0)
        noised = alphas[0].sqrt() * x + (1 - alphas[0]).sqrt() * torch.randn_like(x)
        expected = (alphas[level] / (alphas[1] * alphas[level - 2])).sqrt() * noised
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=0)


def test_the_references_pairs_by_a_noise_that_tells_the_timestep() -> None:
    """eps = c t everywhere: every step is affine, so the end is a sum over the pairs that is done here by itself."""
    level, c, alphas = 4, 1e-3, alphas_cumprod().double()

    def step(x: torch.Tensor, t: int, t_next: int) -> torch.Tensor:
        a, b = alphas[t], alphas[t_next] if t_next >= 0 else torch.ones(()).double()
        return b.sqrt() * (x - (1 - a).sqrt() * c * t) / a.sqrt() + (1 - b).sqrt() * c * t

    x = 0.1 * torch.rand(1, 1, 4, 4, dtype=torch.float64)
    torch.manual_seed(1)
    y = algorithms.reference(
        lambda x, t: torch.full_like(x, c * int(t[0])), NoGradient(NoisedClassifier(), alphas, 1.0), alphas, level
    )(x)
    torch.manual_seed(1)
    expected = alphas[0].sqrt() * x + (1 - alphas[0]).sqrt() * torch.randn_like(x)
    for pair in ((1, 2), (2, 3), (3, 4), (2, 1), (1, 0), (0, -1)):
        expected = step(expected, *pair)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("guided", [True, False])
def test_ancestral_sampling_ends_in_the_mode_it_is_guided_to(guided: bool) -> None:
    torch.manual_seed(0)
    eps = noise_model()
    f = ClassifierGuidance(NoisedClassifier(), alphas_cumprod(), 1.0)(eps) if guided else eps
    y = distance(algorithms.ancestral(f, alphas_cumprod(), 500, 50)(images(DISEASED, 64)), HEALTHY)
    # at level 500 noise hides the mode, so without guidance both come back
    assert (y < 0.5).float().mean() == 1 if guided else 0.2 < (y < 0.5).float().mean() < 0.8


def test_the_tutorials_loop_heals() -> None:
    guided = ClassifierGuidance(NoisedClassifier(), alphas_cumprod(), 1.0)(noise_model())
    y = algorithms.tutorial(noise_model(), guided, scheduler(), 200)(images(DISEASED, 4))
    assert y.shape == (4, 1, 4, 4) and distance(y, HEALTHY).mean() < 0.8


def heads(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round brains of smooth texture, every second one with a bright square."""
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 72), torch.linspace(-1, 1, 88), indexing="ij"))
    texture = torch.nn.functional.interpolate(0.1 * torch.randn(number, 1, 9, 11), (72, 88), mode="bilinear")
    x = torch.where(grid.norm(dim=0) < 0.8, texture, torch.tensor(-1.0))
    labels = torch.arange(number) % 2
    x[labels == DISEASED, :, 30:40, 40:50] = 0.8
    return x, labels


def tiny_classifier() -> torch.nn.Module:
    return declared(
        "classifier_def",
        **{
            "classifier_def#channels": [8, 8, 8],
            "classifier_def#norm_num_groups": 4,
            "classifier_def#attention_levels": [False] * 3,
            "classifier_def#num_head_channels": 8,
        },
    ).requires_grad_(False)


def slices_of(number: int) -> packs.Slices:
    """Those of `heads`, as one volume, with their squares as masks."""
    x, labels = heads(number)
    lesion = torch.zeros_like(x, dtype=torch.bool)
    lesion[labels == DISEASED, :, 30:40, 40:50] = True
    names = [f"a, slice {n}" for n in range(number)]
    return packs.Slices(x, x > -1, labels, [number], names, lesion)


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_read_slices(name: str, tmp_path: Path) -> None:
    """Nothing outside the brain; what reconstructs healthy slices marks the square after thirty steps."""
    slices = slices_of(16)
    learned = "healthy slices" in name
    images, on = 480 if learned else 32, torch.device("cpu")
    read = rivals.reader_of(name, slices, tiny_classifier(), images, 0, tmp_path, on, rivals.RIVALS[name].settings[0])
    assert 0 < rivals.seconds_of(read, slices) < 60
    change = read(slices.x[:4], slices.foreground[:4])
    a = rivals.read(change, slices.foreground[:4], "hyperintense", 3)
    assert a.shape == (4, 1, 72, 88) and bool((a >= 0).all()) and bool(a.isfinite().all())
    assert not a[~slices.foreground[:4]].any()
    scores = rivals.scored(a, slices.foreground[:4], "mean", torch.zeros(4))
    if learned:
        assert scores[1] > scores[0] and scores[3] > scores[2]
        assert float(a[1, 0, 32:38, 42:48].mean()) > 3 * float(a[0].mean())


def test_a_reading_by_hand() -> None:
    change = torch.tensor([0.5, -0.25, 0.0, 1.0]).view(1, 1, 2, 2)
    inside = torch.tensor([True, True, True, False]).view(1, 1, 2, 2)
    assert rivals.read(change, inside, "hyperintense", 1).flatten().tolist() == [0.5, 0, 0, 0]
    assert rivals.read(change, inside, "both", 1).flatten().tolist() == [0.5, 0.25, 0, 0]
    both = rivals.read(torch.cat([change, -change], 1), inside, ["hyperintense", "hypointense"], 1)
    assert both.flatten().tolist() == [1.0, 0, 0, 0]
    a = torch.tensor([0.5, 0.25, 0.0, 0.0]).view(1, 1, 2, 2)
    p = torch.tensor([0.3])
    found = [float(rivals.scored(a, inside, by, p)) for by in ("mean", "highest", "p(diseased)")]
    assert found == pytest.approx([0.25, 0.5, 0.3])


def test_the_best_reading_is_that_of_the_validation_masks() -> None:
    """What is darker is the lesion here, and single pixels beside it are noise that a median filter takes away."""
    slices = slices_of(4)
    change = torch.zeros_like(slices.x)
    change[slices.lesion] = -0.5
    change[:, :, 12:60:4, 20:36:4] = -2.0
    best = rivals.best_reading(change, slices, torch.rand(4), ("hyperintense", "both"), ("mean", "highest"))
    assert (best["polarity"], best["score"], best["image_auroc"]) == ("both", "mean", 1.0)
    assert best["median_size"] > 1 and best["pixel_ap"] > 0.9


def test_rivals_are_tuned_with_a_tenth_and_trained_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting that is right on validation is the one that is trained; a second run trains nothing."""
    slices, trained = slices_of(4), []

    def make(of: packs.Slices, classifier: torch.nn.Module, work: rivals.Work, gain: float) -> rivals.Reader:
        trained.append((gain, work.images))
        return lambda x, inside: torch.where(slices.lesion, gain, 0.1) * inside

    monkeypatch.setitem(rivals.RIVALS, "toy", rivals.Rival(make, ({"gain": 0.0}, {"gain": 1.0}, {"gain": 0.05})))
    splits = {name: slices for name in ("training", "validation", "test")}
    p = {name: torch.rand(4) for name in ("validation", "test")}
    for _ in range(2):
        found = rivals.tuned(
            *(
                "toy",
                rivals.RIVALS["toy"].settings,
                splits,
                p,
                tiny_classifier(),
                1000,
                0,
                tmp_path,
                torch.device("cpu"),
                "hyperintense",
            ),
            "state",
        )
        assert trained == [(0.0, 100), (1.0, 100), (0.05, 100), (1.0, 1000)]
    assert found["chosen"]["setting"] == {"gain": 1.0} and len(found["tried"]) == 3
    assert found["test"][0].shape == (4, 1, 72, 88)


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def run(path: Path, stop: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
        steps = []

        def step(i: torch.Tensor) -> None:
            if len(steps) == stop:
                raise KeyboardInterrupt
            steps.append(i)
            optimizer.zero_grad()
            (network(x[i] + torch.randn(len(i), 3)) - x[i].sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()

        keeping.fit((network, optimizer), step, 8, 160, 0, path, seconds=0)
        assert len(steps) == 10 or stop is None
        return network.weight.detach()

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part.pt", stop=4)
    torch.testing.assert_close(run(tmp_path / "part.pt"), whole, rtol=0, atol=0)


def test_fractions_in_a_record_are_rounded() -> None:
    record = {"a": 0.12345, "b": {"c": 2.0049, "d": 3, "e": True}, "f": "0.12345"}
    assert keeping.rounded(record, 2) == {"a": 0.12, "b": {"c": 2.0, "d": 3, "e": True}, "f": "0.12345"}


def test_slices_move_within_their_field() -> None:
    slices = slices_of(8)
    torch.manual_seed(0)
    x, inside = rivals.moved(slices.x, slices.foreground)
    assert x.shape == slices.x.shape and bool((x[~inside] == -1).all())
    area = inside.sum(dim=(1, 2, 3)) / slices.foreground.sum(dim=(1, 2, 3))
    assert 0.75 < float(area.min()) and float(area.max()) < 1.3 and float((x - slices.x).abs().mean()) > 0.01


def test_synthetic_lesions_lie_in_the_foreground_and_leave_some_slices_alone() -> None:
    slices = slices_of(64).of(HEALTHY)
    torch.manual_seed(0)
    damaged = torch.cat([restoration.corrupted(slices.x, slices.foreground, 0.8) for _ in range(3)])
    x, inside = slices.x.repeat(3, 1, 1, 1), slices.foreground.repeat(3, 1, 1, 1)
    changed = (damaged - x).abs()
    assert not changed[~inside].any() and damaged.abs().max() <= 1
    share = (changed > 0.05).float().sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3))
    assert 0.05 < float((share == 0).float().mean()) < 0.5 and 0.02 < float(share.mean()) < 0.5


def test_a_coreset_takes_the_farthest() -> None:
    patches = torch.tensor([[0.0, 0], [0.1, 0], [5, 0], [5, 0.2], [0, 9]])
    assert patch_core.coreset(patches, 3).tolist() == [0, 4, 3]
    assert sorted(patch_core.coreset(patches, 9).tolist()) == [0, 1, 2, 3, 4]


def test_patch_core_is_the_distance_to_the_nearest_healthy_patch() -> None:
    """Features that are the slice itself: healthy slices of two greys, a lesion of another, one standard deviation off."""
    x = torch.zeros(3, 1, 8, 8)
    x[1], x[2] = 1.0, 0.0
    x[2, :, 2:7, 2:7] = 2.0
    whole = torch.ones_like(x, dtype=torch.bool)
    slices = packs.Slices(x, whole, torch.tensor([0, 0, 1]), [3], ["", "", ""], None)
    read = patch_core.patch_core(slices, lambda b: [b], torch.device("cpu"), 128, 128)
    a = read(x, whole)
    greys = torch.cat([torch.nn.functional.avg_pool2d(x[:2], 3, 1, 1).flatten()])
    assert a[2, 0, 4, 4] == pytest.approx(float(1 / greys.std()), rel=1e-4) and float(a[:2].abs().max()) < 1e-5


def test_a_setting_is_chosen_by_pixel_ap() -> None:
    """Of equal ones the lowest noise level, as it changes least."""
    assert tuning.best_setting({(250, 30): 0.5, (500, 10): 0.7, (500, 100): 0.6}) == (500, 10)
    assert tuning.best_setting({(500, 3): 0.7, (250, 30): 0.7}) == (250, 30)
    for family in algorithms.FAMILIES.values():
        assert family.published in family.settings
    assert len(algorithms.FAMILIES["reference"].settings) == 6
    assert algorithms.NAMES["reference, L = 500, s = 100"] == ("reference", (500, 100))
    assert algorithms.NAMES["DDPM, unguided, L = 250"] == ("DDPM, unguided", (250, 0))


def test_rivals_have_the_images_of_all_our_trainings() -> None:
    configs = {
        n: json.loads((ROOT / "bundle" / "configs" / f"{n}.json").read_text()) for n in ("train", "train_classifier")
    }
    student = json.loads((ROOT / "bundle" / "configs" / "train_student.json").read_text())
    assert tuning.our_images() == sum(c["max_images"] for c in (*configs.values(), student))


def test_pixel_ap_is_over_the_foreground() -> None:
    slices = slices_of(2)
    a = slices.lesion.float()
    a[~slices.foreground] = 5
    assert slices.pixel_ap(a) == 1
    with pytest.raises(ValueError, match="none of these slices has a mask"):
        slices.of(HEALTHY).pixel_ap(a[:1])


def test_a_ladder_changes_one_thing_at_a_time() -> None:
    ways = speed.ladder("bfloat16", 16)
    changed = [
        [name for name in vars(b) if getattr(a, name) != getattr(b, name)]
        for a, b in zip(list(ways.values())[:-1], list(ways.values())[1:], strict=True)
    ]
    assert changed == [["few_steps"], ["precision"], ["layout"], ["batch"], ["compiled"]]
    without = speed.without_one(ways)
    default = without.pop("default")
    assert not default.compiled and len(without) == 4
    assert all(sum(getattr(w, n) != getattr(default, n) for n in vars(w)) == 1 for w in without.values())
    assert "bfloat16" not in speed.ladder("float32", 4)
    assert speed.ratios(["a", "b", "c"], {"a": [8, 9], "b": [2, 3], "c": [1, 3]}) == {"b": [4, 3], "c": [2, 1]}


def test_a_spread_by_hand() -> None:
    found = seeds.spread([0.8, 0.82, 0.84])
    assert found == pytest.approx({"mean": 0.82, "standard_deviation": 0.02, "lowest": 0.8, "highest": 0.84})


@pytest.mark.parametrize("grid", ["plain", "flipped", "oblique"])
def test_readers_masks_lie_on_the_lesions(grid: str, tmp_path: Path) -> None:
    """A mask of what is bright in the file is what is bright in the slices, whatever the file's grid; -1 is left out."""
    item = write_head(tmp_path, grid)
    image = nib.load(item["image"])
    lesion = (np.asarray(image.dataobj) > 150).astype(np.uint8)
    item["mask"] = str(tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(lesion, image.affine), item["mask"])
    item["label"] = [-1, *lesion.any(axis=(0, 1))[1:].astype(int).tolist()]
    listed = {k: item[k] for k in ("image", "foreground", "mask", "label")}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [listed]}))
    split = packs.Split(str(tmp_path / "datalist.json"), "training", declared("preprocessing"), min_area=1)
    found = taught.ReadersMasks(split.slices)
    in_brain = [z for z in range(1, image.shape[2]) if (np.asarray(image.dataobj)[..., z] > 50).any()]
    assert found.labels == [item["label"][z] for z in in_brain]
    x, y = (torch.stack([found[i][k] for i in range(len(found))]) for k in ("image", "label"))
    bright = x > x[x > -1].median() + 0.5 * (x.max() - x[x > -1].median())
    assert y.any() and 2 * (bright & (y > 0)).sum() / (bright.sum() + y.sum()) > 0.9


def test_coverage_counts_what_is_not_looked_at() -> None:
    """Five slices of 10, 40, 100, 60 and 30 pixels of brain; of the two largest all but 20 pixels are looked at."""
    evaluated = np.array([0, 1, 1, 1, 0], bool)

    def filled(*numbers: int) -> np.ndarray:
        return (np.arange(100)[:, None] < numbers).reshape(10, 10, 5)

    brain, lesion = filled(10, 40, 100, 60, 30), filled(0, 5, 4, 10, 1)
    found = brain_coverage.counted(evaluated, filled(0, 0, 80, 60, 0), brain, lesion)
    beyond = brain_coverage.counted(evaluated, filled(0, 0, 80, 60, 0), brain, filled(0, 0, 90, 0, 0))
    assert beyond["share_of_lesion_not_assessed"] == pytest.approx(10 / 90, abs=1e-3)
    assert found == {
        "slices": 5,
        "evaluated": 3,
        "evaluated_but_not_assessed": 1,
        "with_lesion": 4,
        "with_lesion_not_evaluated": 1,
        "with_lesion_not_assessed": 2,
        "share_of_brain_not_assessed": pytest.approx(100 / 240, abs=1e-3),
        "share_of_lesion_not_assessed": pytest.approx(6 / 20),
    }


@pytest.mark.parametrize("name", packs.SUBSET)
def test_a_splits_slices_come_back_as_cases(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labelled slices of two volumes with their foreground; a number a slice lands on that slice of its file."""
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)
    items = []
    for patient in ("A", "B"):
        (tmp_path / patient).mkdir()
        item = write_head(tmp_path / patient)
        items.append({"image": item["image"], "label": [-1, 0, 1, -1, 0, -1], "subject": patient})
    (tmp_path / "datalist.json").write_text(json.dumps({name: items}))

    split = packs.Split(str(tmp_path / "datalist.json"), name, declared("preprocessing"))
    slices = split.slices
    assert slices.x.shape == (6, 1, 72, 88) and slices.foreground.shape == (6, 1, 72, 88)
    assert bool((slices.x[~slices.foreground] == -1).all()) and slices.labels.tolist() == [0, 1, 0] * 2
    assert slices.names == [f"{p}, slice {z}" for p in "AB" for z in (1, 2, 4)] and slices.depths == [3, 3]
    assert packs.drawn(slices.depths, name, 0).sum() == 2 * packs.SUBSET[name][1]
    numbers = torch.arange(6.0)
    cases = split.cases({"m": numbers.view(6, 1, 1, 1).expand(6, 1, 72, 88)}, {"m": numbers})
    assert [(c.subject, c.slice, c.scores["m"]) for c in cases] == [
        (p, z, float(n)) for n, (p, z) in enumerate((p, z) for p in "AB" for z in (1, 2, 4))
    ]
    assert all(c.maps["m"][c.foreground].mean() == pytest.approx(c.scores["m"]) for c in cases)
    assert {"FLAIR intensity", "FLAIR minus slice median, 3x3 median"} < set(cases[0].maps)


def test_a_pack_holds_no_test_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same wherever it is read, and other slices are another one."""
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)
    items = {}
    for name in ("training", "validation", "test"):
        (tmp_path / name).mkdir()
        items[name] = {"image": write_head(tmp_path / name)["image"], "mask": str(tmp_path / name / "mask.nii.gz")}
        image = nib.load(items[name]["image"])
        lesion = (np.asarray(image.dataobj) > 150).astype(np.uint8)
        nib.save(nib.Nifti1Image(lesion, image.affine), items[name]["mask"])
    found = []
    for label in ([-1, 0, 1, 0, -1, -1], [-1, 0, 1, -1, -1, -1]):
        lists = {name: [item | {"label": label}] for name, item in items.items()}
        (tmp_path / "datalist.json").write_text(json.dumps(lists))
        packs.write_pack(str(tmp_path / "datalist.json"), tmp_path / "pack.pt", str(tmp_path))
        found.append(packs.read_pack(tmp_path / "pack.pt"))
    splits, overlays, digest = found[0]
    assert overlays == [] and digest != found[1][2] == packs.read_pack(tmp_path / "pack.pt")[2]
    assert splits["test"].lesion is None and splits["validation"].lesion is not None
    assert splits["training"].x.dtype == torch.float32 and len(splits["training"].x) == 3


def test_coverage_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ellipsoid brain in nine slices: none in the outer two, in their neighbours under 5 cm²."""
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)
    image, _ = head((64, 80, 9))
    lesion = np.zeros(image.shape, np.uint8)
    lesion[30, 30:60, 4], lesion[30, 35:45, 7] = 1, 1
    folder = tmp_path / "volumes" / "A"
    folder.mkdir(parents=True)
    for name, array in (("flair", image), ("seg", lesion)):
        nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 5.0, 1.0])), folder / f"{name}.nii.gz")
    label = [int(z in (4, 7)) if 1 <= z <= 6 else -1 for z in range(9)]
    item = {
        "image": "volumes/A/flair.nii.gz",
        "mask": "volumes/A/seg.nii.gz",
        "label": label,
        "spacing": [0.8, 0.8, 145 / 9],
    }
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"test": [item]}))
    output = tmp_path / "brain_coverage.json"
    brain_coverage.coverage(str(datalist), output=str(output), cache_dir=str(tmp_path / "cache"))
    record = json.loads(output.read_text())
    share = record.pop("share_of_brain_not_assessed")
    assert record == {
        "split": "test",
        "patients": 1,
        "slices": 9,
        "evaluated": 6,
        "evaluated_but_not_assessed": 1,
        "with_lesion": 2,
        "with_lesion_not_evaluated": 1,
        "with_lesion_not_assessed": 1,
        "share_of_lesion_not_assessed": {"least": 0.25, "median": 0.25, "most": 0.25},
    }
    # areas go with 0.7 - z^2: two of 0.1375 in all of 3.15
    assert share["least"] == share["most"] == pytest.approx(0.275 / 3.15, abs=0.01)


def test_separability_is_the_share_of_the_variance_between_two_classes() -> None:
    """Two values in the brain: all of it. 0, 0, 1 and 3, Otsu's classes {0, 0, 1} and {3}: 3 (8/3)^2 / 16 of 1.5."""
    brain = np.ones((2, 2), bool)
    for a, expected in (([[0, 0], [2, 2]], 1.0), ([[0, 0], [1, 3]], 3 / 16 * (8 / 3) ** 2 / 1.5)):
        case = SliceCase("A", 0, np.zeros((2, 2)), brain, brain, DISEASED, maps={"map": np.array(a, np.float32)})
        assert sweep.separability([case], "map") == pytest.approx(expected)


def test_a_sweep_divides_a_mean_of_maps_into_three_classes() -> None:
    """0, 4 and 10, where one of the maps, or both, mark the lesion: two classes would leave out the 4."""
    a, brain = np.repeat(np.float32([0, 4, 10]), [100, 20, 20]).reshape(10, 14), np.ones((10, 14), bool)
    cases = [SliceCase("A", n, a, brain, n * a > 0, n) for n in (HEALTHY, DISEASED)]
    for case in cases:
        for name in ("map", "alone", "plain"):
            case.maps[name], case.scores[name] = case.diseased * a, case.diseased
    assert sweep.measures(cases)["dice_labels"] == 1


@pytest.mark.slow
def test_a_sweep_writes_a_row_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bundle's networks, on four slices of each of two heads."""
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)
    write_patients(tmp_path)
    options = {"noise_levels": (100, 200), "scales": (1.0,), "device": "cpu", "cache_dir": str(tmp_path / "cache")}
    sweep.sweep(str(tmp_path / "datalist.json"), 8, output=str(tmp_path / "swept"), **options)
    with (tmp_path / "swept.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [(row["noise_level"], row["scale"], row["slices"]) for row in rows] == [
        ("100", "1.0", "8"),
        ("200", "1.0", "8"),
    ]
    assert all(0 < float(row["pixel_ap"]) <= 1 for row in rows) and (tmp_path / "swept.png").is_file()


def test_a_call_of_the_papers_network_is_the_work_that_it_is_in_the_reference() -> None:
    """498 GFLOP a call, what the reference code's network has; a gradient is two calls' work."""
    assert paper_network.flop("network_def") == pytest.approx(498e9, rel=1e-3)
    classifier, gradient = (paper_network.flop("classifier_def", gradient=g) for g in (False, True))
    assert gradient == pytest.approx(2 * classifier, rel=0.05)


@pytest.mark.parametrize("file", tables.DOCUMENTS)
def test_generated_tables_are_those_of_the_records(file: str) -> None:
    """No number was changed by hand, and every record is shown as it is."""
    text = (ROOT / file).read_text("utf-8")
    assert tables.rendered(text) == text, "run python benchmarks/tables.py"


def test_a_changed_number_is_found() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    kinds = ["all", "subset", "differences", "subset_differences", "sizes", "tuning"]
    of_sets = [(f"compare/{name}.json", kind) for name in ("brain_mr", "brats") for kind in kinds]
    of_sets.insert(len(kinds), ("compare/brain_mr.json", "scaling"))
    of_sets += [("compare/brats.json", "together"), ("speed.json", "speed"), ("seeds/brain_mr.json", "seeds")]
    assert [(file, kind) for _, file, kind, _ in tables.MARKED.findall(text)] == of_sets
    changed = re.sub(r"(\*the student's network, taught by masks\* \| 0\.)\d", r"\g<1>0", text, count=1)
    assert changed != text and tables.rendered(changed) == text


def test_tables_of_a_record_by_hand(tmp_path: Path) -> None:
    row = {"pixel_ap": "0.800 (0.70-0.90)", "false_lesions": "1.234 (0.00-2.00)", "seconds": 0.25}
    methods = ("ours", tables.BOUND)
    rows = [{"where": w, "slices": n, "method": m, **row} for w, n in (("all", 9), ("subset", 4)) for m in methods]
    rows[0]["pixel_ap"] = "0.900 (0.80-0.95)"
    record = {"rows": rows, "all": {"differences": {"a - b": {"pixel_ap": [0.0512, -0.01, 0.1], "image_auroc": None}}}}
    (tmp_path / "r.json").write_text(json.dumps(record))
    text = "A\n<!-- table: r.json all -->\nold\n<!-- end -->\n<!-- table: r.json differences -->\n<!-- end -->\n"
    assert tables.rendered(text, tmp_path).splitlines() == [
        *("A", "<!-- table: r.json all -->"),
        "| method | pixel AP | false lesions a volume | seconds a slice |",
        "|---|---|---|---|",
        f"| *{tables.BOUND}* | 0.800 (0.70-0.90) | 1.2 | 0.25 |",
        "| ours | 0.900 (0.80-0.95) | 1.2 | 0.25 |",
        *("<!-- end -->", "<!-- table: r.json differences -->"),
        *("| difference | pixel AP | image AUROC |", "|---|---|---|"),
        "| a - b | +.051 (-.010 to +.100) |  |",
        "<!-- end -->",
    ]
    subset = tables.KINDS["subset"](record).splitlines()
    assert subset[2] == f"| *{tables.BOUND}* | 0.800 | 1.2 | 0.25 |"
    missing = "<!-- table: none.json all -->\n<!-- end -->"
    assert "`none.json` was not measured yet." in tables.rendered(missing, tmp_path)


def test_a_value_that_few_patients_give_is_told_without_an_interval() -> None:
    """And a table holds it; what is not measured is not told."""
    five = bootstrap.Resampled(np.linspace(0, 1, 201), 5)
    found = bootstrap.Measured({"pixel_ap": 0.5, "dice_threshold": 0.25, "false_lesions": 2.0}, {"pixel_ap": five})
    told = compare.told(found, bootstrap.Measured({"dice_threshold": 0.125, "image_auroc": 1.0}, {}))
    expected = {"dice_threshold": "0.250", "false_lesions": "2.000", "dice_labels": "0.125"}
    assert told == expected | {"pixel_ap": "0.500 (0.00-1.00)"}
    row = tables.of_rows({"rows": [{"where": "all", "method": "m", **told}]}, True).splitlines()[-1]
    assert row == "| m | 0.500 (0.00-1.00) | 0.250 | 0.125 | 2.0 |"
    assert "dice_labels" not in compare.told(found, bootstrap.Measured({}, {}))


def test_tables_of_other_records_by_hand(tmp_path: Path) -> None:
    changes = {"noise": {"volumes": 7, "median": 0.0043, "most": 0.0544}}
    assert tables.of_stability({"change of the marked volume": changes}).endswith("| noise | 7 | 0 % | 5 % |")
    difference = {"of": "a", "to": "b", "pixel_ap": [0.07, 0.031, 0.1216], "dice_threshold": [0, -0.1, 0.1]}
    test = {"patients": 21, "slices": 948, "foreground": {"difference to the best baseline": difference}}
    head, _, row = tables.of_baseline({"test": test}).splitlines()
    assert head == "| 21 patients, 948 slices | pixel AP | Dice | image AUROC |"
    assert row == "| a - b | +.070 (+.031 to +.122) | .000 (-.100 to +.100) |  |"
    few = [
        {"map": f"{name} ({n} images)", "pixel AP": f".{n}"} for n in (8, 231) for name in ("sum |x|", "a, both", "b")
    ]
    none = {"pointing game": "", "boxes found": "", "image AUROC": ""}
    shown = tables.of_few([row | none for row in few]).splitlines()
    assert shown[0].startswith("| 8 images | pixel AP |") and shown[2:] == [
        r"| sum \|x\| | .8 |  |  |  |",
        "| b | .8 |  |  |  |",
    ]
    assert tables.of_counterparts([{"algorithm": "a", "x": "1"}]).splitlines()[2] == "| a | 1 |"
    (tmp_path / "g.csv").write_text("group (pixels inside the foreground),patients,pixel AP\nsex: F,2,\n")
    text = tables.rendered("<!-- table: g.csv groups -->\n<!-- end -->", tmp_path)
    assert text.splitlines()[1:4] == ["| group | patients |", "|---|---|", "| sex: F | 2 |"]


def test_a_table_of_brains_by_hand() -> None:
    """One volume has no least Dice, and people without lesions no share of them."""
    one, two = ({"volumes": n, "dice": {"mean": 0.9735, "least": 0.9}} for n in (1, 2))
    lesion = {"lesion voxels inside, mean": {"hd_bet": 1.0, "network": 0.9968}}
    record = {
        "validation": {"TCGA-LGG, FLAIR": two | lesion},
        "test": {"TCGA-LGG, FLAIR": one | lesion, "elderly, FLAIR": two, "ms, FLAIR": two, "tumour, FLAIR": one},
    }
    assert [row.split(" | ", 1)[1] for row in tables.of_brains(record).splitlines()[2:]] == [
        "2 | .974 (.900) | 1.000, .997 |",
        "1 | .974 | 1.000, .997 |",
        "2, 2, 1 | .974 (.900), .974 (.900), .974 |  |",
    ]


def test_failures_that_are_drawn_by_hand() -> None:
    """What lies beside the largest mark; heights in a flipped volume; a dark ball where the marks' mirror image is."""
    marked = np.zeros((6, 6, 3), bool)
    marked[0:2, 0:2, 0:2], marked[4, 4, 2] = True, True
    assert np.argwhere(failures.beside(marked)).tolist() == [[4, 4, 2]] and failures.fullest(marked) == 0
    affine = np.diag([-1.0, -1.0, -5.0, 1.0])
    affine[2, 3] = 10
    assert failures.heights(np.zeros((4, 4, 3), np.float32), affine).tolist() == [0, 5, 10]
    head = np.zeros((101, 101, 3), np.float32)
    head[10:91, 10:91] = 1
    marked = np.zeros(head.shape, bool)
    marked[29:32, 49:52] = True
    ball, where = failures.dark(head, np.diag([1.0, 1.0, 5.0, 1.0]), marked)
    assert np.argwhere(where).mean(axis=0).tolist() == [70, 50, 1]
    assert ball[70, 50, 1] == pytest.approx(0.4) and (ball == head)[~where].mean() > 0.98 and ball[30, 50, 1] == 1
    assert where[..., 1].sum() == 437  # points less than 12 from one of them


def test_a_table_of_an_evaluation_by_hand(tmp_path: Path) -> None:
    """The shipped threshold has no score of its own, and a column may be another method's."""
    (tmp_path / "part_scores.csv").write_text("score,image AUROC\nmap,0.900\n")
    shipped = '"map, at the bundle\'s threshold",0.800,0.70\n'
    (tmp_path / "part_foreground.csv").write_text(
        f"method,Dice pooled,pixel AP\nmap,0.810,0.70\n{shipped}other,,0.60\n"
    )
    columns = {"AP": "pixel AP", "AP of the other": "other: pixel AP", "Dice": "Dice pooled", "AUROC": "image AUROC"}
    rows = [
        evaluated.Row("ours", "part", "map, at the bundle's threshold"),
        evaluated.Row("best", "part", "map", ("AP",)),
    ]
    assert evaluated.cells(evaluated.Evaluated("which", columns, rows), tmp_path) == [
        ["ours", "0.70", "0.60", "0.800", "0.900"],
        ["best", "", "0.60", "0.810", "0.900"],
    ]
    with pytest.raises(KeyError, match="pixel AUROC"):
        evaluated.cells(evaluated.Evaluated("which", {"AUROC": "pixel AUROC"}, rows), tmp_path)


def test_the_first_screen_says_how_well() -> None:
    """Before the first section: pixel APs, that of the paper's own map too, how often the patients were looked at, limits."""
    screen = (ROOT / "README.md").read_text("utf-8").split("\n## ")[0]
    found = evaluated.methods("brain_flair/whole", ROOT / "benchmarks")
    methods = [row.method for row in evaluated.TABLES["flair_first"].rows if row.name != "ours, student"]
    default, brightness, papers = (f"{float(found[m]['pixel AP'].split()[0]):.2f}".removeprefix("0") for m in methods)
    highest = {}
    for data in ("brain_mr", "brats"):
        compared = json.loads((ROOT / f"benchmarks/compare/{data}.json").read_text("utf-8"))
        of_all = {row["method"]: float(row["pixel_ap"].split()[0]) for row in compared["rows"] if row["where"] == "all"}
        known = (of_all["ours, default"], max(of_all[name] for name in rivals.RIVALS))
        highest[data] = [f"{value:.2f}".removeprefix("0") for value in known]
    best = highest["brain_mr"][1]
    for told in (
        f"AP* of {default}:",
        f"alone has {brightness}, [the best other method](benchmarks/README.md) {best}.",
        f"has {papers} with our networks",
        "On seven patients of BraTS the map has {}, the best other method {}.".format(*highest["brats"]),
        "[limits](#limits)",
    ):
        assert told in " ".join(screen.split())
    [times] = re.findall(
        r"These patients were looked at (\w+) times", (ROOT / "bundle/docs/README.md").read_text("utf-8")
    )
    assert f"looked at {times} times" in screen and "not for clinical use" in screen


PROSE = {
    ("benchmarks/README.md", "paper_network"): [
        "{parameters/network:/1e6 .1f} million parameters,",
        "with a classifier of {parameters/classifier:/1e6 .1f} million",
        "a slice takes {calls_a_slice/network} calls of the diffusion network, {calls_a_slice/gradient} gradients",
        "and {tflop_a_slice} TFLOP, where",
        "{seconds_a_slice:.1f} s a slice or {seconds_a_volume_of_155:/60 .0f} minutes a volume of 155 slices,",
        "{share_of_matrix_rate:/.01 .1f} % of the {matrix_tflop_a_second:.1f} TFLOP a second",
    ],
    ("benchmarks/README.md", "training"): [
        "does {turns/0/compiled/images_per_second:.1f} and {turns/1/compiled/images_per_second:.1f} images a second in",
        "batches does {turns/0/plain/images_per_second:.1f} and {turns/1/plain/images_per_second:.1f}:",
        ": {ratios/0/compiled:.1f} and {ratios/1/compiled:.1f} times as many;",
        "; {turns/0/compiled/share_waiting_for_batches:/.01 .1f} and",
        "and {turns/1/compiled/share_waiting_for_batches:/.01 .1f} % of the time it waits for batches",
        "which takes {turns/1/compiled/first_iteration_seconds:.0f} to",
        "to {turns/0/compiled/first_iteration_seconds:.0f} s and therefore begins",
        "it is {ratios/0/ours:.1f} times as many:",
        "it is {ratios/1/ours:.1f} times as many:",
    ],
    ("benchmarks/README.md", "starting"): [
        "takes {with_brain_extraction/scripts.running/seconds:.1f} s from a cold start by `python -m scripts.running`,",
        "and {with_brain_extraction/monai.bundle/seconds:.1f} s by `python -m monai.bundle`:",
        "Imports alone are {imports_alone/scripts.running/seconds:.1f} and",
        "and {imports_alone/monai.bundle/seconds:.1f} s of that.",
        "that is warm it takes {warm_seconds/1:.1f} s.",
        'The file says "{machine}".',
    ],
    ("benchmarks/README.md", "cache"): [
        "{volumes of twenty slices/ours/read/slices_per_second:,} are read a second in random order,",
        "where a file a volume gives {volumes of twenty slices/a file a volume/read/slices_per_second:,};",
        "opening it takes {volumes of twenty slices/ours/open/seconds:.2f} s.",
        "it is {radiographs/ours/read/slices_per_second:,} and {radiographs/ours/open/seconds:.1f} s.",
        "Peak memory is at most {radiographs/ours/make/peak_mib} MiB.",
    ],
    ("benchmarks/README.md", "server"): [
        "takes {warm/total:.1f} s, of which {warm/outside:.2f} s are outside the networks",
        "(cold {cold/total:.1f} s and {cold/outside:.2f} s)",
        "of the same study takes {same_again/total:.2f} s.",
        "answers {seconds_to_start} s after its start.",
        "was {cold/resident_mib:/1024 .2f} GiB after the first request and",
        "and {one_step/resident_mib_at/50:/1024 .2f} GiB after fifty,",
    ],
    ("docs/deployment.md", "server"): [
        "took {warm/total:.1f} s, the first one {cold/total:.1f} s, in {one_step/resident_mib_at/50:/1024 .1f} GiB",
    ],
    ("docs/scaling.md", "ranks"): [
        "train {two_ranks_to_one/training/0:.1f} and {two_ranks_to_one/training/1:.1f} times as many images",
        "run {two_ranks_to_one/inference/0:.1f} times as many studies",
        "run {two_ranks_to_one/inference/1:.1f} times as many studies",
        "exchange {exchanged_megabytes_a_step:.0f} MB a step",
        "{a_study_beside_its_computation/counter_milliseconds:.1f} ms for the counter,",
        "{a_study_beside_its_computation/place_milliseconds:.1f} ms to be put in its place",
        "{a_study_beside_its_computation/summary_milliseconds:.1f} ms in the summary",
    ],
}
"""What documents tell of the numbers in a file."""


def written(fragment: str, record: Any) -> str:
    """A fragment with the numbers of a record: ``{a/b:/60 .1f}`` is what lies there, divided by 60, with one digit."""

    def number(match: re.Match[str]) -> str:
        found = record
        for key in match[1].split("/"):
            found = found[int(key)] if isinstance(found, list) else found[key]
        return format(found / float(match[2]) if match[2] else found, match[3] or "")

    return re.sub(r"\{(.+?)(?::(?:/(\S+) )?(.*?))?\}", number, fragment)


@pytest.mark.parametrize(("document", "file"), PROSE)
def test_prose_has_the_numbers_of_the_files(document: str, file: str) -> None:
    record = json.loads((ROOT / "benchmarks" / f"{file}.json").read_text("utf-8"))
    text = " ".join((ROOT / document).read_text("utf-8").split())
    told = [written(fragment, record) for fragment in PROSE[document, file]]
    assert [fragment for fragment in told if fragment not in text] == []


def test_a_number_of_prose_by_hand() -> None:
    record = {"a": {"b c": [0, 90]}, "d": 1234}
    assert written("{a/b c/1:/60 .1f} min, {d:,}, {d}", record) == "1.5 min, 1,234, 1234"


def test_the_voxel_size_is_found_by_registration() -> None:
    """A textured brain of known size against itself with a nominal header: 2 % in the plane, 5 % across thick slices."""
    rng = np.random.default_rng(0)
    texture = sitk.GetImageFromArray(rng.normal(size=(40, 70, 60)).astype(np.float32))
    texture.SetSpacing((2.0, 2.0, 3.0))
    texture.SetOrigin((-60.0, -70.0, -60.0))
    z, y, x = np.meshgrid(np.linspace(-60, 57, 40), np.linspace(-70, 68, 70), np.linspace(-60, 58, 60), indexing="ij")
    inside = sitk.GetImageFromArray(((x / 50) ** 2 + (y / 60) ** 2 + (z / 50) ** 2 < 1).astype(np.float32))
    inside.CopyInformation(texture)
    fixed = (sitk.SmoothingRecursiveGaussian(texture, 5.0) * 20 + 10) * inside
    grid = sitk.Image(70, 80, 24, sitk.sitkFloat32)
    grid.SetSpacing((1.75, 1.75, 5.5))
    grid.SetOrigin((-60.0, -70.0, -62.0))
    head = sitk.Resample(fixed, grid)
    head.SetSpacing((2.0, 2.0, 5.0))
    size, _ = pixel_size.true_voxel_size(fixed, head, head > 0)
    np.testing.assert_allclose(size[:2], (1.75, 1.75), rtol=0.02)
    assert size[2] == pytest.approx(5.5, rel=0.05)


def test_a_scan_of_half_the_resolution_lies_where_it_was() -> None:
    """Two by two pixels become one, at their middle; what was cut out stays 0 with every change."""
    affine = np.array([[0.8, 0.1, 0.0, -50], [-0.1, 0.8, 0.0, 20], [0.0, 0.0, 6.0, -10], [0, 0, 0, 1.0]])
    values = np.random.default_rng(0).random((9, 8, 3)).astype(np.float32) + 0.5
    coarse, on = stability.halved(values, affine)
    assert coarse.shape == (4, 4, 3)
    assert np.isclose(coarse[1, 2, 0], values[2:4, 4:6, 0].mean())
    np.testing.assert_allclose(on @ [1, 2, 0, 1], affine @ [2.5, 4.5, 0, 1])
    assert "half the resolution" not in stability.variants(values, np.diag([2.0, 2.0, 6.0, 1.0]), 0)
    values[:, 3:] = 0
    found = stability.variants(values, affine, 0)
    assert set(found) == {"as it is", "half the resolution", "bias field", "noise"}
    for name in ("bias field", "noise"):
        changed, _ = found[name]
        assert (changed[:, 3:] == 0).all() and (changed[:, :3] != values[:, :3]).all()
        again, _ = stability.variants(values, affine, 0)[name]
        np.testing.assert_array_equal(again, changed)
    head = np.zeros((40, 40, 10), bool)
    head[10:30, 10:30] = True
    inside = stability.field(head.shape, head, 0)[head]
    assert np.percentile(inside, 99) / np.percentile(inside, 1) == pytest.approx(1.5, rel=1e-3)


def test_the_marked_volume_of_each_variant(tmp_path: Path) -> None:
    """What is above 1 is marked: 4 voxels of 2 ml, of which 3 are known."""
    affine = np.diag([10.0, 10.0, 20.0, 1.0])
    values = np.full((6, 6, 2), 0.5, np.float32)
    values[:2, :2, 0] = 1.5
    mask = np.zeros(values.shape, np.uint8)
    mask[0, :2, 0] = mask[1, 0, 0] = mask[5, 5, 1] = 1
    item = {"subject": "A"}
    for key, array in (("image", values), ("mask", mask)):
        item[key] = str(tmp_path / f"{key}.nii")
        nib.save(nib.Nifti1Image(array, affine), item[key])

    class Bright:
        def __call__(self, array: np.ndarray, affine: np.ndarray) -> object:
            mask = (array > 1).astype(np.uint8)
            return type("Found", (), {"mask": mask, "lesion_ml": 2.0 * mask.sum()})

    found = stability.measured(Bright(), item, 0)
    assert found["marked_ml"]["as it is"] == pytest.approx(8.0)
    assert [found[k] for k in ("lesion_ml", "found_ml", "beside_ml")] == pytest.approx([8.0, 6.0, 2.0])
    assert found["change"]["noise"] == pytest.approx(abs(found["marked_ml"]["noise"] - 8) / 8)
    values[:] = 0.5
    nib.save(nib.Nifti1Image(values, affine), item["image"])
    assert "change" not in stability.measured(Bright(), item, 0)
    nib.save(nib.Nifti1Image(mask[..., :1], affine), item["mask"])
    with pytest.raises(ValueError, match="lies on another grid than the image"):
        stability.measured(Bright(), item, 0)


def test_starting_is_measured_in_turns_after_one_that_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first turn of each kind takes 100 s, the others 3 and 2: with an empty cache each, with one for all, imports."""
    runs: list[tuple[str, str]] = []
    caches: list[str] = []

    def timed(*command: str) -> dict[str, float]:
        module = next(m for m in starting.MODULES if m in " ".join(command))
        kind = "imports"
        if command[0] == "-m":
            cache = command[command.index("--brain_cache") + 1]
            kind = "kept" if cache.endswith("kept") else "extracted"
            caches.append(cache)
        runs.append((kind, module))
        seconds = 100 if runs.count((kind, module)) == 1 else {"monai.bundle": 3, "scripts.running": 2}[module]
        return {"seconds": seconds, "processor_seconds": 2 * seconds}

    monkeypatch.setattr(starting, "timed", timed)
    monkeypatch.setattr(starting, "warm", lambda cache, rounds: [0.5] * rounds)
    starting.benchmark(rounds=2, output=str(tmp_path / "starting.json"))
    record = json.loads((tmp_path / "starting.json").read_text())
    first, second = starting.MODULES
    in_order = [first, second, second, first, first, second]
    assert runs == [(kind, m) for kind in ("extracted", "kept", "imports") for m in in_order]
    assert len(set(caches)) == 6 + 1
    for kind in ("with_brain_extraction", "with_a_kept_brain_mask", "imports_alone"):
        assert record[kind][first] == {"seconds": 3, "processor_seconds": 6}
        assert record[kind]["ratio"] == {"seconds": 0.67, "processor_seconds": 0.67}
