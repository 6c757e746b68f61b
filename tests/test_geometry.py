"""Masks by their own affine: in any order of the axes they mark the same voxels, on another grid they are refused."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from PIL import ExifTags, Image
from scipy.spatial.transform import Rotation

from scripts.images.geometry import axial, axial_index, difference, slice_axis, slice_numbers
from scripts.images.loading import LoadVolumed
from scripts.images.masks import load_mask, reordered
from synthetic import GRIDS, head, write_head

ORDERS = [
    np.array(list(zip(axes, signs, strict=True)))
    for axes in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def write_lesion(path: Path, grid: str, order: Any = None) -> np.ndarray:
    """The lesion of a head, stored in another order of the axes if one is given; as it is in the image's."""
    image, _ = head(GRIDS[grid][0])
    mask = image == 170
    mask[..., : mask.shape[2] // 2] = False  # no axis is symmetric
    stored = nib.Nifti1Image(mask.astype(np.uint8), GRIDS[grid][1])
    nib.save(stored if order is None else stored.as_reoriented(order), path)
    return mask


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(f"{int(s * (a + 1)):+d}" for a, s in order))
@pytest.mark.parametrize("grid", ["oblique", "one slice"])
def test_a_mask_in_any_order_of_the_axes_marks_the_same_voxels(grid: str, order: Any, tmp_path: Path) -> None:
    expected = write_lesion(tmp_path / "mask.nii.gz", grid, order)
    image = LoadVolumed("image")({"image": write_head(tmp_path, grid)["image"]})["image"]
    mask = load_mask(tmp_path / "mask.nii.gz", image)
    assert mask.dtype == torch.bool and expected.any()
    np.testing.assert_array_equal(mask[0], expected)
    np.testing.assert_array_equal(mask.affine, image.affine)
    # and of an image that was itself brought into another order
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.nii.gz", axial(image)), axial(mask))


@pytest.mark.parametrize("grid", ["anisotropic", "flipped", "sagittal", "one slice"])
def test_a_mask_that_itk_writes_as_nrrd(grid: str, tmp_path: Path) -> None:
    expected = write_lesion(tmp_path / "mask.nii.gz", grid)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz")), str(tmp_path / "mask.nrrd"))
    image = LoadVolumed("image")({"image": write_head(tmp_path, grid)["image"]})["image"]
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.nrrd", image)[0], expected)


@pytest.mark.parametrize("order", [None, ORDERS[1], ORDERS[13], ORDERS[42]])
def test_a_mask_whose_voxel_sizes_are_as_wrong_as_the_images(order: Any, tmp_path: Path) -> None:
    """The item's spacing replaces the image's; its mask may keep the header's, or have the true ones already."""
    expected = write_lesion(tmp_path / "mask.nii.gz", "oblique", order)
    item = {"image": write_head(tmp_path, "oblique")["image"], "spacing": [1.0, 1.5, 6.5]}
    image = LoadVolumed("image")(item)["image"]
    for like in (image, axial(image)):
        mask = load_mask(tmp_path / "mask.nii.gz", like)
        np.testing.assert_array_equal(
            mask,
            axial(MetaTensor(torch.tensor(expected[None]), affine=image.affine))
            if like is not image
            else expected[None],
        )
        np.testing.assert_array_equal(mask.affine, like.affine)
    true = nib.Nifti1Image(expected.astype(np.uint8), image.affine.numpy())
    nib.save(true if order is None else true.as_reoriented(order), tmp_path / "true.nii.gz")
    np.testing.assert_array_equal(load_mask(tmp_path / "true.nii.gz", image)[0], expected)


def test_slices_of_a_file_lie_where_they_are_counted_however_it_is_turned() -> None:
    """By any rotation, with voxels of any size: a slice's number leads back to it, and its label is that of its lesion."""
    random = np.random.default_rng(0)
    for rotation in Rotation.random(300, random_state=0).as_matrix():
        affine = nib.affines.from_matvec(rotation @ np.diag(random.uniform(0.5, 6, 3)), random.uniform(-90, 90, 3))
        marked = np.zeros((4, 5, 6), bool)
        marked[tuple(random.integers(0, (4, 5, 6)))] = True
        image = MetaTensor(
            torch.from_numpy(marked)[None], affine=affine, meta={"input_affine": torch.from_numpy(affine)}
        )
        ours = axial(image)
        depth = ours.shape[3]
        numbers = slice_numbers(ours)
        assert [axial_index(n, image.affine, depth) for n in numbers] == list(range(depth))
        [z] = np.flatnonzero(ours.numpy().any(axis=(0, 1, 2)))
        axis, _ = slice_axis(affine)
        [n] = np.flatnonzero(marked.any(axis=tuple({0, 1, 2} - {axis})))
        assert numbers[z] == n


def test_trailing_axes_of_one_and_a_flat_mask(tmp_path: Path) -> None:
    expected = write_lesion(tmp_path / "mask.nii.gz", "one slice")
    image = LoadVolumed("image")({"image": write_head(tmp_path, "one slice")["image"]})["image"]
    for array in (expected[..., None, None], expected[..., 0]):
        nib.save(nib.Nifti1Image(array.astype(np.uint8), GRIDS["one slice"][1]), tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(load_mask(tmp_path / "mask.nii.gz", image)[0], expected)


@pytest.mark.parametrize("case", ["moved", "scaled", "thicker", "smaller", "identity", "turned", "two volumes"])
def test_a_mask_on_another_grid_is_refused(case: str, tmp_path: Path) -> None:
    """Half a voxel away, 5 % larger, a slice twice as thick, a voxel fewer, without orientation, turned, with two volumes."""
    grid = "one slice" if case == "thicker" else "oblique"
    mask = write_lesion(tmp_path / "mask.nii.gz", grid).astype(np.uint8)
    affine = GRIDS[grid][1].copy()
    if case == "moved":
        affine[:3, 3] += affine[:3, 0] / 2
    elif case == "scaled":
        affine[:3, 1] *= 1.05
    elif case == "thicker":
        affine[:3, 2] *= 2
    elif case == "smaller":
        mask = mask[1:]
    elif case == "identity":
        affine = np.eye(4)
    elif case == "turned":  # by 5 degrees about its centre
        centre = affine @ [*(np.array(mask.shape) - 1) / 2, 1]
        affine[:3, :3] = Rotation.from_euler("z", 5, degrees=True).as_matrix() @ affine[:3, :3]
        affine[:3, 3] += (centre - affine @ [*(np.array(mask.shape) - 1) / 2, 1])[:3]
    else:
        mask = np.stack([mask, mask], axis=-1)
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "mask.nii.gz")
    image = LoadVolumed("image")({"image": write_head(tmp_path, grid)["image"]})["image"]
    how = {
        "moved": r"their centres are 0\.968 mm apart",
        "scaled": r"voxels of 1\.93505 x 2\.29494 x 5\.00724 against 1\.93505 x 2\.18565 x 5\.00724 mm",
        "thicker": "voxels of 2 x 2 x 10 against 2 x 2 x 5 mm",
        "smaller": "83 x 92 x 7 voxels against 84 x 92 x 7",
        "identity": r"voxels of 1 x 1 x 1 against .* mm",
        "turned": "their axes have other directions",
    }
    other = rf"mask.nii.gz: lies on another grid than .*flair.nii.gz \({how.get(case)}\)"
    match = "a mask is one 3D volume" if case == "two volumes" else other
    with pytest.raises(ValueError, match=match):
        load_mask(tmp_path / "mask.nii.gz", image)


@pytest.mark.parametrize(
    ("shape", "sizes", "like", "wanted", "how"),
    [
        ((512, 400, 1), (1, 1, 1), (400, 512, 1), (1, 1, 1), "512 x 400 x 1 voxels against 400 x 512 x 1"),
        ((9, 9, 9), (1, 2, 3), (9, 9, 9), (2, 1, 3), "voxels of 1 x 2 x 3 against 2 x 1 x 3 mm"),
    ],
)
def test_grids_differ_in_what_is_said(shape: Any, sizes: Any, like: Any, wanted: Any, how: str) -> None:
    affine, target = (torch.diag(torch.tensor([*s, 1.0])) for s in (sizes, wanted))
    assert difference(shape, affine, like, target) == how
    # where the axes are those of the target in another order, nothing but the place is another
    turned = affine[:, [1, 2, 0, 3]] + torch.tensor([[0, 0, 0, 3.0]] + 3 * [[0.0] * 4])
    assert difference([shape[n] for n in (1, 2, 0)], turned, shape, affine) == "their centres are 3.000 mm apart"


def test_what_has_no_size_is_not_compared_in_mm(tmp_path: Path) -> None:
    """A picture's pixel counts as 1 mm. It is turned by its EXIF data, which its mask may lack."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    grey = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    Image.fromarray(grey).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(grey).save(tmp_path / "mask.png")
    load = LoadVolumed("image", modalities=["DX"])
    with pytest.raises(ValueError, match=r"\(50 x 40 x 1 voxels against 40 x 50 x 1\)"):
        load_mask(tmp_path / "mask.png", load({"image": str(tmp_path / "turned.jpg")})["image"])
    nib.save(nib.Nifti1Image(grey.T[..., None], np.diag([-2.0, -2.0, 1.0, 1.0])), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match=r"\(their affines differ, and not both files say how large a voxel is\)"):
        load_mask(tmp_path / "mask.nii.gz", load({"image": str(tmp_path / "mask.png")})["image"])


def test_masks_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    image = LoadVolumed("image")({"image": write_head(tmp_path)["image"]})["image"]
    with pytest.raises(ValueError, match="a mask is one file"):
        load_mask(["a.nii.gz", "b.nii.gz"], image)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing.nii.gz: no such file"):
        load_mask(tmp_path / "nothing.nii.gz", image)
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"is a folder; a mask is one file \(.nii.gz"):
        load_mask(tmp_path, image)
    with pytest.raises(ValueError, match="broken.nii.gz: can't be read as a mask"):
        load_mask(tmp_path / "broken.nii.gz", image)


def test_a_header_that_was_rounded_is_the_same_grid() -> None:
    """0.02 of a voxel at the far corner is rounding, and a singular affine is no grid."""
    voxels, affine = torch.arange(24).view(1, 2, 3, 4), torch.eye(4)
    target = torch.eye(4)
    target[0, 3] = 0.02
    assert torch.equal(reordered(voxels, affine, target, (2, 3, 4)), voxels)
    assert reordered(voxels, torch.zeros(4, 4), target, (2, 3, 4)) is None
