"""The light network that finds the brain, and HD-BET in its place where it is in doubt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from scripts.bundle import bundle_root, declared
from scripts.images.brain import ExtractBraind
from scripts.images.brain_network import BRIGHTEST, LEAST, LEVEL, LONGEST, BrainNetwork, as_input, by_network
from scripts.judging.sums import dice
from whole_head import BRAIN, HEAD

PIXDIM = [2.0, 2.0, 5.0]
SAMPLE = Path(bundle_root()) / "sample" / "TCGA_FG_6692_flair.nii.gz"


class Marks(torch.nn.Module):
    """In the place of the network: what a function says, in logits."""

    def __init__(self, mark: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.mark = mark
        self.sizes: list[torch.Size] = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(x.shape)
        return self.mark(x)


def bright(x: torch.Tensor) -> torch.Tensor:
    return x - 0.7


def left_alone(x: torch.Tensor) -> torch.Tensor:
    marked = bright(x)
    marked[:, :, x.shape[2] // 2 :].clamp_(max=LEVEL - 0.1)
    return marked


def head(array: np.ndarray = 1000.0 * BRAIN + 1.0) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))[None]


def test_the_input_is_scaled_by_the_head_and_padded_with_air() -> None:
    x = torch.zeros(1, 1, 99, 33, 8)
    x[:, :, 10:30, 10:20] = 500
    x[0, 0, 15, 15, 4] = 1e6
    for scale in (1.0, 0.01):
        y = as_input(scale * x.clamp(max=500))
        assert y.shape == (1, 1, 100, 96, 32) and y[0, 0, 12, 12, 4] == pytest.approx(1)
        assert not y[..., 8:].any() and not y[:, :, :, 33:].any()
    assert as_input(x).max() == BRIGHTEST


def test_neighbours_are_channels_and_come_back_in_their_places() -> None:
    network = BrainNetwork([4, 4, 4, 4, 4, 4]).eval()
    network.unet = torch.nn.Identity()
    x = torch.rand(1, 1, 32, 36, 34)
    assert torch.equal(network(x), x)
    with pytest.raises(ValueError, match="one volume at a time, .* got 2"):
        network(x.expand(2, -1, -1, -1, -1))


def test_what_is_found_lies_where_it_is_on_every_grid() -> None:
    """Thick slices, another voxel size, few slices and one: the mask has the image's grid and the brain's place."""
    found = by_network(head(), PIXDIM, Marks(bright), "float32")
    truth = torch.from_numpy(BRAIN)[None]
    assert found.mask.dtype == torch.bool and found.doubt is None
    assert dice(found.mask, truth) > 0.985 and found.agreement == pytest.approx(1, abs=2e-3) and found.whole == 1
    finer = by_network(head().repeat_interleave(2, 1), [1.0, 2.0, 5.0], Marks(bright), "float32")
    assert dice(finer.mask[:, ::2], found.mask) > 0.985
    for slices in (slice(12, 13), slice(10, 15)):
        network = Marks(bright)
        few = by_network(head()[..., slices], PIXDIM, network, "float32")
        assert few.mask.shape == head()[..., slices].shape and dice(few.mask, truth[..., slices]) > 0.98
        assert [s[4] for s in network.sizes] == [LEAST[2]] * 2


def test_the_mirror_image_has_the_mirrored_brain() -> None:
    volume = head(HEAD)
    network: Any = declared("foreground#network")
    one, other = (by_network(v, PIXDIM, network, "float32") for v in (volume, volume.flip(1)))
    assert dice(one.mask.flip(1), other.mask) > 0.99
    assert torch.equal(one.mask, by_network(volume, PIXDIM, network, "float32").mask)


def test_the_samples_brain_is_that_of_hd_bet_but_for_its_rim() -> None:
    """HD-BET gives 1596 ml."""
    steps: Any = declared("preprocessing")
    image = Compose(steps.transforms[:4])({"image": str(SAMPLE)})["image"]
    found = by_network(image.as_tensor(), image.pixdim.tolist(), declared("foreground#network"), "float32")
    assert found.doubt is None and found.agreement > 0.985
    assert float(found.mask.sum()) * image.pixdim.prod().item() / 1000 == pytest.approx(1596, rel=0.02)


@pytest.mark.parametrize(
    ("mark", "scale", "doubt"),
    [
        (left_alone, 1.0, "mirror image"),
        (lambda x: x - 1e9, 1.0, "so small or so large"),
        (bright, 0.6, "so small or so large"),
        (bright, 1.4, "so small or so large"),
        (bright, 3.0, "so small or so large"),
    ],
)
def test_what_can_be_no_brain_is_doubted(mark: Any, scale: float, doubt: str) -> None:
    network = Marks(mark)
    found = by_network(head(), [scale * n for n in PIXDIM], network, "float32")
    assert found.doubt is not None and doubt in found.doubt
    longest = scale * max(n * s for n, s in zip(BRAIN.shape, PIXDIM, strict=True))
    assert bool(network.sizes) == (longest < LONGEST)


def test_several_pieces_are_doubted_and_the_largest_is_kept() -> None:
    array = 1000.0 * BRAIN
    array[:4, :60] = array[-4:, :60] = 1000
    found = by_network(head(array), PIXDIM, Marks(bright), "float32")
    assert found.doubt is not None and "several pieces" in found.doubt and 0.8 < found.whole < 0.98
    assert not found.mask[0, :4].any() and dice(found.mask, torch.from_numpy(BRAIN)[None]) > 0.98


def test_hd_bet_is_asked_in_doubt_and_only_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def hd_bet(volume: torch.Tensor, *_: Any) -> torch.Tensor:
        asked.append(volume)
        return torch.ones_like(volume, dtype=torch.bool)

    monkeypatch.setattr("scripts.images.brain.by_hd_bet", hd_bet)
    affine = torch.diag(torch.tensor([-2.0, -2.0, 5.0, 1.0]))
    image = MetaTensor(head(), affine=affine, meta={"filename_or_obj": "a.nii"})
    with caplog.at_level(logging.INFO):
        sure = ExtractBraind("image", network=Marks(bright), precision="float32")._segment(image)
        assert not asked and not caplog.records and 1000 < float(sure.sum()) * 0.02 < 1500
        doubted = ExtractBraind("image", network=Marks(left_alone), precision="float32")._segment(image)
    assert len(asked) == 1 and bool(doubted.all())
    [record] = caplog.records
    assert record.getMessage().startswith(
        "a.nii: HD-BET is asked for the brain, as the light network finds another brain"
    )
    ExtractBraind("image", precision="float32")._segment(image)
    assert len(asked) == 2


def test_a_kept_brain_is_that_of_the_network_in_use(tmp_path: Any) -> None:
    affine = torch.diag(torch.tensor([-2.0, -2.0, 5.0, 1.0]))
    image = MetaTensor(head(), affine=affine, meta={"filename_or_obj": "a.nii"})
    networks = [Marks(bright), Marks(bright), Marks(bright)]
    torch.nn.init.ones_(networks[2].weight)
    for network in networks:
        ExtractBraind("image", network=network, precision="float32", cache_dir=str(tmp_path))._cached(image)
    assert [len(n.sizes) for n in networks] == [2, 0, 2]
