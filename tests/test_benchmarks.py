"""The rows of the comparison are what they are called: calls, pairing, polarity, and nothing outside the brain."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from gaussians import NoisedClassifier, alphas_cumprod, distance, images, noise_model, scheduler
from scripts import DISEASED, HEALTHY
from scripts.bundle import declared
from scripts.images.brain import ExtractBraind
from scripts.judging.cases import SliceCase
from scripts.method.guidance import ClassifierGuidance
from synthetic import head, write_head

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import brain_coverage
import compare
import paper_network
import pixel_size
import rivals
import sweep

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {
    "pixel AP": "pixel_ap",
    "pooled Dice, threshold of validation": "dice_threshold",
    "pooled Dice, threshold without masks": "dice_labels",
    "... threshold without masks": "dice_labels",
    "... oracle": "dice_oracle",
    "image AUROC": "image_auroc",
    "false pixels a healthy slice": "healthy_area",
    "seconds a slice": "seconds",
}
"""The columns of the tables in the READMEs, by their keys in compare.json."""


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
    healthy = compare.reference(eps, guidance, alphas_cumprod(), 500)(images(DISEASED, 4))
    up, down = list(range(1, 500)), list(range(498, -1, -1))
    assert calls == {"network": up + down, "gradient": down}
    assert len(up) == len(down) == 499
    assert distance(healthy, HEALTHY).abs().max() < 0.2


def test_the_reference_pairs_timesteps_as_its_code_does() -> None:
    """Up t to t + 1 for 1, ..., L - 1; down t to t - 1 for L - 2, ..., 0, where -1 is x_0.

    Where the noise is 0, a step scales by the square root of alpha-bar's ratio, so what the network is given tells every pair.
    """
    level, alphas = 20, alphas_cumprod().double()
    seen: list[tuple[int, float]] = []

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((int(t[0]), float(x.norm())))
        return torch.zeros_like(x)

    class NoGradient(ClassifierGuidance):
        def gradient(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    torch.manual_seed(0)
    x = 0.1 * torch.rand(1, 1, 4, 4, dtype=torch.float64)  # so small that nothing is clipped
    y = compare.reference(eps, NoGradient(NoisedClassifier(), alphas, 1.0), alphas, level)(x)
    pairs = [(t, t + 1) for t in range(1, 20)] + [(t, t - 1) for t in range(18, -1, -1)]
    assert [t for t, _ in seen] == [t for t, _ in pairs]
    torch.manual_seed(0)
    torch.rand(1, 1, 4, 4, dtype=torch.float64)
    noised = alphas[0].sqrt() * x + (1 - alphas[0]).sqrt() * torch.randn_like(x)
    assert seen[0][1] == pytest.approx(float(noised.norm()))
    norms = [n for _, n in seen] + [float(y.norm())]
    of = [*alphas.tolist(), 1.0]  # -1 is the last
    for (t, t_next), before, after in zip(pairs, norms[:-1], norms[1:], strict=True):
        assert after / before == pytest.approx((of[t_next] / of[t]) ** 0.5, rel=1e-9), (t, t_next)


@pytest.mark.parametrize("guided", [True, False])
def test_ancestral_sampling_ends_in_the_mode_it_is_guided_to(guided: bool) -> None:
    torch.manual_seed(0)
    eps = noise_model()
    f = ClassifierGuidance(NoisedClassifier(), alphas_cumprod(), 1.0)(eps) if guided else eps
    y = distance(compare.ancestral(f, alphas_cumprod(), 500, 50)(images(DISEASED, 64)), HEALTHY)
    # at level 500 noise hides the mode, so without guidance both come back
    assert (y < 0.5).float().mean() == 1 if guided else 0.2 < (y < 0.5).float().mean() < 0.8


def test_the_tutorials_loop_heals() -> None:
    guided = ClassifierGuidance(NoisedClassifier(), alphas_cumprod(), 1.0)(noise_model())
    y = compare.tutorial(noise_model(), guided, scheduler(), 200)(images(DISEASED, 4))
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


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_read_slices(name: str) -> None:
    """Maps are at least 0 and empty outside the brain; what reconstructs marks the square after a few seconds."""
    x, labels = heads(16)
    classifier = declared(
        "classifier_def",
        **{
            "classifier_def#channels": [8, 8, 8],
            "classifier_def#norm_num_groups": 4,
            "classifier_def#attention_levels": [False] * 3,
            "classifier_def#num_head_channels": 8,
        },
    ).requires_grad_(False)
    inside = x > -1
    a, scores = rivals.trained(name, x, inside, labels, classifier, 0.1, seed=0)(x[:4], inside[:4])
    assert a.shape == (4, 1, 72, 88) and scores.shape == (4,)
    assert bool((a >= 0).all()) and not a[x[:4] == -1].any() and bool(a.isfinite().all())
    if "healthy slices" in name:
        assert scores[1] > scores[0] and scores[3] > scores[2]
        assert float(a[1, 0, 32:38, 42:48].mean()) > 3 * float(a[0].mean())


@pytest.mark.parametrize("grid", ["plain", "flipped", "oblique"])
def test_readers_masks_lie_on_the_lesions(grid: str, tmp_path: Path) -> None:
    """A mask of what is bright in the file is what is bright in the slices, whatever the file's grid; -1 is left out."""
    item = write_head(tmp_path, grid)
    image = nib.load(item["image"])
    lesion = (np.asarray(image.dataobj) > 150).astype(np.uint8)
    item["mask"] = str(tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(lesion, image.affine), item["mask"])
    item["label"] = [-1, *lesion.any(axis=(0, 1))[1:].astype(int)]
    found = rivals.ReadersMasks([item], declared("preprocessing"), 0.0)
    in_brain = [z for z in range(1, image.shape[2]) if (np.asarray(image.dataobj)[..., z] > 50).any()]
    assert found.labels == [item["label"][z] for z in in_brain]
    x, y = (torch.stack([found[i][k] for i in range(len(found))]) for k in ("image", "label"))
    bright = x > x[x > -1].median() + 0.5 * (x.max() - x[x > -1].median())
    assert y.any() and 2 * (bright & (y > 0)).sum() / (bright.sum() + y.sum()) > 0.9


def test_coverage_counts_what_is_not_looked_at() -> None:
    """Five slices of 10, 40, 100, 60 and 30 pixels of brain; the two largest are assessed."""
    evaluated, assessed = np.array([0, 1, 1, 1, 0], bool), np.array([0, 0, 1, 1, 0], bool)
    found = brain_coverage.counted(evaluated, assessed, np.array([10, 40, 100, 60, 30]), np.array([0, 5, 4, 10, 1]))
    assert found == {
        "slices": 5,
        "evaluated": 3,
        "evaluated_but_not_assessed": 1,
        "with_lesion": 4,
        "with_lesion_not_evaluated": 1,
        "with_lesion_not_assessed": 2,
        "share_of_brain_not_assessed": pytest.approx(80 / 240, abs=1e-3),
        "share_of_lesion_not_assessed": pytest.approx(6 / 20),
    }


@pytest.mark.parametrize("name", compare.SUBSET)
def test_a_splits_slices_come_back_as_cases(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labelled slices of two volumes with their foreground; a number a slice lands on that slice of its file."""
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)
    items = []
    for patient in ("A", "B"):
        (tmp_path / patient).mkdir()
        item = write_head(tmp_path / patient)
        items.append({"image": item["image"], "label": [-1, 0, 1, -1, 0, -1], "subject": patient})
    (tmp_path / "datalist.json").write_text(json.dumps({name: items}))

    def classifier(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 2)

    split = compare.Split(str(tmp_path / "datalist.json"), name, declared("preprocessing"), classifier, 0)
    assert split.x.shape == (6, 1, 72, 88) and split.foreground.shape == (6, 1, 72, 88)
    assert bool((split.x[~split.foreground] == -1).all()) and split.probability.tolist() == [0.5] * 6
    assert split.subset.sum() == 2 * compare.SUBSET[name][1]
    numbers = torch.arange(6.0)
    cases = split.cases({"m": numbers.view(6, 1, 1, 1).expand(6, 1, 72, 88)}, {"m": numbers})
    assert [(c.subject, c.slice, c.scores["m"]) for c in cases] == [
        (p, z, float(n)) for n, (p, z) in enumerate((p, z) for p in "AB" for z in (1, 2, 4))
    ]
    assert all(c.maps["m"][c.foreground].mean() == pytest.approx(c.scores["m"]) for c in cases)
    assert {compare.BASELINE, compare.INTENSITY} < set(cases[0].maps)


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


def test_a_call_of_the_papers_network_is_the_work_that_it_is_in_the_reference() -> None:
    """498 GFLOP a call, what the reference code's network has; a gradient is two calls' work."""
    assert paper_network.flop("network_def") == pytest.approx(498e9, rel=1e-3)
    classifier, gradient = (paper_network.flop("classifier_def", gradient=g) for g in (False, True))
    assert gradient == pytest.approx(2 * classifier, rel=0.05)


@pytest.mark.parametrize("file", ["README.md", "benchmarks/README.md"])
def test_tables_hold_what_was_compared(file: str) -> None:
    """Every cell of a row, with its interval where the table gives it, is that of one and the same row of compare.json."""
    rows = json.loads((ROOT / "benchmarks" / "compare.json").read_text("utf-8"))["rows"]
    header: list[str] = []
    checked = 0
    for line in (ROOT / file).read_text("utf-8").splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")] if line.startswith("|") else []
        header = cells if cells[:1] == ["method"] else header if cells else []
        if not header or not cells or cells == header or set(line) <= set("|-"):
            continue
        named = [r for r in rows if r["method"] == cells[0].removesuffix(" †")]
        wanted = [
            all(told(cell, r.get(COLUMNS[name], "")) for name, cell in zip(header[1:], cells[1:], strict=True))
            for r in named
        ]
        assert any(wanted), line
        checked += 1
    assert checked >= 7


EVALUATED = {
    "ours, default": "counterfactual and student, gated by p(diseased)",
    "ours, student": "student alone, gated by p(diseased)",
    "ours, counterfactual alone": "counterfactual alone, gated by p(diseased)",
    "ours, the paper's map": "counterfactual, sum |x - x_healthy| (the paper's map)",
    "FLAIR minus slice median, 3x3 median": "FLAIR minus slice median, 3x3 median",
}
"""What `evaluate.json` calls the rows of the networks of today."""


@pytest.mark.parametrize(("file", "count"), [("README.md", 3), ("bundle/docs/README.md", 10)])
def test_tables_hold_what_was_evaluated(file: str, count: int) -> None:
    """Of the default, Dice is that at the bundle's threshold."""
    slices, checked = "", 0
    for line in (ROOT / file).read_text("utf-8").splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")] if line.startswith("|") else []
        titles = {"all slices with brain": "whole", "slices from the middle": "middle"}
        slices = titles.get(cells[0], slices) if cells else ""
        if not slices or cells[0] in titles or set(line) <= set("|-"):
            continue
        rows: dict[str, dict[str, str]] = {}
        for kind in ("scores", "foreground"):
            with (ROOT / "benchmarks" / "brain_flair" / f"{slices}_{kind}.csv").open(newline="", encoding="utf-8") as f:
                for row in csv.DictReader(f):
                    name = next(iter(row.values())).removesuffix(", at the bundle's threshold")
                    rows[name] = rows.get(name, {}) | row
        row = rows[EVALUATED[cells[0]]]
        assert cells[1:] == [row["pixel AP"], row["Dice pooled"], row["image AUROC"]], line
        checked += 1
    assert checked == count


def told(cell: str, value: str | float) -> bool:
    """Whether a cell says this value, the number of false pixels with one digit, intervals or not."""
    whole = f"{value:g}" if isinstance(value, float) else value
    number = whole.split(" ")[0]
    return cell in (whole, number) or (number != "" and cell == f"{float(number):.1f}")


def test_the_rows_of_the_record_are_those_of_the_code() -> None:
    record = json.loads((ROOT / "benchmarks" / "compare.json").read_text("utf-8"))
    algorithms = list(compare.Algorithms().rows)
    read = {*algorithms, *(f"{name}, the paper's map" for name in algorithms)}
    others = {compare.BASELINE, compare.GATED, compare.INTENSITY, compare.ALONE, compare.STUDENT, compare.SUPERVISED}
    assert {r["method"] for r in record["rows"]} == read | others | set(rivals.RIVALS)


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
