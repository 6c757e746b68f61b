"""Pictures on the networks' grid and scale: known geometry, proportions and percentiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.images.geometry import to_grid
from scripts.images.loading import InvalidImageError
from scripts.images.percentiles import NormalizePercentilesd
from scripts.images.resizing import ResizeInPlaned


def item(array: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> dict[str, Any]:
    affine = torch.diag(torch.tensor([-spacing[0], -spacing[1], 1.0, 1.0], dtype=torch.float64))
    meta = {"filename_or_obj": "x.png", "input_affine": affine}
    image = MetaTensor(torch.from_numpy(array.astype(np.float32)), affine=affine, meta=meta)
    inside = MetaTensor(torch.ones(1, *array.shape[1:], dtype=torch.uint8), affine=affine)
    return {"image": image, "foreground": inside}


@pytest.mark.parametrize(
    ("shape", "spacing", "fitting"),
    [
        ((200, 100), (1.0, 1.0), (64, 32)),
        ((100, 200), (1.0, 1.0), (32, 64)),
        ((100, 100), (0.5, 1.0), (32, 64)),  # pixels that are no squares
        ((101, 77), (0.2, 0.2), (64, 49)),
        ((16, 8), (1.0, 1.0), (64, 32)),
    ],
)
def test_the_whole_picture_fits_and_lies_where_it_was(
    shape: tuple[int, int], spacing: tuple[float, float], fitting: tuple[int, int]
) -> None:
    """A plane in the world stays one: each new pixel has the value that its place in the world had."""
    x, y = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    world = -x * spacing[0] + 2 * -y * spacing[1]
    d = ResizeInPlaned(["image", "foreground"], (64, 64))(item(world[None, ..., None], spacing))
    image, inside = d["image"], d["foreground"][0, ..., 0]
    assert image.shape == (1, 64, 64, 1)
    assert tuple(int(n) for n in (inside.sum(0).max(), inside.sum(1).max())) == fitting
    np.testing.assert_allclose(inside.sum(), fitting[0] * fitting[1])
    assert bool((image[0, ..., 0][inside == 0] == -1).all())
    i, j = (inside > 0).nonzero(as_tuple=True)
    corner = torch.stack([i, j, torch.zeros_like(i), torch.ones_like(i)]).double()
    place = torch.as_tensor(image.affine, dtype=torch.float64) @ corner
    expected = (place[0] + 2 * place[1]).numpy()
    # beyond the border there is nothing to interpolate with
    middle = (i > i.min() + 2) & (i < i.max() - 2) & (j > j.min() + 2) & (j < j.max() - 2)
    tolerance = 1e-4 * np.abs(world).max()
    np.testing.assert_allclose(image[0, i, j, 0].numpy()[middle], expected[middle], atol=tolerance)
    # proportions: pixels are squares, but for the rounding to whole ones
    sizes = image.pixdim[:2]
    assert abs(float(sizes[0] / sizes[1]) - 1) <= 0.5 / min(fitting)
    # centred, the edges of the picture where they were
    assert abs(int(i.min()) - (63 - int(i.max()))) <= 1 and abs(int(j.min()) - (63 - int(j.max()))) <= 1
    edge = torch.as_tensor(image.affine) @ torch.tensor([i.min() - 0.5, j.min() - 0.5, 0, 1], dtype=torch.float64)
    np.testing.assert_allclose(edge[:2], [0.5 * spacing[0], 0.5 * spacing[1]], atol=1e-6)


def test_making_smaller_is_anti_aliased_and_the_way_back_is_exact() -> None:
    stripes = np.zeros((256, 256))
    stripes[::2] = 1.0
    d = item(stripes[None, ..., None])
    small = ResizeInPlaned(["image", "foreground"], (64, 64))(d)["image"]
    np.testing.assert_allclose(small[..., 1:-1, :, :].numpy(), 0.5, atol=1e-6)
    block = np.zeros((256, 128))
    block[64:128, 32:64] = 1
    d = item(block[None, ..., None])
    small = ResizeInPlaned(["image", "foreground"], (64, 64))(d)["image"]
    back = to_grid(small, small.affine, d["image"].affine, (256, 128, 1))[0, ..., 0].numpy()
    wrong = np.argwhere((back > 0.5) != (block > 0)).tolist()
    assert wrong == [[64, 32], [64, 63], [127, 32], [127, 63]]  # corners become round


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="spatial_size must be two whole numbers"):
        ResizeInPlaned("image", (64, 64, 64))
    with pytest.raises(ValueError, match="spatial_size must be a whole number"):
        ResizeInPlaned("image", (64, 64.5))  # type: ignore[arg-type]


def test_percentiles_within_the_foreground_come_to_the_ends_of_the_scale() -> None:
    values = np.arange(101.0).repeat(2).reshape(1, 101, 2, 1)
    d = item(np.concatenate([values, 1000 - 10 * values]))
    d["image"][:, :, 1] = 9999.0  # outside
    d["foreground"][:, :, 1] = 0
    d = NormalizePercentilesd("image", lower=10, upper=90)(d)
    image = d["image"]
    assert image.meta["intensity_offset"].tolist() == [50.0, 500.0]
    assert image.meta["intensity_scale"].tolist() == [40.0, 400.0]
    inside = image[:, :, 0, 0].numpy()
    np.testing.assert_allclose(inside[0], np.clip((np.arange(101) - 50) / 40, -1, 1), atol=1e-6)
    np.testing.assert_allclose(inside[1], -inside[0], atol=1e-6)
    assert bool((image[:, :, 1] == 1).all())
    back = inside[0] * 40 + 50
    np.testing.assert_allclose(back[10:91], np.arange(10, 91), atol=1e-4)


def test_what_has_no_scale_is_refused() -> None:
    flat = np.zeros((1, 10, 10, 1))
    with pytest.raises(InvalidImageError, match=r"x.png: from percentile 1 to 99 the foreground has the one value 0"):
        NormalizePercentilesd("image")(item(flat))
    flat[0, 3] = np.nan
    with pytest.raises(InvalidImageError, match=r"x.png: within the foreground pixels are NaN"):
        NormalizePercentilesd("image")(item(flat))
    d = item(flat)
    d["foreground"] *= 0
    with pytest.raises(InvalidImageError, match=r"x.png: no foreground is left"):
        NormalizePercentilesd("image")(d)
    with pytest.raises(ValueError, match="upper must be from 50 to 100, got 20"):
        NormalizePercentilesd("image", 50, 20)
