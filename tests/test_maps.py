"""From what the networks found to maps and scores, by known numbers."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from scripts.images.mapping import AnomalyMapd
from scripts.images.normalization import BACKGROUND
from scripts.method.maps import anomaly_map, combined_map, gate, slice_score


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
    assert anomaly_map(x, healthy, inside, ["ignored", "both"], 1).sum() == 0.25
    assert not anomaly_map(x, healthy, inside, "ignored", 1).any()


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


def test_the_map_is_the_mean_of_counterfactual_counterpart_and_student() -> None:
    """(0.5 + 0.9) / 2 in the lesion, 0.9 / 2 where only the student sees something; halved by p = 0.25, 0 outside.

    A counterpart that heals half of the lesion adds a third map, of 0.25 there.
    """
    x, healthy = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0], x[0, 0, 1, 1], healthy[0, 0, 1, 1] = 0.5, -1, -1
    student = torch.tensor([[[[0.9, 0.9], [0.0, 1.0]]]])
    found = {"counterfactual": healthy, "student": student, "probability": torch.tensor([0.25])}
    expected = torch.tensor([[[[0.35, 0.225], [0.0, 0.0]]]])
    torch.testing.assert_close(combined_map(x, found, x[:, :1] > BACKGROUND, "hyperintense", 1), expected)
    third = found | {"counterpart": torch.tensor([[[[0.25, 0.0], [0.0, -1.0]]]])}
    expected = torch.tensor([[[[0.275, 0.15], [0.0, 0.0]]]])
    torch.testing.assert_close(combined_map(x, third, x[:, :1] > BACKGROUND, "both", 1), expected)
    alone = {name: found[name] for name in ("counterfactual", "probability")}
    torch.testing.assert_close(
        combined_map(x, alone, x[:, :1] > BACKGROUND, "both", 1), torch.tensor([[[[0.25, 0.0], [0.0, 0.0]]]])
    )


def test_slice_score_known_number() -> None:
    a = torch.tensor([[[[0.5, 1.0], [9.0, 0.0]]]])
    brain = torch.tensor([[[[True, True], [False, True]]]])
    assert slice_score(a, brain, torch.tensor([0.5])).item() == pytest.approx(0.25)


def test_refuses_polarity_and_median_size_before_the_networks_run() -> None:
    with pytest.raises(ValueError, match="polarity must be 'both', .* 'ignored', or .*, got 'dark'"):
        AnomalyMapd("image", polarity="dark", median_size=3)
    for size in (0, -3, 4, 101, 3.0, "3", float("nan"), True):
        with pytest.raises(ValueError, match="median_size must be .*from 1 to 99, got"):
            AnomalyMapd("image", "both", median_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["counterfactual", "counterpart", "student", "probability"])
@pytest.mark.parametrize("polarity", ["both", "hyperintense"])
def test_findings_that_are_no_numbers_are_an_error_and_no_empty_result(name: str, polarity: str, value: float) -> None:
    """One of three assessed slices came back so: no score of null beside "assessed". Another is not looked at."""
    x = torch.zeros(1, 4, 4, 4)
    pred = {found: x.clone() for found in ("counterfactual", "counterpart", "student")}
    pred |= {"probability": torch.full((4,), 0.5), "assessed": torch.tensor([True] * 3 + [False])}
    pred[name][..., [1, 3]] = value
    image = MetaTensor(x, affine=torch.eye(4), meta={"filename_or_obj": "a.nii", "input_affine": torch.eye(4).double()})
    with pytest.raises(ValueError, match="a.nii: the networks gave NaN or infinity in 1 of 3 assessed slices"):
        AnomalyMapd("image", polarity, 3)({"image": image, "foreground": torch.ones(1, 4, 4, 4), "pred": pred})


def test_the_gate_dims_slices_that_are_likely_healthy() -> None:
    assert gate(torch.tensor([0.0, 0.1, 0.5, 0.9])).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0, 1.0])
