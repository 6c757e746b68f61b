"""Results lie on the input's grid, exactly, and say what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor

from scripts.bundle import declared
from scripts.images.mapping import AnomalyMapd
from scripts.images.normalization import BACKGROUND
from scripts.images.pictures import picture_affine
from scripts.images.resizing import ResizeInPlaned
from scripts.images.restoring import LESION, NOT_ASSESSED, RestoreGridd
from scripts.method.maps import anomaly_map, combined_map, gate, slice_score
from scripts.method.slices import assessed_slices
from scripts.running.overview import draw_overview
from synthetic import GRIDS, head, write_head


def perfect_result(item: dict[str, Any], threshold: float = 0.3) -> dict[Any, Any]:
    """What a perfect network would give: everything brighter than the median of the brain is brought back to it."""
    d = declared("preprocessing")(item)
    x = d["image"].as_tensor()
    d["pred"] = {
        "counterfactual": torch.where(d["foreground"] >= 0.5, x.clamp_max(0), x),
        "assessed": assessed_slices(d["foreground"], 0.5),
        "probability": torch.where(assessed_slices(d["foreground"], 0.5), 0.75, torch.nan),
    }
    d = AnomalyMapd("image")(d)
    return RestoreGridd("image", threshold=threshold)(d)


@pytest.mark.parametrize("grid", GRIDS)
def test_results_lie_on_the_inputs_grid(grid: str, tmp_path: Path) -> None:
    item = write_head(tmp_path, grid)
    source = nib.load(item["image"])
    image = np.asarray(source.dataobj)
    d = perfect_result(item)
    for key in ("anomaly_map", "counterfactual", "pred"):
        assert d[key].shape == (1, *source.shape)
        np.testing.assert_array_equal(d[key].affine, source.affine)
    assert d["pred"].dtype == torch.uint8
    lesion, found = image == 170, d["pred"][0].numpy() == LESION
    seen = d["pred"][0].numpy() != NOT_ASSESSED
    dice = 2 * (lesion & found).sum() / ((lesion & seen).sum() + found.sum())
    assert dice > 0.85, dice
    # what did not change is the input, exactly; the lesion's core comes back to the brain's intensity
    healthy = d["counterfactual"][0].numpy()
    np.testing.assert_allclose(healthy[image == 0], 0, atol=1e-4)
    core = lesion & (d["anomaly_map"][0].numpy() > 0.699)
    assert core.any()
    np.testing.assert_allclose(healthy[core], 100, atol=1.5)


def test_foreground_that_was_not_assessed_is_marked(tmp_path: Path) -> None:
    item = write_head(tmp_path, "oblique")
    d = perfect_result(item)
    brain = np.asarray(nib.load(item["foreground"]).dataobj) > 0
    area = brain.sum(axis=(0, 1))
    unseen = brain & (area < 0.5 * area.max())
    assert unseen.any()
    mask, a = d["pred"][0].numpy(), d["anomaly_map"][0].numpy()
    np.testing.assert_array_equal(np.isnan(a), mask == NOT_ASSESSED)
    np.testing.assert_array_equal(mask == NOT_ASSESSED, unseen)
    for row in d["slices"]:
        seen = area[row["slice"]] >= 0.5 * area.max()
        assert row["assessed"] == seen
        assert (row["score"] is None) == (not seen)
        assert row["p_diseased"] == (0.75 if seen else None)


@pytest.mark.parametrize("shape", [(200, 200), (213, 160), (20, 31)])
def test_of_a_whole_image_every_pixel_is_assessed(shape: tuple[int, int]) -> None:
    """Up to its corners, where the network's outermost pixels end."""
    image = MetaTensor(torch.rand(1, *shape, 1), affine=picture_affine())
    image.meta |= {"filename_or_obj": "x.png", "input_affine": image.affine.double(), "intensity_scale": [1.0]}
    d: dict[Any, Any] = {"image": image, "input_image": image, "foreground": torch.ones_like(image)}
    d["input_foreground"] = d["foreground"]
    d = ResizeInPlaned(("image", "foreground"), (32, 32))(d)
    d["anomaly_map"], d["pred"] = torch.zeros_like(d["image"]), {"assessed": torch.ones(1, dtype=torch.bool)}
    assert not RestoreGridd("image", threshold=0.3)(d)["pred"].any()
    d["pred"] = {"assessed": torch.zeros(1, dtype=torch.bool)}
    assert (RestoreGridd("image", threshold=0.3)(d)["pred"] == NOT_ASSESSED).all()


def test_the_overview_draws_a_mask_by_its_own_affine(tmp_path: Path) -> None:
    """The same picture whatever the order of the mask's axes, another one for another mask, and no mask of another grid."""
    d = perfect_result(write_head(tmp_path, "oblique"))
    image, affine = np.asarray(d["input_image"][0]), d["input_image"].affine.numpy()
    masks = {"plain": nib.Nifti1Image((image == 170).astype(np.uint8), affine)}
    masks["reordered"] = masks["plain"].as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    masks["foreground"] = nib.Nifti1Image((image > 0).astype(np.uint8), affine)
    pictures = {}
    for name, mask in masks.items():
        nib.save(mask, tmp_path / "mask.nii.gz")
        draw_overview(d, str(tmp_path / "mask.nii.gz"), "flair", tmp_path / f"{name}.png", num_slices=1)
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert pictures["plain"] == pictures["reordered"] != pictures["foreground"]
    nib.save(nib.Nifti1Image(masks["plain"].dataobj, np.eye(4)), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match="mask.nii.gz: lies on another grid than .*flair.nii.gz"):
        draw_overview(d, str(tmp_path / "mask.nii.gz"), "flair", tmp_path / "wrong.png")


def test_the_overview_outlines_what_was_not_assessed_in_blue(tmp_path: Path) -> None:
    """In the last panel alone, and only where there is any."""
    d = perfect_result(write_head(tmp_path, "oblique"))
    blue = []
    for some in (False, True):
        pred = d["pred"].clone()
        pred[pred == NOT_ASSESSED] = 0
        if some:
            pred[:, 30:40, 40:50] = NOT_ASSESSED
        draw_overview({**d, "pred": pred}, None, "flair", tmp_path / "picture.png")
        picture = imread(tmp_path / "picture.png")[..., :3]
        blue.append(np.argwhere(np.abs(picture - np.array([91, 155, 255]) / 255).max(axis=-1) < 0.05))
    assert len(blue[0]) == 0 and len(blue[1]) > 20
    assert blue[1][:, 1].min() > 0.6 * picture.shape[1]


def test_anomaly_map_known_numbers() -> None:
    x, healthy = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
    x[0, 0, 2, 2], healthy[0, 0, 0, 0], x[0, 1, 2, 2] = 0.5, 0.25, 0.125
    both = anomaly_map(x, healthy, x[:, :1] > BACKGROUND, "both", 1)
    bright = anomaly_map(x, healthy, x[:, :1] > BACKGROUND, "hyperintense", 1)
    assert both.sum() == 0.875 and both[0, 0, 2, 2] == 0.625 and both[0, 0, 0, 0] == 0.25
    assert bright.sum() == 0.625
    assert (
        anomaly_map(x, healthy, x[:, :1] > BACKGROUND, "both", 3).sum() == 0
    )  # single pixels don't survive the median
    for wrong in ("dark", ["both"], ["both", "dark"], []):
        with pytest.raises(ValueError, match="polarity must be .*, or one of them a channel, got"):
            anomaly_map(x, healthy, x[:, :1] > BACKGROUND, wrong, 1)


def test_every_channel_has_its_own_polarity() -> None:
    """A lesion that is dark by 0.5 in the first channel and bright by 0.25 in the second; the rest of both is 0."""
    x, healthy = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    x[0, 0, 1, 1], x[0, 1, 1, 1] = -0.5, 0.25
    inside = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    found = {"both": 0.75, "hyperintense": 0.25, "hypointense": 0.5}
    assert {p: anomaly_map(x, healthy, inside, p, 1).sum().item() for p in found} == found
    assert anomaly_map(x, healthy, inside, ["hypointense", "hyperintense"], 1)[0, 0, 1, 1] == 0.75
    assert not anomaly_map(x, healthy, inside, ["hyperintense", "hypointense"], 1).any()


def test_what_is_black_within_the_foreground_is_in_the_map_and_what_is_bright_outside_is_not() -> None:
    x, healthy = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    x[..., 0, 0], x[..., 2, 2] = -1, 1
    inside = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    inside[..., 2, 2] = False
    a = anomaly_map(x, healthy, inside, "both", 1)
    assert a[0, 0, 0, 0] == 1 and a.sum() == 1
    assert slice_score(a, inside, torch.ones(1)).item() == pytest.approx(1 / 8)


def test_the_hyperintense_map_is_a_geometric_mean_with_the_excess_over_healthy_tissue() -> None:
    """Healthy tissue is 0 and a fold 0.3; a change counts as far as it is bright, and a shifted dark rim not at all."""
    x, healthy = torch.full((1, 1, 3, 5), -1.0), torch.full((1, 1, 3, 5), -1.0)
    x[..., 1:] = healthy[..., 1:] = 0.0  # the first column is outside the brain and no part of the median
    x[0, 0, 0, 1], healthy[0, 0, 0, 1] = 0.9, 0.5  # brought back in part
    x[0, 0, 0, 2], healthy[0, 0, 0, 2] = -0.1, -0.5  # a rim
    x[0, 0, 0, 3], healthy[0, 0, 0, 3] = 0.3, 0.3  # a fold
    a = anomaly_map(x, healthy, x[:, :1] > BACKGROUND, "hyperintense", 1)
    expected = torch.zeros(1, 1, 3, 5)
    expected[0, 0, 0, 1] = (0.4 * 0.9) ** 0.5
    torch.testing.assert_close(a, expected)


def test_a_slice_without_brain_has_an_empty_map() -> None:
    x = torch.full((1, 1, 4, 4), -1.0)
    assert not anomaly_map(x, x, x[:, :1] > BACKGROUND, "hyperintense", 3).any()


def test_a_students_map_needs_no_counterfactual(tmp_path: Path) -> None:
    """Its probability is the map, dimmed by the gate, on the input's grid; no counterfactual is invented."""
    d = declared("preprocessing")(write_head(tmp_path, "oblique"))
    x = d["image"].as_tensor()
    assessed = assessed_slices(d["foreground"], 0.5)
    d["pred"] = {
        "student": (x > 0.5).float(),
        "assessed": assessed,
        "probability": torch.where(assessed, 0.25, torch.nan),
    }
    d = RestoreGridd("image", threshold=0.3)(AnomalyMapd("image")(d))
    assert "counterfactual" not in d and d["pred"].shape == d["input_image"].shape
    core = d["anomaly_map"][0] > 0.49
    assert core.any() and d["anomaly_map"].nan_to_num().max() == pytest.approx(0.5)
    np.testing.assert_array_equal(d["input_image"][0][core], 170)


def test_the_map_is_the_mean_of_counterfactual_and_student() -> None:
    """(0.5 + 0.9) / 2 in the lesion, 0.9 / 2 where only the student sees something; halved by p = 0.25, 0 outside."""
    x, healthy = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0], x[0, 0, 1, 1], healthy[0, 0, 1, 1] = 0.5, -1, -1
    student = torch.tensor([[[[0.9, 0.9], [0.0, 1.0]]]])
    found = {"counterfactual": healthy, "student": student, "probability": torch.tensor([0.25])}
    expected = torch.tensor([[[[0.35, 0.225], [0.0, 0.0]]]])
    torch.testing.assert_close(combined_map(x, found, x[:, :1] > BACKGROUND, "hyperintense", 1), expected)
    alone = {name: found[name] for name in ("counterfactual", "probability")}
    torch.testing.assert_close(
        combined_map(x, alone, x[:, :1] > BACKGROUND, "both", 1), torch.tensor([[[[0.25, 0.0], [0.0, 0.0]]]])
    )


def test_slice_score_known_number() -> None:
    a = torch.tensor([[[[0.5, 1.0], [9.0, 0.0]]]])
    brain = torch.tensor([[[[True, True], [False, True]]]])
    assert slice_score(a, brain, torch.tensor([0.5])).item() == pytest.approx(0.25)


LARGE = {
    name: (shape, affine)
    for name, shape, affine in (
        ("plain", (120, 130, 6), np.diag([2.0, 2.0, 5.0, 1.0])),
        ("flipped", (120, 130, 6), nib.affines.from_matvec(np.diag([-2.0, 2.0, -5.0]), (100.0, -90.0, 40.0))),
        ("oblique", (130, 124, 6), nib.affines.from_matvec(GRIDS["oblique"][1][:3, :3], (-120.0, -110.0, 5.0))),
        ("sagittal", (6, 130, 120), GRIDS["sagittal"][1]),
        ("one slice", (120, 130, 1), np.diag([2.0, 2.0, 5.0, 1.0])),
    )
}


@pytest.mark.parametrize("grid", LARGE)
def test_what_lies_beyond_the_networks_field_is_not_assessed(grid: str, tmp_path: Path) -> None:
    """A brain of 200 x 217 mm, with a lesion at the side that the field of 173 x 211 mm leaves out: not 0 but 2."""
    shape, affine = LARGE[grid]
    image, brain = head(shape)
    image[image > 100] = 100
    # the end of the brain along the file's axis that is nearest to left-right, in every slice
    axis = 1 if grid == "sagittal" else 0
    at = np.moveaxis(np.broadcast_to(np.arange(shape[axis]), np.moveaxis(image, axis, -1).shape), -1, axis)
    lesion = brain & (at < np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))[0] + 4)
    image[lesion] = 170
    for name, array in (("image", image), ("foreground", brain.astype(np.uint8))):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    d = perfect_result({name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "foreground")})
    mask, a = d["pred"][0].numpy(), d["anomaly_map"][0].numpy()
    assert lesion.sum() > 50 and (mask[lesion] == NOT_ASSESSED).all() and np.isnan(a[lesion]).all()
    np.testing.assert_array_equal(np.isnan(a), mask == NOT_ASSESSED)
    assert not (mask[~brain] == NOT_ASSESSED).any()
    # of slices that were looked at, the field has 72 pixels of 2.4 mm in this direction, as near as whole voxels can be
    seen = brain & (mask != NOT_ASSESSED)
    width = seen.any(axis=tuple({0, 1, 2} - {axis})).sum() * np.linalg.norm(affine[:3, axis])
    assert width == pytest.approx(172.8, abs=2.5)
    if grid == "one slice":
        assert (mask[30:90, 30:100] == 0).all()


@pytest.mark.parametrize("threshold", [0, -1, 2.1, 99, float("nan"), float("inf"), "0.3", True, None])
def test_refuses_threshold(threshold: Any) -> None:
    with pytest.raises(ValueError, match=r"threshold must be .*above 0 and at most 2, got"):
        RestoreGridd("image", threshold=threshold)
    RestoreGridd("image", threshold=2.1, channels=2)


def test_refuses_polarity_and_median_size_before_the_networks_run() -> None:
    with pytest.raises(ValueError, match="polarity must be 'both', 'hyperintense', 'hypointense', or .*, got 'dark'"):
        AnomalyMapd("image", polarity="dark")
    for size in (0, -3, 4, 101, 3.0, "3", float("nan"), True):
        with pytest.raises(ValueError, match="median_size must be .*from 1 to 99, got"):
            AnomalyMapd("image", median_size=size)  # type: ignore[arg-type]


def test_a_map_of_nan_is_an_error_and_no_empty_result() -> None:
    """One of three assessed slices came back as NaN: no score of null beside "assessed"."""
    x = torch.zeros(1, 4, 4, 4)
    healthy = x.clone()
    healthy[..., 1] = healthy[..., 3] = torch.nan
    pred = {
        "counterfactual": healthy,
        "probability": torch.full((4,), 0.5),
        "assessed": torch.tensor([True] * 3 + [False]),
    }
    image = MetaTensor(x, affine=torch.eye(4), meta={"filename_or_obj": "a.nii", "input_affine": torch.eye(4).double()})
    with pytest.raises(ValueError, match="a.nii: the networks gave NaN or infinity in 1 of 3 assessed slices"):
        AnomalyMapd("image")({"image": image, "foreground": torch.ones(1, 4, 4, 4), "pred": pred})


def test_difference_is_in_the_inputs_units(tmp_path: Path) -> None:
    """Two channels of different scale each get their own counterfactual."""
    item = write_head(tmp_path, channels=2)
    d = declared("preprocessing", num_channels=2)(item)
    x = d["image"].as_tensor()
    assessed = torch.ones(x.shape[-1], dtype=torch.bool)
    d["pred"] = {"counterfactual": x.clamp_max(0), "assessed": assessed, "probability": torch.ones(x.shape[-1])}
    d = RestoreGridd("image", threshold=0.3)(AnomalyMapd("image")(d))
    core = d["anomaly_map"][0] > 1.39
    assert core.any()
    np.testing.assert_allclose(d["counterfactual"][0][core], 100, atol=1.5)
    np.testing.assert_allclose(d["counterfactual"][1][core], 200, atol=3)


def test_the_gate_dims_slices_that_are_likely_healthy() -> None:
    assert gate(torch.tensor([0.0, 0.1, 0.5, 0.9])).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0, 1.0])
