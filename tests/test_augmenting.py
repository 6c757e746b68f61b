"""Augmentation of what scanners change."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import RandGaussianNoise, ScaleIntensity

from scripts.learning.augmenting import AsMagnitude, RandSyntheticLesionsd
from scripts.learning.seeding import augmented


def test_transforms_see_magnitudes_and_the_background_stays() -> None:
    x = torch.tensor([[[-1.0, -0.5], [0.0, 1.0]]])
    halved = AsMagnitude("image", [lambda magnitude: magnitude / 2])({"image": x})["image"]
    assert halved.tolist() == [[[-1, -0.75], [-0.5, 0]]]
    noisy = AsMagnitude("image", [ScaleIntensity(5, 6)])({"image": x})["image"]
    assert noisy.tolist() == [[[-1, 1], [1, 1]]]


def test_a_draw_depends_on_its_number_alone() -> None:
    x = torch.zeros(1, 8, 8)
    augmentation = AsMagnitude("image", [RandGaussianNoise(prob=1, std=0.1)])
    first, second, again = (augmented({"image": x}, augmentation, 0, n)["image"] for n in (0, 1, 0))
    assert first.equal(again) and not first.equal(second) and first.std() > 0


def slice_with_lesson(channels: int = 1) -> dict[str, torch.Tensor]:
    """A slice of uneven tissue on no signal, in whose lesson nothing is marked and all is healthy."""
    x = torch.full((channels, 40, 48), -1.0)
    x[:, 6:34, 8:40] = torch.rand(channels, 28, 32, generator=torch.Generator().manual_seed(0)) / 2 - 0.25
    return {"image": x, "label": torch.cat([torch.zeros(1, 40, 48), x])}


def test_synthetic_lesions_are_marked_and_their_counterpart_is_the_slice_without() -> None:
    """Marked is what became brighter by more than .08, within the foreground; nothing becomes darker."""
    given = slice_with_lesson()
    before = {key: value.clone() for key, value in given.items()}
    spots = RandSyntheticLesionsd(["image", "label"], "hyperintense", prob=1).set_random_state(0)
    sizes = []
    for _ in range(40):
        new = spots(given)
        brighter = (new["image"] - given["image"])[0]
        marked = new["label"][0] > 0
        assert torch.equal(new["label"][1:], given["image"]) and set(new["label"][0].unique().tolist()) <= {0, 1}
        assert brighter.min() >= 0 and bool((brighter[given["image"][0] == -1] == 0).all()) and new["image"].max() <= 1
        # what several spots share may be above in sum alone
        assert bool((brighter[marked] > 0.08).all())
        sizes.append(int(marked.sum()))
    assert all(torch.equal(given[key], before[key]) for key in before)
    assert len(set(sizes)) > 20 and 0 < sum(sizes) / 40 < 0.4 * 28 * 32
    again = RandSyntheticLesionsd(["image", "label"], "hyperintense", prob=1).set_random_state(0)
    assert int((again(given)["label"][0] > 0).sum()) == sizes[0]
    some = RandSyntheticLesionsd(["image", "label"], "hyperintense").set_random_state(0)
    assert 30 < sum(some(given)["image"] is given["image"] for _ in range(100)) < 70


@pytest.mark.parametrize(("channels", "polarity"), [(1, "both"), (1, "hypointense"), (2, "hyperintense")])
def test_no_lesion_is_made_where_it_is_not_known_how_it_looks(channels: int, polarity: str) -> None:
    given = slice_with_lesson(channels)
    assert RandSyntheticLesionsd(["image", "label"], polarity, prob=1)(given)["image"] is given["image"]


def test_a_slice_with_a_lesion_or_without_foreground_gets_none() -> None:
    spots = RandSyntheticLesionsd(["image", "label"], "hyperintense", prob=1)
    given = slice_with_lesson()
    given["label"][0, 20, 20] = 1 / 3
    assert spots(given)["image"] is given["image"]
    empty = {"image": torch.full((1, 40, 48), -1.0), "label": torch.zeros(2, 40, 48)}
    assert spots(empty)["image"] is empty["image"]
