"""The sequences of a study on one grid: a motion that is known is found, what fits stays, what doesn't fit is refused."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd

from scripts.bundle import parsed
from scripts.errors import InvalidImageError, cause_of
from scripts.images.brain import ExtractBraind
from scripts.images.geometry import to_grid
from scripts.images.intensities import RepairIntensitiesd
from scripts.images.loading import LoadVolumed
from scripts.images.registering import LimitToCoveredd, RegisterChannelsd
from scripts.images.rigid import Motion, motion, resampled, to_itk
from study import GRIDS, MOTIONS, SEQUENCES, Grid, acquired, grid, moved, write_study

LPS = np.diag([-1.0, -1.0, 1.0])


def image(values: np.ndarray, on: Grid, name: str = "a.nii") -> MetaTensor:
    affine = torch.from_numpy(on.affine)
    return MetaTensor(
        torch.from_numpy(values)[None],
        affine=affine,
        meta={"filename_or_obj": name, "source": name, "input_affine": affine},
    )


def scan(sequence: str, on: Grid | None = None, by: np.ndarray | None = None) -> MetaTensor:
    on, by = on or GRIDS[sequence], MOTIONS[sequence] if by is None else by
    return image(acquired(sequence, on, by), on, f"{sequence}.nii")


def register(images: list[MetaTensor], **item: Any) -> dict[str, Any]:
    return RegisterChannelsd("image", SEQUENCES, "FLAIR")({"image": images, **item})


@pytest.mark.parametrize("sequence", ["T1", "T1Gd", "T2"])
def test_a_known_motion_is_found(sequence: str) -> None:
    """On oblique grids of other voxels: half a voxel of the reference in the brain, and one degree."""
    found = motion(to_itk(scan("FLAIR")), to_itk(scan(sequence)))
    points = 60 * np.array([c for c in product((-1, 0, 1), repeat=3) if any(c)]) / np.sqrt(3)
    truth = points @ MOTIONS[sequence][:3, :3].T + MOTIONS[sequence][:3, 3]
    there = np.array([found.transform.TransformPoint(p) for p in (points @ LPS).tolist()]) @ LPS
    assert np.linalg.norm(there - truth, axis=1).max() < 1.0
    rotation = LPS @ np.reshape(found.transform.GetMatrix(), (3, 3)) @ LPS
    off = np.degrees(np.arccos(np.clip((np.trace(rotation.T @ MOTIONS[sequence][:3, :3]) - 1) / 2, -1, 1)))
    assert off < 1 and found.residual < 1.0
    assert found.moved > 5 and found.turned > 5
    if sequence == "T1Gd":
        again = motion(to_itk(scan("FLAIR")), to_itk(scan(sequence)))
        assert again.transform.GetParameters() == found.transform.GetParameters()


def test_channels_come_to_the_references_grid(tmp_path: Path) -> None:
    paths = write_study(tmp_path)
    load = LoadVolumed("image", channels=4, own_grids=True)
    d = RegisterChannelsd("image", SEQUENCES, "FLAIR")(load({"image": [paths[s] for s in SEQUENCES]}))
    result, flair = d["image"], scan("FLAIR")
    assert result.shape == (4, *GRIDS["FLAIR"].shape) and d["warnings"] == []
    torch.testing.assert_close(result.affine, flair.affine)
    torch.testing.assert_close(result.meta["input_affine"], flair.affine)
    assert torch.equal(result[3].as_tensor(), flair[0].as_tensor())
    assert result.meta["source"] == paths["FLAIR"] and result.meta["unit"] == "ml"
    assert result.meta["filename_or_obj"] == ", ".join(paths[s] for s in SEQUENCES)
    still = {s: acquired(s, GRIDS["FLAIR"], np.eye(4)) for s in SEQUENCES}
    brain = (still["T2"] > 60) & (still["FLAIR"] > 60) & (still["T1"] < 130)
    for n, sequence in enumerate(SEQUENCES[:3]):
        difference = result[n].numpy() - still[sequence]
        assert np.median(np.abs(difference[brain])) < 4, sequence  # of noise of 2
        unregistered = register_nothing(scan(sequence), flair) - still[sequence]
        assert np.abs(difference[brain]).mean() < 0.5 * np.abs(unregistered[brain]).mean(), sequence


def register_nothing(moving: MetaTensor, fixed: MetaTensor) -> np.ndarray:
    """By the scanner's coordinates alone."""
    return to_grid(moving.as_tensor(), moving.affine, fixed.affine, fixed.shape[1:])[0].numpy()


def test_stripped_channels_on_one_grid_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """BraTS: not a voxel is interpolated, and nothing is registered."""
    on, brain = GRIDS["FLAIR"], acquired("FLAIR", GRIDS["FLAIR"], np.eye(4)) > 60
    brain[:8] = brain[-8:] = brain[:, :8] = brain[:, -8:] = False
    channels = [image(acquired(s, on, moved((0, 0, 3), (1, 0, 0))) * brain, on) for s in SEQUENCES]
    monkeypatch.setattr("scripts.images.registering.motion", lambda *_: pytest.fail("registered"))
    d = register(channels)
    assert torch.equal(d["image"].as_tensor(), torch.cat([c.as_tensor() for c in channels]))
    assert bool(d["covered"].all()) and d["warnings"] == []


def test_heads_on_one_grid_keep_their_voxels_unless_they_moved() -> None:
    on = GRIDS["FLAIR"]
    channels = [scan(s, on, MOTIONS["T1"] if s == "T1" else np.eye(4)) for s in SEQUENCES]
    result = register(channels)["image"]
    kept = [torch.equal(result[n].as_tensor(), channel[0].as_tensor()) for n, channel in enumerate(channels)]
    assert kept == [False, True, True, True]


def found_with(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    found = Motion(SimpleITK.Euler3DTransform(), **{"moved": 5.0, "turned": 2.0, "residual": 0.5, **values})
    monkeypatch.setattr("scripts.images.registering.motion", lambda *_: found)


@pytest.mark.parametrize("values", [{"residual": 3.0}, {"moved": 60.0}])
def test_a_doubtful_registration_is_said(values: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    found_with(monkeypatch, **values)
    d = register([scan(s) for s in SEQUENCES])
    moved_by = values.get("moved", 5.0)
    assert f"T1 moved by up to {moved_by:.1f} mm and 2.0 degrees against FLAIR, by a registration" in d["warnings"][0]
    assert len(d["warnings"]) == 3


def test_a_failed_registration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on = GRIDS["T2"]
    noise = image(np.random.default_rng(0).random(on.shape).astype(np.float32), on, "noise.nii")
    flair = scan("FLAIR")
    with pytest.raises(
        InvalidImageError, match=r"noise.nii: can't be registered to FLAIR.nii: there and back it misses by"
    ):
        register([noise, flair, flair, flair])
    elsewhere = image(
        acquired("T2", on, np.eye(4)), Grid(on.shape, moved((0, 0, 0), (900, 0, 0)) @ on.affine), "far.nii"
    )
    with pytest.raises(
        InvalidImageError, match=r"far.nii: can't be registered to FLAIR.nii: by their headers they don't"
    ):
        register([elsewhere, flair, flair, flair])
    with pytest.raises(ValueError, match="reference must be one of T1, T1Gd, T2, FLAIR, got 'PD'"):
        RegisterChannelsd("image", SEQUENCES, "PD")


def test_slices_that_a_sequence_does_not_reach_are_not_assessed(monkeypatch: pytest.MonkeyPatch) -> None:
    found_with(monkeypatch)
    shape, affine = (20, 20, 8), np.diag([-2.0, -2.0, 5.0, 1.0])
    whole = image(np.random.default_rng(0).random(shape).astype(np.float32), Grid(shape, affine))
    short = image(whole[0, :, :, 2:].numpy(), Grid((20, 20, 6), affine @ moved((0, 0, 0), (0, 0, 2))))
    d = register([short, whole, whole, whole])
    np.testing.assert_array_equal(d["covered"][0, 5, 5].numpy(), [0, 0, 1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(d["image"][0, :, :, 3:].as_tensor(), whole[0, :, :, 3:].as_tensor())
    mask = MetaTensor(torch.ones(1, *shape, dtype=torch.uint8), affine=d["image"].affine, meta=whole.meta)
    limited = LimitToCoveredd("foreground")({"foreground": mask, "covered": d["covered"]})
    np.testing.assert_array_equal(limited["foreground"][0, 5, 5].numpy(), [0, 0, 1, 1, 1, 1, 1, 1])
    assert limited["warnings"] == ["2 slices with brain are not covered by all sequences and were not assessed."]
    assert "covered" not in limited
    nowhere = {"foreground": mask, "covered": torch.zeros_like(d["covered"])}
    with pytest.raises(InvalidImageError, match="no slice of the brain is covered"):
        LimitToCoveredd("foreground")(nowhere)


def test_a_finer_volume_is_averaged_over_the_references_slices() -> None:
    """Of alternating thin slices, each thick one gets the mean, and not one of them."""
    stripes = np.zeros((20, 20, 40), np.float32)
    stripes[..., ::2] = 10
    fine = image(stripes, grid((20, 20, 40), (2.0, 2.0, 1.0), (0, 0, 0)))
    thick = image(np.zeros((20, 20, 10), np.float32), grid((20, 20, 10), (2.0, 2.0, 4.0), (0, 0, 0)))
    x, inside = resampled(fine, thick, SimpleITK.Euler3DTransform())
    assert bool(inside.all())
    torch.testing.assert_close(x, torch.full_like(x, 5.0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("spacing", "voxel"), [(1.0, (5, 5, 4)), (4.0, (5, 5, 1)), (8.0, (5, 5, 1))])
def test_what_a_volume_lacks_stays_missing(spacing: float, voxel: tuple[int, int, int], value: float) -> None:
    """One voxel of slices that are thinner than the reference's, as thick or thicker, and no other."""
    on = grid((11, 11, round(40 / spacing)), (2.0, 2.0, spacing), (0, 0, 0))
    thick = grid((11, 11, 10), (2.0, 2.0, 4.0), (0, 0, 0))
    values = np.full(on.shape, 7, np.float32)
    values[voxel] = value
    x, inside = resampled(
        image(values, on), image(np.zeros(thick.shape, np.float32), thick), SimpleITK.Euler3DTransform()
    )
    first = int(voxel[2] * spacing // 4)
    expected = np.zeros(thick.shape, bool)
    expected[5, 5, first : first + max(1, round(spacing / 4))] = True
    assert bool(inside.all())
    np.testing.assert_array_equal(x[0].isnan().numpy(), expected)
    assert bool(x.nan_to_num().isfinite().all()) and float(x[0, 0, 0, 0]) == 7


@pytest.mark.parametrize("n", range(4))
def test_a_spike_of_a_series_is_not_spread_by_interpolation(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the air, a part of which, in the voxels beside it, would be no spike and brighter than the head."""
    found_with(monkeypatch)
    prepare = Compose([RegisterChannelsd("image", SEQUENCES, "FLAIR"), RepairIntensitiesd("image")])
    scans = [scan(s) for s in SEQUENCES]
    before = prepare({"image": [s.clone() for s in scans]})["image"].as_tensor()
    scans[n][0, 20, 20, scans[n].shape[3] // 2] = 25 * float(scans[n].max())
    after = prepare({"image": scans})
    assert float(after["image"].as_tensor().max()) == float(before.max())
    assert 1 <= int(after["missing"].sum()) < 300


@pytest.mark.parametrize("n", range(4))
def test_a_hole_in_the_brain_of_any_sequence_is_refused(
    n: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether it was registered or is the reference; in the air it is background."""
    found_with(monkeypatch)
    on = GRIDS["FLAIR"]
    brain = acquired("FLAIR", on, np.eye(4)) > 60
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), on.affine), tmp_path / "brain.nii.gz")
    prepare = Compose(
        [
            RegisterChannelsd("image", SEQUENCES, "FLAIR"),
            Orientationd("image", "LPS", labels=None),
            RepairIntensitiesd("image"),
            ExtractBraind("image", device="cpu", channel=3),
        ]
    )
    scans = [scan(s) for s in SEQUENCES]
    scans[n][0, :2] = np.nan
    whole = {"image": scans, "foreground": str(tmp_path / "brain.nii.gz")}
    assert bool(prepare(whole)["image"].isfinite().all())
    i, j, k = (np.array(scans[n].shape[1:]) // 2).tolist()
    scans[n][0, i - 3 : i + 3, j - 3 : j + 3, k - 1 : k + 1] = np.nan
    with pytest.raises(RuntimeError) as refused:
        prepare(whole)
    assert "voxels within the brain are NaN" in str(cause_of(refused.value))


def test_a_file_with_all_channels_is_taken_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((40, 40, 6, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2, 5, 1])), tmp_path / "all.nii.gz")
    found = LoadVolumed("image", channels=4, own_grids=True)({"image": str(tmp_path / "all.nii.gz")})["image"]
    assert [tuple(c.shape) for c in found] == [(1, 40, 40, 6)] * 4
    np.testing.assert_array_equal(found[2][0].numpy(), values[..., 2])


def test_the_overlay_puts_registration_where_it_belongs() -> None:
    """Its ids stand for places in the base's list."""
    config = parsed("brats")
    assert config.get_parsed_content("sequences").index("FLAIR") == config.get_parsed_content("foreground").channel
    names = [type(t).__name__ for t in config.get_parsed_content("preprocessing").flatten().transforms]
    base = [type(t).__name__ for t in parsed().get_parsed_content("preprocessing").transforms]
    assert names[:3] == ["LoadVolumed", "RegisterChannelsd", "CopyItemsd"]
    assert names[names.index("ExtractBraind") + 1 :][1:3] == ["CopyItemsd", "LimitToCoveredd"]
    assert [name for name in names if name not in ("RegisterChannelsd", "LimitToCoveredd")] == base


def test_one_spacing_is_not_that_of_several_grids(tmp_path: Path) -> None:
    """Of sequences on one grid it is that of all; on grids of their own, another's would be stretched without a word."""
    draw = np.random.default_rng(0)
    for name, shape, size in (("flair", (40, 48, 32), 5.0), ("t2", (40, 48, 32), 5.0), ("t1", (80, 96, 64), 2.5)):
        affine = np.diag([1.0, 1.0, size, 1.0])
        nib.save(nib.Nifti1Image(draw.random(shape, np.float32), affine), tmp_path / f"{name}.nii.gz")
    load = LoadVolumed("image", channels=2, own_grids=True)
    paths = {name: str(tmp_path / f"{name}.nii.gz") for name in ("flair", "t2", "t1")}
    found = load({"image": [paths["flair"], paths["t2"]], "spacing": [0.9, 0.9, 6.0]})["image"]
    assert [image.pixdim.tolist() for image in found] == [pytest.approx([0.9, 0.9, 6.0])] * 2
    with pytest.raises(InvalidImageError, match=r"t1.nii.gz: lies on another grid than .*flair.nii.gz, so one spacing"):
        load({"image": [paths["flair"], paths["t1"]], "spacing": [0.9, 0.9, 6.0]})
    assert len(load({"image": [paths["flair"], paths["t1"]]})["image"]) == 2
