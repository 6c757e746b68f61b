"""Augmentation of what scanners change."""

from __future__ import annotations

import torch
from monai.transforms import RandGaussianNoise, ScaleIntensity

from scripts.learning.augmenting import AsMagnitude
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
