"""Results lie on the input's grid, exactly, and say what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from perfect import perfect_result
from scripts.bundle import declared
from scripts.images.mapping import AnomalyMapd
from scripts.images.pictures import picture_affine
from scripts.images.resizing import ResizeInPlaned
from scripts.images.restoring import LESION, NOT_ASSESSED, RestoreGridd
from scripts.method.slices import assessed_slices
from synthetic import GRIDS, head, write_head


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
    pixels = 2000  # of the networks' grid, so many that the head's outer slices have fewer
    d = perfect_result(item, min_area=pixels)
    brain = np.asarray(nib.load(item["foreground"]).dataobj) > 0
    area = brain.sum(axis=(0, 1))
    spacing = np.linalg.norm(nib.load(item["image"]).affine[:3, :2], axis=0)
    area = area * spacing.prod() / 2.4**2
    unseen = brain & (area < pixels)
    assert unseen.any() and not unseen[brain].all()
    mask, a = d["pred"][0].numpy(), d["anomaly_map"][0].numpy()
    np.testing.assert_array_equal(np.isnan(a), mask == NOT_ASSESSED)
    np.testing.assert_array_equal(mask == NOT_ASSESSED, unseen)
    for row in d["slices"]:
        seen = area[row["slice"]] >= pixels
        assert row["assessed"] == seen
        assert (row["score"] is None) == (not seen)
        assert row["p_diseased"] == (0.75 if seen else None)


def test_a_students_map_needs_no_counterfactual(tmp_path: Path) -> None:
    """Its probability is the map, dimmed by the gate, on the input's grid; no counterfactual is invented."""
    d = declared("preprocessing")(write_head(tmp_path, "oblique"))
    x = d["image"].as_tensor()
    assessed = assessed_slices(d["foreground"], 1)
    d["pred"] = {
        "student": (x > 0.5).float(),
        "assessed": assessed,
        "probability": torch.where(assessed, 0.25, torch.nan),
    }
    d = RestoreGridd("image", threshold=0.3)(AnomalyMapd("image", "both", 3)(d))
    assert "counterfactual" not in d and d["pred"].shape == d["input_image"].shape
    core = d["anomaly_map"][0] > 0.49
    assert core.any() and d["anomaly_map"].nan_to_num().max() == pytest.approx(0.5)
    np.testing.assert_array_equal(d["input_image"][0][core], 170)


def test_a_students_counterpart_stands_for_the_counterfactual(tmp_path: Path) -> None:
    """It heals all that is brighter than the median, at p(diseased) = 0.25 by half; its map is averaged with the student's."""
    d = declared("preprocessing")(write_head(tmp_path, "oblique"))
    x = d["image"].as_tensor()
    assessed = torch.ones(x.shape[-1], dtype=torch.bool)
    d["pred"] = {
        "student": torch.full_like(x, 0.1),
        "counterpart": x.clamp_max(0),
        "assessed": assessed,
        "probability": torch.full((x.shape[-1],), 0.25),
    }
    d = RestoreGridd("image", threshold=0.3)(AnomalyMapd("image", "both", 3)(d))
    core = d["input_image"][0] == 170
    assert core.any() and np.median(d["counterfactual"][0][core]) == pytest.approx(135, abs=1.5)
    # 70 % brighter than the median of 100: the mean of 0.7 and 0.1, dimmed by half
    assert np.median(d["anomaly_map"][0][core]) == pytest.approx(0.2, abs=0.01)


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


@pytest.mark.parametrize(
    ("p", "healthy"), [(1.0, (100, 200)), (0.5, (100, 200)), (0.125, (152.5, 305)), (0.0, (170, 340))]
)
def test_difference_is_in_the_inputs_units(p: float, healthy: tuple[float, float], tmp_path: Path) -> None:
    """Two channels of different scale each get their own counterfactual; the less is p(diseased), the less is healed."""
    item = write_head(tmp_path, channels=2)
    d = declared("preprocessing", num_channels=2)(item)
    x = d["image"].as_tensor()
    assessed = torch.ones(x.shape[-1], dtype=torch.bool)
    d["pred"] = {"counterfactual": x.clamp_max(0), "assessed": assessed, "probability": torch.full((x.shape[-1],), p)}
    d = RestoreGridd("image", threshold=0.3)(AnomalyMapd("image", "both", 3)(d))
    core = d["input_image"][0] == 170
    assert core.any()
    np.testing.assert_allclose(np.median(d["counterfactual"][0][core]), healthy[0], atol=1.5)
    np.testing.assert_allclose(np.median(d["counterfactual"][1][core]), healthy[1], atol=3)


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
