"""Baselines of radiographs with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder

from scripts import DISEASED
from scripts.judging.radiograph_baselines import AboveHealthyMean, LowestThird
from scripts.judging.saliency import ClassActivation


class Slices:
    """Two healthy slices, of 0 and of 0.5, and a diseased one."""

    labels = [0, 1, 0]

    def __getitem__(self, drawn: int) -> dict[str, Any]:
        return {"image": torch.full((1, 4, 6), (0.0, 9.0, 0.5)[drawn])}


def test_above_the_mean_of_healthy_slices() -> None:
    image, inside = np.zeros((1, 4, 6, 1), np.float32), np.ones((4, 6, 1), bool)
    image[0, 1, 2], image[0, 0, 0], inside[0] = 1.0, 1.0, False
    a = AboveHealthyMean(Slices())(image, inside)
    expected = np.zeros((4, 6, 1), np.float32)
    expected[1, 2] = 0.75
    assert a.dtype == np.float32 and np.allclose(a, expected)
    only_diseased = Slices()
    only_diseased.labels = [1, 1]
    with pytest.raises(ValueError, match="no training slice is labelled healthy"):
        AboveHealthyMean(only_diseased)


def test_the_lowest_third_of_what_is_looked_at() -> None:
    """Of rows 1 to 9, 7 to 9, whose last is towards the feet; a slice without foreground has none."""
    inside = np.zeros((5, 12, 2), bool)
    inside[1:4, 1:10, 0] = True
    a = LowestThird()(np.zeros((1, 5, 12, 2)), inside)
    assert np.array_equal(np.argwhere(a), [[x, y, 0] for x in (1, 2, 3) for y in (7, 8, 9)]) and a.max() == 1


def test_grad_cam_points_at_what_makes_the_classifier_say_diseased() -> None:
    """A classifier whose last block but one passes on brightness, and which says diseased the brighter a slice is."""
    torch.manual_seed(0)
    network = DiffusionModelEncoder(
        2,
        1,
        2,
        input_shape=(32, 32),
        channels=(8, 8, 8),
        attention_levels=(False,) * 3,
        num_res_blocks=1,
        norm_num_groups=4,
    ).eval()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    draw = np.random.default_rng(0)
    for _ in range(60):
        x, labels = torch.full((16, 1, 32, 32), -1.0) + 0.1 * torch.randn(16, 1, 32, 32), torch.arange(16) % 2
        for n in torch.nonzero(labels == DISEASED).flatten():
            i, j = draw.integers(0, 24, 2)
            x[n, 0, i : i + 8, j : j + 8] = 1.0
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x, torch.zeros(16, dtype=torch.long)), labels).backward()
        optimizer.step()
    image, inside = np.full((1, 32, 32, 2), -1.0, np.float32), np.ones((32, 32, 2), bool)
    image[0, 4:12, 20:28, 0], inside[16:] = 1.0, False
    with torch.no_grad():  # as evaluation calls it
        a = ClassActivation(network)(image, inside)
    assert a.shape == (32, 32, 2) and a.min() == 0 and not a[16:].any()
    assert a[2:14, 18:30, 0].mean() > 2 * a[..., 0].mean()
