"""Results lie on the input's grid, exactly, and say what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.bundle import declared
from scripts.postprocessing import (
    LESION,
    NOT_ASSESSED,
    AnomalyMapd,
    RestoreGridd,
    anomaly_map,
    combined_map,
    gate,
    slice_score,
)
from scripts.preprocessing import BACKGROUND, assessed_slices
from synthetic import GRIDS, write_head


def perfect_result(item: dict[str, Any], threshold: float = 0.3) -> dict[Any, Any]:
    """What a perfect network would give: everything brighter than the median of the brain is brought back to it."""
    d = declared("preprocessing")(item)
    x = d["image"].as_tensor()
    d["pred"] = {
        "counterfactual": torch.where(x > BACKGROUND, x.clamp_max(0), x),
        "assessed": assessed_slices(x, 0.5),
        "probability": torch.where(assessed_slices(x, 0.5), 0.75, torch.nan),
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
    np.testing.assert_array_equal(healthy[image == 0], 0)
    core = lesion & (d["anomaly_map"][0].numpy() > 0.69)
    assert core.any()
    np.testing.assert_allclose(healthy[core], 100, atol=1.5)


def test_brain_that_was_not_assessed_is_marked(tmp_path: Path) -> None:
    item = write_head(tmp_path, "oblique")
    d = perfect_result(item)
    brain = np.asarray(nib.load(item["brain"]).dataobj) > 0
    area = brain.sum(axis=(0, 1))
    unseen = brain & (area < 0.5 * area.max())
    assert unseen.any()
    mask, a = d["pred"][0].numpy(), d["anomaly_map"][0].numpy()
    np.testing.assert_array_equal(np.isnan(a), mask == NOT_ASSESSED)
    agreement = ((mask == NOT_ASSESSED) & unseen).sum() / unseen.sum()
    assert agreement > 0.97
    assert not (mask[:, :, area >= 0.5 * area.max()] == NOT_ASSESSED).any()
    for row in d["slices"]:
        seen = area[row["slice"]] >= 0.5 * area.max()
        assert row["assessed"] == seen
        assert (row["score"] is None) == (not seen)
        assert row["p_diseased"] == (0.75 if seen else None)


def test_anomaly_map_known_numbers() -> None:
    x, healthy = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
    x[0, 0, 2, 2], healthy[0, 0, 0, 0], x[0, 1, 2, 2] = 0.5, 0.25, 0.125
    both = anomaly_map(x, healthy, "both", 1)
    bright = anomaly_map(x, healthy, "hyperintense", 1)
    assert both.sum() == 0.875 and both[0, 0, 2, 2] == 0.625 and both[0, 0, 0, 0] == 0.25
    assert bright.sum() == 0.625
    assert anomaly_map(x, healthy, "both", 3).sum() == 0.25 * 0  # single pixels don't survive the median
    with pytest.raises(ValueError, match="polarity"):
        anomaly_map(x, healthy, "hypointense", 1)


def test_the_hyperintense_map_is_a_geometric_mean_with_the_excess_over_healthy_tissue() -> None:
    """Healthy tissue is 0 and a fold 0.3; a change counts as far as it is bright, and a shifted dark rim not at all."""
    x, healthy = torch.full((1, 1, 3, 5), -1.0), torch.full((1, 1, 3, 5), -1.0)
    x[..., 1:] = healthy[..., 1:] = 0.0  # the first column is outside the brain and no part of the median
    x[0, 0, 0, 1], healthy[0, 0, 0, 1] = 0.9, 0.5  # brought back in part
    x[0, 0, 0, 2], healthy[0, 0, 0, 2] = -0.1, -0.5  # a rim
    x[0, 0, 0, 3], healthy[0, 0, 0, 3] = 0.3, 0.3  # a fold
    a = anomaly_map(x, healthy, "hyperintense", 1)
    expected = torch.zeros(1, 1, 3, 5)
    expected[0, 0, 0, 1] = (0.4 * 0.9) ** 0.5
    torch.testing.assert_close(a, expected)


def test_a_slice_without_brain_has_an_empty_map() -> None:
    x = torch.full((1, 1, 4, 4), -1.0)
    assert not anomaly_map(x, x, "hyperintense", 3).any()


def test_a_students_map_needs_no_counterfactual(tmp_path: Path) -> None:
    """Its probability is the map, dimmed by the gate, on the input's grid; no counterfactual is invented."""
    d = declared("preprocessing")(write_head(tmp_path, "oblique"))
    x = d["image"].as_tensor()
    assessed = assessed_slices(x, 0.5)
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
    torch.testing.assert_close(combined_map(x, found, "hyperintense", 1), expected)
    alone = {name: found[name] for name in ("counterfactual", "probability")}
    torch.testing.assert_close(combined_map(x, alone, "both", 1), torch.tensor([[[[0.25, 0.0], [0.0, 0.0]]]]))


def test_slice_score_known_number() -> None:
    a = torch.tensor([[[[0.5, 1.0], [9.0, 0.0]]]])
    brain = torch.tensor([[[[True, True], [False, True]]]])
    assert slice_score(a, brain, torch.tensor([0.5])).item() == pytest.approx(0.25)


def test_threshold_must_be_positive() -> None:
    with pytest.raises(ValueError, match="threshold must be above 0, got 0"):
        RestoreGridd("image", threshold=0)


def test_difference_is_in_the_inputs_units(tmp_path: Path) -> None:
    """Two channels of different scale each get their own counterfactual."""
    item = write_head(tmp_path, channels=2)
    d = declared("preprocessing", num_channels=2)(item)
    x = d["image"].as_tensor()
    assessed = torch.ones(x.shape[-1], dtype=torch.bool)
    d["pred"] = {"counterfactual": x.clamp_max(0), "assessed": assessed, "probability": torch.ones(x.shape[-1])}
    d = RestoreGridd("image", threshold=0.3)(AnomalyMapd("image")(d))
    assert isinstance(d["counterfactual"], MetaTensor)
    core = d["anomaly_map"][0] > 1.39
    assert core.any()
    np.testing.assert_allclose(d["counterfactual"][0][core], 100, atol=1.5)
    np.testing.assert_allclose(d["counterfactual"][1][core], 200, atol=3)


def test_the_gate_dims_slices_that_are_likely_healthy() -> None:
    assert gate(torch.tensor([0.0, 0.1, 0.5, 0.9])).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0, 1.0])
