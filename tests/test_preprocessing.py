"""The preprocessing that inference.json declares, as a whole: exact geometry, one scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Orientation

from scripts.bundle import declared
from scripts.images.geometry import slice_numbers
from scripts.images.normalization import BACKGROUND
from synthetic import GRIDS, write_head


@pytest.mark.parametrize("grid", GRIDS)
def test_geometry_after_preprocessing(grid: str, tmp_path: Path) -> None:
    """The brain's centre of mass stays where it is in the world, at any spacing and orientation."""
    item = write_head(tmp_path, grid)
    d = declared("preprocessing")(item)
    image = d["image"]
    assert image.shape[1:3] == (72, 88)
    assert Orientation("LPS", labels=None)(image).affine.equal(image.affine)
    np.testing.assert_allclose(image.pixdim[:2], 2.4, atol=0.05)

    def centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        return nib.affines.apply_affine(affine, np.argwhere(mask).mean(axis=0))

    brain = nib.load(item["foreground"])
    before = centre(np.asarray(brain.dataobj) > 0, brain.affine)
    after = centre((image[0] > BACKGROUND).numpy(), image.affine.numpy())
    np.testing.assert_allclose(after, before, atol=1.2)
    lowest, highest = min(slice_numbers(image)), max(slice_numbers(image))
    # the file's axis nearest to superior-inferior; the outermost slices hold too little for a pixel of 2.4 mm
    axis = 0 if grid == "sagittal" else 2
    area = (np.asarray(brain.dataobj) > 0).sum(axis=tuple({0, 1, 2} - {axis}))
    used = np.flatnonzero(area > 20)
    assert (lowest, highest) == (used[0], used[-1])


def test_slice_numbers_count_along_the_files_axis(tmp_path: Path) -> None:
    d = declared("preprocessing")(write_head(tmp_path, "flipped"))
    assert slice_numbers(d["image"]) == sorted(slice_numbers(d["image"]), reverse=True)


def test_intensities_do_not_depend_on_the_scanners_scale(tmp_path: Path) -> None:
    item = write_head(tmp_path)
    scaled = write_head(tmp_path, name="scaled", dtype=np.float64)
    volume = nib.load(scaled["image"])
    nib.save(nib.Nifti1Image(volume.get_fdata() * 37.5, volume.affine), scaled["image"])
    a, b = (declared("preprocessing")(i)["image"] for i in (item, scaled))
    np.testing.assert_allclose(a, b, atol=1e-5)
    inside = a[a > BACKGROUND]
    assert float(inside.median()) == 0.0
    assert float(a.max()) == pytest.approx(0.7, abs=1e-5)
    assert b.meta["intensity_scale"].item() == pytest.approx(3750.0, rel=1e-5)


def test_foreground_mask_on_another_grid(tmp_path: Path) -> None:
    item = {**write_head(tmp_path, "plain"), "foreground": write_head(tmp_path, "flipped", name="other")["foreground"]}
    with pytest.raises(RuntimeError) as error:
        declared("preprocessing")(item)
    assert "another grid" in str(error.value.__cause__)


@pytest.mark.parametrize("spacing", [None, [1.7, 1.9, 6.0]])
def test_a_brain_mask_in_another_order_of_the_axes(spacing: Any, tmp_path: Path) -> None:
    """As its program wrote it, with the wrong voxel sizes of the image's header too: the same input of the networks."""
    item = write_head(tmp_path, "oblique") | ({"spacing": spacing} if spacing else {})
    expected = declared("preprocessing")(item)
    mask = nib.load(item["foreground"]).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(mask, tmp_path / "other.nii.gz")
    d = declared("preprocessing")({**item, "foreground": str(tmp_path / "other.nii.gz")})
    for key in ("image", "foreground", "input_foreground"):
        np.testing.assert_array_equal(d[key], expected[key])
        np.testing.assert_array_equal(d[key].affine, expected[key].affine)
