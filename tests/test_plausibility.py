"""What real files bring: odd units, holes, offsets, shading, removed skulls and other images, each with its known answer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation
from scipy import ndimage

from scripts.bundle import bundle_root, declared
from scripts.images.air import stripped_foreground
from scripts.images.bias_field import CorrectFieldd
from scripts.images.brain import ExtractBraind
from scripts.images.intensities import RepairIntensitiesd
from scripts.images.loading import InvalidImageError, LoadVolumed
from scripts.images.normalization import BACKGROUND
from scripts.images.plausibility import CheckBraind
from scripts.images.sequence_check import MODEL, sequence_features, sequence_probabilities
from scripts.running.saving import save_nifti
from test_inference import datalist, run, weights  # noqa: F401

SHAPE, AFFINE = (100, 120, 28), nib.affines.from_matvec(np.diag([-2.0, -2.0, 5.0]), (100.0, 120.0, -70.0))
GRIDS = np.stack(
    np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, (2, 2, 5), strict=True)], indexing="ij")
)


def ellipsoid(x: float, y: float, z: float) -> np.ndarray:
    """Half axes in mm."""
    return sum((g / a) ** 2 for g, a in zip(GRIDS, (x, y, z), strict=True)) < 1


BRAIN = ellipsoid(65, 82, 58)


def whole_head() -> np.ndarray:
    """A FLAIR-like head: brain 100 with texture, a lesion, dark ventricles and skull, bright skin, noise in air."""
    rng = np.random.default_rng(0)
    x = np.where(ellipsoid(88, 108, 69), 90.0, 2.0)
    x[ellipsoid(80, 98, 64)] = 15
    x[BRAIN] = 100
    x[ellipsoid(12, 30, 15)] = 20
    x[np.sum((GRIDS - np.array([30.0, 20, 10])[:, None, None, None]) ** 2, axis=0) < 14**2] = 170
    return ndimage.gaussian_filter(x, (0.6, 0.6, 0)) + rng.normal(0, 2, SHAPE).clip(-1.9) * (x > 0) + 2


HEAD = np.abs(whole_head()).round().astype(np.float32)


def write(
    folder: Path, array: np.ndarray, affine: np.ndarray = AFFINE, units: str = "mm", name: str = "a.nii.gz"
) -> str:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units(units)
    nib.save(image, folder / name)
    return str(folder / name)


def preprocessed(path: str, monkeypatch: pytest.MonkeyPatch, **item: Any) -> dict[str, Any]:
    """With the true brain in the place of HD-BET's."""

    def segment(self: ExtractBraind, image: MetaTensor) -> torch.Tensor:
        mask = MetaTensor(torch.from_numpy(BRAIN.copy())[None], affine=torch.from_numpy(AFFINE))
        return Orientation("LPS", labels=None)(mask).as_tensor()

    monkeypatch.setattr(ExtractBraind, "_segment", segment)
    try:
        return declared("preprocessing", brain_cache=None)({"image": path, **item})
    except RuntimeError as error:
        assert error.__cause__ is not None
        raise error.__cause__ from None


def head_with(where: Any, value: float) -> np.ndarray:
    array = HEAD.copy()
    array[where] = value
    return array


SAME = {
    "padding of -32768": np.where(HEAD < 3, -32768, HEAD).astype(np.float32),
    "padding of 65535": np.where(HEAD < 3, 65535, HEAD).astype(np.float32),
    "NaN in air": np.where(HEAD < 3, np.nan, HEAD).astype(np.float32),
    "spike in air": head_with((3, 3, 5), 1e30),
    "trailing axes": HEAD[..., None, None],
}
WARNED = {
    "infinity in air": (head_with((3, 3, 5), np.inf), "infinite"),
    "offset of -1024": (HEAD - 1024, "Air has the value -10"),
    "offset of 500": (HEAD + 500, "Air has the value 50"),
    "z-score": ((HEAD - HEAD[BRAIN].mean()) / HEAD[BRAIN].std(), "Air has the value -"),
}


@pytest.mark.parametrize("case", [*SAME, *WARNED])
def test_holes_padding_spikes_and_offsets_don_t_change_the_networks_input(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, warning = (SAME[case], None) if case in SAME else WARNED[case]
    plain = preprocessed(write(tmp_path, HEAD), monkeypatch)
    odd = preprocessed(write(tmp_path, array), monkeypatch)
    difference = (odd["image"].as_tensor() - plain["image"].as_tensor()).abs()
    assert float((difference > 0.05).float().mean()) < 2e-3
    new = [w for w in odd["warnings"] if w not in plain["warnings"]]
    assert len(new) == (warning is not None)
    assert warning is None or warning in new[0]


def test_what_is_missing_within_the_brain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (np.nan, np.inf, 1e30):
        path = write(tmp_path, head_with((50, 60, 14), value))
        with pytest.raises(InvalidImageError, match="1 voxels within the brain") as error:
            preprocessed(path, monkeypatch)
        assert path in str(error.value)


@pytest.mark.parametrize("outside", [0.0, np.nan, -32768.0, -1000.0, 7.0])
def test_a_stripped_image_is_its_own_brain(outside: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, np.where(BRAIN, HEAD, outside).astype(np.float32))
    mask = write(tmp_path, BRAIN.astype(np.uint8), name="brain.nii.gz")
    given = preprocessed(write(tmp_path, np.where(BRAIN, HEAD, 0), name="b.nii.gz"), monkeypatch, brain=mask)

    def fail(self: ExtractBraind, image: MetaTensor) -> torch.Tensor:
        raise AssertionError("HD-BET must not run")

    monkeypatch.setattr(ExtractBraind, "_segment", fail)
    alone = declared("preprocessing")({"image": path})
    assert torch.equal(alone["foreground"] >= 0.5, given["foreground"] >= 0.5)
    if outside != 7:
        torch.testing.assert_close(alone["image"].as_tensor(), given["image"].as_tensor(), rtol=0, atol=0.02)


def test_a_whole_head_is_not_taken_for_stripped_even_in_empty_air() -> None:
    for air in (HEAD, np.where(HEAD < 10, 0, HEAD)):
        assert stripped_foreground(air, (2.0, 2.0, 5.0)) is None
    # at twice the size it is no brain's any more, which HD-BET's mask then tells
    stripped = np.where(BRAIN, HEAD, 0)
    assert stripped_foreground(stripped, (4.0, 4.0, 10.0)) is None
    image = MetaTensor(torch.from_numpy(stripped)[None], affine=torch.diag(torch.tensor([-4.0, -4.0, 10.0, 1.0])))
    wrong = torch.from_numpy(ellipsoid(75, 95, 60))[None]
    assert torch.equal(ExtractBraind("image")._without_air(image, wrong)[0], torch.from_numpy(BRAIN))
    image = MetaTensor(torch.from_numpy(HEAD)[None], affine=torch.diag(torch.tensor([-2.0, -2.0, 5.0, 1.0])))
    assert torch.equal(ExtractBraind("image")._without_air(image, wrong), wrong)


def test_a_z_scored_brain_is_brought_back_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = preprocessed(write(tmp_path, np.where(BRAIN, HEAD, 0)), monkeypatch)
    z = np.where(BRAIN, (HEAD - HEAD[BRAIN].mean()) / HEAD[BRAIN].std(), 0).astype(np.float32)
    scored = preprocessed(write(tmp_path, z), monkeypatch)
    assert any("approximate" in w for w in scored["warnings"])
    # the darkest of this brain is 20 % of its median, which is lost: the lesion looks a little brighter
    lesion = float((plain["image"] > 0.35).sum())
    assert lesion <= float((scored["image"] > 0.35).sum()) < 1.25 * lesion


@pytest.mark.parametrize(("units", "scale"), [("micron", 1e3), ("meter", 1e-3), ("unknown", 1.0)])
def test_units_are_honoured_and_kept(units: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine = AFFINE.copy()
    affine[:3] *= scale
    path = write(tmp_path, HEAD, affine, units)
    plain = preprocessed(write(tmp_path, HEAD, name="mm.nii.gz"), monkeypatch)
    other = preprocessed(path, monkeypatch)
    torch.testing.assert_close(other["image"].as_tensor(), plain["image"].as_tensor())
    save_nifti(other["input_image"], path, tmp_path / "out.nii.gz")
    before, after = nib.load(path), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()


def test_sizes_that_no_memory_holds_are_refused(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3] *= 1000
    path = write(tmp_path, HEAD, affine)
    with pytest.raises(InvalidImageError, match="measures 200000 x 240000 x 140000 mm") as error:
        LoadVolumed("image")({"image": path})
    assert path in str(error.value)


def test_hd_bet_is_given_no_more_voxels_than_a_head_has(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def network(device: str) -> Any:
        return lambda x: sizes.append(x[0, 0].numel()) or torch.cat([-x, x], dim=1)

    monkeypatch.setattr("scripts.images.brain._hd_bet", network)
    image = MetaTensor(torch.rand(1, 64, 64, 64), affine=torch.diag(torch.tensor([-15.0, -15.0, 15.0, 1.0])))
    assert ExtractBraind("image", precision="float32")._segment(image).shape == image.shape
    assert sizes[0] <= 1.2 * ExtractBraind.max_voxels  # padded


def test_names_and_content_may_disagree_on_compression(tmp_path: Path) -> None:
    packed = Path(write(tmp_path, HEAD)).read_bytes()
    plain, zipped = tmp_path / "plain.nii.gz", tmp_path / "zipped.nii"
    plain.write_bytes(gzip.decompress(packed))
    zipped.write_bytes(packed)
    for path in (plain, zipped):
        image = LoadVolumed("image")({"image": str(path)})["image"]
        np.testing.assert_array_equal(image[0], HEAD)
        np.testing.assert_array_equal(image.affine, AFFINE)
        save_nifti(image, str(path), tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, AFFINE)


def colour(folder: Path) -> str:
    pixels = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return write(folder, pixels)


def other_format(name: str) -> Any:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(b"anything")
        return str(folder / name)

    return make


REFUSED: dict[str, tuple[Any, str]] = {
    "complex": (lambda d: write(d, HEAD.astype(np.complex64)), "complex numbers"),
    "colour": (colour, "colour picture"),
    "jpeg": (other_format("a.jpg"), "allowed are NIfTI"),
    "npy": (other_format("a.npy"), "allowed are NIfTI"),
    "analyze": (other_format("a.img"), "allowed are NIfTI"),
    "mask": (lambda d: write(d, BRAIN.astype(np.uint8)), "mask or a label map"),
    "labels": (
        lambda d: write(d, np.where(BRAIN, 1 + (GRIDS[0] > 0) + 2 * (HEAD > 150), 0).astype(np.int16)),
        "label map",
    ),
    "CT": (lambda d: write(d, np.select([BRAIN, HEAD > 10], [30 + HEAD / 10, 40], -1000).astype(np.int16)), "CT"),
    "CT from 0": (
        lambda d: write(d, np.select([BRAIN, HEAD > 10], [1054 + HEAD / 10, 1064], 24).astype(np.int16)),
        "CT",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_t_be_an_mr_image_of_a_head_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(InvalidImageError, match=reason) as error:
        preprocessed(path, monkeypatch)
    assert path in str(error.value)
    if case in ("mask", "labels", "CT"):
        d = preprocessed(path, monkeypatch, allow_any_image=True)
        assert any("means nothing" in w for w in d["warnings"])
        assert bool((d["image"] > BACKGROUND).any())


def signal(array: np.ndarray, brain: np.ndarray = BRAIN, spacing: tuple[float, ...] = (2, 2, 5)) -> list[str]:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    meta = {"filename_or_obj": "a", "input_affine": affine}
    d = {
        "image": MetaTensor(torch.from_numpy(np.asarray(array, np.float32))[None], affine=affine, meta=meta),
        "foreground": MetaTensor(torch.from_numpy(brain.astype(np.uint8))[None], affine=affine),
    }
    return CheckBraind("image")(d)["warnings"]


def test_signal_and_size_of_the_brain() -> None:
    assert signal(HEAD) == []
    gap = HEAD.copy()
    gap[:, :, 13:16] = 0
    assert "(13, 14, 15)" in signal(gap)[0]
    assert "saturated" in signal(HEAD.clip(0, 100))[0]
    assert "inverted" in signal(HEAD.max() - HEAD)[0]
    assert "too small" in signal(HEAD, spacing=(1, 1, 2))[0]
    assert "too large" in signal(HEAD, spacing=(4, 4, 10))[0]
    # one slice, or a few, of a normal brain
    for part in (slice(14, 15), slice(10, 15)):
        assert signal(HEAD[:, :, part], BRAIN[:, :, part]) == []
    # all slices of a clinical stack at 1 mm
    assert (
        "too small" in signal(np.repeat(HEAD[:, :, 14:15], 26, 2), np.repeat(BRAIN[:, :, 14:15], 26, 2), (2, 2, 1))[0]
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_strong_shading_is_corrected_and_slight_is_left(axis: int) -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0]))
    ramp = np.linspace(0.4, 1.8, SHAPE[axis]).reshape([-1 if a == axis else 1 for a in range(3)])

    def corrected(array: np.ndarray) -> dict[str, Any]:
        x = torch.from_numpy(array.astype(np.float32))[None]
        brain = MetaTensor(torch.from_numpy(BRAIN.astype(np.float32))[None], affine=affine)
        return CorrectFieldd("image")({"image": MetaTensor(x, affine=affine), "foreground": brain, "warnings": []})

    plain, shaded = corrected(HEAD), corrected(HEAD * ramp)
    assert plain["warnings"] == [] and bool((plain["bias_field"] == 1).all())
    assert "shaded" in shaded["warnings"][0]
    torch.testing.assert_close(
        (shaded["image"] * shaded["bias_field"])[0].as_tensor().numpy(), (HEAD * ramp).astype(np.float32)
    )
    # even tissue becomes even again: before, its darkest and brightest tenth differ twofold
    even = BRAIN & (HEAD > 90) & (HEAD < 110)
    low, high = np.percentile(shaded["image"][0].as_tensor().numpy()[even], [10, 90])
    assert high / low < 1.25 < 1.6 < np.divide(*np.percentile((HEAD * ramp)[even], [90, 10]))


def test_the_sequence_check_does_not_depend_on_scale_and_believes_its_own_means() -> None:
    features = sequence_features(HEAD, BRAIN.astype(np.float32), (2.0, 2.0, 5.0))
    assert features.shape == (23,) == np.shape(MODEL["mean"])
    np.testing.assert_allclose(
        sequence_features(37 * HEAD, BRAIN.astype(np.float32), (2.0, 2.0, 5.0)), features, rtol=1e-4
    )
    p = sequence_probabilities(features)
    assert set(p) == {"FLAIR", "T1", "T1Gd", "T2"} and sum(p.values()) == pytest.approx(1)


def test_the_measured_errors_of_the_checks_are_within_what_is_claimed() -> None:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "sequence_check.json"
    result = json.loads(path.read_text())
    assert result["warned that it is not FLAIR"]["threshold"] == MODEL["threshold"]
    counts: dict[str, list[int]] = {}
    for of_set in result["warned that it is not FLAIR"]["cross-validated over patients"].values():
        for sequence, text in of_set.items():
            warned, number = map(int, text.split(" of "))
            total = counts.setdefault(sequence, [0, 0])
            total[0], total[1] = total[0] + warned, total[1] + number
    rate = {sequence: a / b for sequence, (a, b) in counts.items()}
    assert rate["FLAIR"] <= 0.02 and min(rate[s] for s in ("T1", "T1Gd", "T2")) >= 0.9


def test_the_bundled_sample_is_flair_and_its_inverse_is_not() -> None:
    """Without HD-BET: a coarse brain, the central part of the head, is enough to tell."""
    steps: Compose = declared("preprocessing")
    path = next((Path(bundle_root()) / "sample").glob("*.nii.gz"))
    d: dict[str, Any] = {"image": str(path)}
    for transform in steps.transforms[:4]:
        d = transform(d)
    assert "foreground" not in d and d["warnings"] == []
    head = d["image"][0].numpy()
    assert isinstance(steps.transforms[3], RepairIntensitiesd) and head.min() == 0


def test_warnings_reach_summary_picture_and_terminal(
    tmp_path: Path,
    weights: dict[str, str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = write(tmp_path, (HEAD - 1024).astype(np.int16), name="flair.nii.gz")
    mask = write(tmp_path, BRAIN.astype(np.uint8), name="brain.nii.gz")
    source = datalist(tmp_path, [{"image": image, "foreground": mask, "name": "p"}])
    assert run(weights, input=source, output_dir=str(tmp_path / "out")) == 0
    volume = json.loads((tmp_path / "out" / "summary.json").read_text())["volumes"][0]
    assert any("Air has the value -10" in w for w in volume["warnings"])
    assert "WARNING" in capsys.readouterr().out
    from matplotlib.image import imread

    picture = imread(tmp_path / "out" / "p" / "overview.png")[:90, :, :3]
    amber = np.abs(picture - np.array([1.0, 176 / 255, 0.0])).max(axis=2) < 0.05
    assert amber.sum() > 100
    # nothing is lost of the input's own intensities
    healthy = np.asarray(nib.load(tmp_path / "out" / "p" / "counterfactual.nii.gz").dataobj)
    np.testing.assert_allclose(
        healthy[~BRAIN][HEAD[~BRAIN] < 10].mean(), (HEAD - 1024)[~BRAIN][HEAD[~BRAIN] < 10].mean(), atol=1
    )
