"""The networks' scale and grid: normalised by the median, cropped around the foreground."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from scripts.images.cropping import CropAroundForegroundd
from scripts.images.loading import InvalidImageError
from scripts.images.normalization import BACKGROUND, NormalizeByMediand


@pytest.mark.parametrize("size", [(72,), (72, 88, 3), (72, 0), (72, 88.5), ("72", "88"), (float("nan"), 88)])
def test_refuses_spatial_size(size: Any) -> None:
    with pytest.raises(ValueError, match=r"spatial_size must be .*two whole numbers from 1 to 4096, got"):
        CropAroundForegroundd("image", size)


def test_negative_median_and_tiny_brain_are_refused() -> None:
    image = MetaTensor(torch.full((1, 40, 40, 2), -5.0), affine=torch.eye(4), meta={"filename_or_obj": "a.nii"})
    brain = MetaTensor(torch.ones(1, 40, 40, 2), affine=torch.eye(4), meta={"filename_or_obj": "a.nii"})
    with pytest.raises(InvalidImageError, match="a.nii: the median"):
        NormalizeByMediand("image")({"image": image, "foreground": brain})
    brain[:, 5:] = 0
    brain[:, :, 5:] = 0
    with pytest.raises(InvalidImageError, match="covers only 5 x 5"):
        CropAroundForegroundd(["image", "foreground"], (72, 88))({"image": image, "foreground": brain})


def test_a_foreground_pixel_without_signal_is_minus_one_as_the_outside() -> None:
    """The foreground beside the image tells the two apart."""
    image = torch.full((1, 4, 4, 1), 10.0)
    image[0, 1, 1, 0] = 0.0
    brain = torch.ones(1, 4, 4, 1)
    brain[0, 0] = 0
    d = {
        k: MetaTensor(v, affine=torch.eye(4), meta={"filename_or_obj": "a"})
        for k, v in (("image", image), ("foreground", brain))
    }
    out = NormalizeByMediand("image")(d)["image"].as_tensor()
    assert torch.equal(out > BACKGROUND, (brain > 0) & (image > 0)) and out.max() == 0


def test_each_channel_has_its_own_multiple_of_the_median() -> None:
    """A median of 10 and values of 30: 2 medians at 1 clips them, 3 medians at 1 does not, and the scale undoes it."""
    image = torch.full((2, 4, 4, 1), 10.0)
    image[:, 1, 1, 0] = 30.0
    d = {
        k: MetaTensor(v, affine=torch.eye(4), meta={"filename_or_obj": "a"})
        for k, v in (("image", image), ("foreground", torch.ones(1, 4, 4, 1)))
    }
    out = NormalizeByMediand("image", highest=[2, 4])(d)["image"]
    assert out[:, 0, 0, 0].tolist() == [0, -0.5] and out[:, 1, 1, 0].tolist() == [1, 0.5]
    back = (out.as_tensor() + 1) * out.meta["intensity_scale"][:, None, None, None]
    assert back[1].equal(image[1])
    with pytest.raises(ValueError, match="highest must be one number, or one for each of 2 channels"):
        NormalizeByMediand("image", highest=[2, 2, 2])(d)
    with pytest.raises(ValueError, match="highest must be"):
        NormalizeByMediand("image", highest=0.5)
