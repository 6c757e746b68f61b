"""Foregrounds: exactly the voxels that each promises, on the grid of the image."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from scripts.images.foregrounds import NonZerod, WholeImaged
from scripts.images.loading import InvalidImageError, LoadVolumed
from scripts.images.network_foreground import ByNetworkd

AFFINE = np.diag([-0.5, -1.0, 3.0, 1.0])


def tensor(array: np.ndarray, affine: np.ndarray = AFFINE) -> MetaTensor:
    meta = {"filename_or_obj": "x.nii", "input_affine": torch.from_numpy(affine)}
    return MetaTensor(torch.from_numpy(array.astype(np.float32)), affine=torch.from_numpy(affine), meta=meta)


def ball(shape: tuple[int, ...], radius: float) -> np.ndarray:
    grids = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    return sum(g**2 for g in grids) <= radius**2


BRAIN = ball((40, 36, 20), 9)


def test_the_whole_image() -> None:
    image = tensor(np.zeros((2, 4, 5, 3)))
    foreground = WholeImaged("image")({"image": image})["foreground"]
    assert foreground.dtype == torch.uint8 and foreground.shape == (1, 4, 5, 3) and bool((foreground == 1).all())
    np.testing.assert_array_equal(foreground.affine, AFFINE)


@pytest.mark.parametrize("background", [0.0, -1.7, np.nan])
def test_a_stripped_brain_is_found_without_specks_and_with_its_holes(background: float) -> None:
    first = np.where(BRAIN, 1.0 + np.random.default_rng(0).random(BRAIN.shape), background)
    first[ball(BRAIN.shape, 2)] = background  # a hole
    first[1, 1, 1] = 5.0  # a speck
    second = first.copy()
    second[BRAIN & (np.arange(40) < 20)[:, None, None]] = background  # a channel that covers half of it
    found = NonZerod("image")({"image": tensor(np.stack([second, first]))})["foreground"]
    np.testing.assert_array_equal(found[0].numpy(), BRAIN)


def test_a_hole_of_a_single_slice_is_filled() -> None:
    disc = ball((40, 36, 1), 12)
    ring = disc & ~ball((40, 36, 1), 5)
    found = NonZerod("image")({"image": tensor(100.0 * ring[None])})["foreground"]
    np.testing.assert_array_equal(found[0].numpy(), disc)


def test_an_image_without_background_is_refused() -> None:
    with pytest.raises(InvalidImageError, match=r"x.nii: channel 0 has no background of one value around it"):
        NonZerod("image")({"image": tensor(np.random.default_rng(0).random((1, 20, 20, 3)))})
    with pytest.raises(InvalidImageError, match=r"x.nii: no foreground was found"):
        NonZerod("image")({"image": tensor(np.zeros((1, 20, 20, 3)))})


def test_a_given_mask_is_taken(tmp_path: Path) -> None:
    header = AFFINE @ np.diag([-1.0, 1, 1, 1])
    header[0, 3] = AFFINE[0, 0] * (BRAIN.shape[0] - 1)
    nib.save(nib.Nifti1Image(BRAIN[::-1].astype(np.uint8), header), tmp_path / "m.nii")
    image = tensor(np.ones((1, *BRAIN.shape)))
    for transform in (WholeImaged("image"), NonZerod("image")):
        found = transform({"image": image, "foreground": str(tmp_path / "m.nii")})["foreground"]
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found[0].numpy(), BRAIN)
    with pytest.raises(ValueError, match=r"m.nii: lies on another grid"):
        WholeImaged("image")({"image": tensor(np.ones((1, 40, 36, 19))), "foreground": str(tmp_path / "m.nii")})


def test_a_given_picture_is_a_mask_of_a_picture(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (40, 48)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "x.png")
    Image.fromarray((grey > 99).astype(np.uint8)).save(tmp_path / "m.png")
    d = LoadVolumed("image", modalities=["DX"])({"image": str(tmp_path / "x.png"), "spacing": [0.2, 0.4]})
    found = WholeImaged("image")({**d, "foreground": str(tmp_path / "m.png")})["foreground"]
    np.testing.assert_array_equal(found[0, :, :, 0].numpy().T, grey > 99)


class Bright(torch.nn.Module):
    """Logits of what is brighter than the middle between the percentiles 1 and 99."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(50.0))
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (1, 1, 32, 24)
        return self.weight * x if self.channels == 1 else torch.cat([-self.weight * x, self.weight * x], dim=1)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_network_marks_the_foreground_of_each_slice(channels: int) -> None:
    # twice the network's size, in blocks that its pixels resolve
    marked = np.zeros((64, 48, 2), bool)
    marked[10:30, 8:40, 0] = marked[20:50, 20:30, 1] = True
    image = tensor(np.stack([1000.0 * marked + 7, np.zeros(marked.shape)]))
    found = ByNetworkd("image", Bright(channels), (32, 24))({"image": image})["foreground"]
    np.testing.assert_array_equal(found[0].numpy(), marked)


def test_the_hull_and_the_dilation_of_what_a_network_marks() -> None:
    """Each lung without the gaps that a vessel leaves, and nothing of what lies between the two."""
    lungs = np.zeros((64, 48, 1), bool)
    lungs[4:20, 10:40] = lungs[44:60, 10:40] = True
    expected = lungs[..., 0].copy()
    lungs[12:20, 20:24] = lungs[44:52, 20:24] = False
    image = tensor(1000.0 * lungs[None])
    hull = ByNetworkd("image", Bright(1), (32, 24), convex_hull=True)({"image": image})["foreground"]
    np.testing.assert_array_equal(hull[0, ..., 0].numpy(), expected)
    # the longer side is 48 mm: a sixteenth are 3 mm, 6 pixels of 0.5 mm and 3 of 1 mm
    wide = ByNetworkd("image", Bright(1), (32, 24), convex_hull=True, dilation=0.0625)({"image": image})["foreground"]
    found = wide[0, ..., 0].numpy()
    assert np.flatnonzero(found[:, 24]).tolist() == [*range(0, 26), *range(38, 64)]
    assert np.flatnonzero(found[10]).tolist() == list(range(7, 43))
    assert not found[25, 7]  # corners are round


def test_two_lungs_are_kept_and_extended_to_the_feet() -> None:
    """Both as low as the lower one and more, as fluid may hide the base of the other."""
    lungs = np.zeros((64, 48, 1), bool)
    lungs[10:20, 8:28] = lungs[40:50, 8:20] = lungs[56:60, 40:44] = True
    found = ByNetworkd("image", Bright(1), (32, 24), parts=2, below=0.5)({"image": tensor(1000.0 * lungs[None])})
    expected = np.zeros((64, 48), bool)
    expected[10:20, 8:38] = expected[40:50, 8:38] = True
    np.testing.assert_array_equal(found["foreground"][0, ..., 0].numpy(), expected)
    # to the image's border at most
    found = ByNetworkd("image", Bright(1), (32, 24), parts=2, below=1.0)({"image": tensor(1000.0 * lungs[None])})
    assert np.flatnonzero(found["foreground"][0, 15, :, 0]).tolist() == list(range(8, 48))


def test_a_region_of_interest_beside_the_foreground() -> None:
    marked = np.zeros((64, 48, 1), bool)
    marked[10:30, 8:40] = True
    data = WholeImaged("image")({"image": tensor(1000.0 * marked[None])})
    found = ByNetworkd("image", Bright(1), (32, 24), name="roi")(data)
    assert np.array_equal(found["roi"][0].numpy(), marked) and bool(found["foreground"].all())


def test_nothing_marked_is_refused() -> None:
    network = Bright(1)
    with pytest.raises(InvalidImageError, match=r"x.nii: no roi was found"):
        ByNetworkd("image", network, (32, 24), name="roi")({"image": tensor(np.zeros((1, 64, 48, 1)))})
    with pytest.raises(InvalidImageError, match=r"x.nii: no foreground was found"):
        ByNetworkd("image", network, (32, 24))({"image": tensor(np.zeros((1, 64, 48, 1)))})
    with pytest.raises(ValueError, match=r"dilation must be from 0 to 1, got 5"):
        ByNetworkd("image", network, (32, 24), dilation=5)
