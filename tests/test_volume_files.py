"""From files to volumes: what is wrong with a file is named, and geometry, units and channels are those of the file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.images.assembling import assemble
from scripts.images.loading import InvalidImageError, LoadVolumed
from scripts.images.masks import load_mask
from scripts.images.volume_files import Loaded
from scripts.running.saving import save_nifti
from synthetic import write_head
from whole_head import AFFINE, HEAD, preprocessed, write


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


SFORM = np.diag([2.0, 2.0, 5.0, 1.0])


@pytest.mark.parametrize(
    ("qform", "warned"),
    [
        (SFORM, False),
        (np.diag([-1.0, 1, 1, 1]) @ SFORM, True),
        (np.diag([-1.0, -1, 1, 1]) @ SFORM, True),
        (np.diag([1.0, -1, 1, 1]) @ SFORM, False),
        # turned by 40 degrees from head to foot, and moved
        (nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.7) @ SFORM[:3, :3], [9, 9, 9]), False),
    ],
    ids=["one", "mirrored", "turned over", "front and back", "oblique"],
)
def test_two_affines_that_exchange_left_and_right_get_a_warning(qform: Any, warned: bool, tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(40, 40, 4), SFORM)
    for code in (1, 0):
        image.set_sform(SFORM, 2)
        image.set_qform(qform, code)
        nib.save(image, tmp_path / "a.nii.gz")
        d = LoadVolumed("image")({"image": str(tmp_path / "a.nii.gz")})
        np.testing.assert_array_equal(d["image"].affine, SFORM)
        expected = (
            "The file's sform and qform exchange left and right. The sform was taken; check the side of what is marked."
        )
        assert d["warnings"] == ([expected] if warned and code else [])


def with_header(path: Path, **fields: Any) -> str:
    """A sound file whose header says something else in some fields."""
    image = nib.load(save(path.with_name("sound.nii"), noise(40, 40, 4)))
    content = bytearray(path.with_name("sound.nii").read_bytes())
    for name, value in fields.items():
        image.header[name] = value
    header = image.header.binaryblock
    content[: len(header)] = header
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        *[
            ({"xyzt_units": unit}, f"its unit of length is {unit % 8} .xyzt_units.; allowed are 0 .unknown., 1 .m.")
            for unit in (4, 5, 7, 8 + 6)
        ],
        ({"srow_x": [np.nan] * 4}, "its affine holds NaN or infinity"),
        ({"srow_z": [0, 0, 5, np.inf]}, "its affine holds NaN or infinity"),
        ({f"srow_{axis}": [0] * 4 for axis in "xyz"}, "its affine is singular"),
        ({"srow_z": [2, 0, 0, 0]}, "its affine is singular"),
    ],
)
def test_a_broken_header_is_named_as_what_it_is(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Of an image, of a channel beside a sound one, and of a mask."""
    path, sound = with_header(tmp_path / "a.nii", **fields), str(tmp_path / "sound.nii")
    for channels in ([path], [path, sound], [sound, path]):
        with pytest.raises(InvalidImageError, match=rf"a\.nii: .*{reason}"):
            LoadVolumed("image", channels=len(channels))({"image": channels})
    with pytest.raises(ValueError, match=rf"a\.nii: .*{reason}"):
        load_mask(path, LoadVolumed("image")({"image": sound})["image"])


def test_a_unit_of_time_that_is_none_is_no_fault(tmp_path: Path) -> None:
    image = LoadVolumed("image")({"image": with_header(tmp_path / "a.nii", xyzt_units=56 + 2)})["image"]
    np.testing.assert_array_equal(image.affine, SFORM)


def test_singular_affine_is_refused() -> None:
    image = Loaded(torch.rand(40, 40, 4), torch.diag(torch.tensor([2.0, 2.0, 0.0, 1.0])))
    with pytest.raises(InvalidImageError, match="a.nrrd: its affine is singular"):
        assemble([image], ["a.nrrd"], channels=1, min_size=32)


def test_mismatched_sequences(tmp_path: Path) -> None:
    first = save(tmp_path / "t1.nii.gz", noise(40, 40, 4))
    smaller = save(tmp_path / "t2.nii.gz", noise(40, 40, 5))
    moved = save(
        tmp_path / "flair.nii.gz", noise(40, 40, 4), nib.affines.from_matvec(np.diag([2.0, 2.0, 5.0]), (1, 0, 0))
    )
    for other, how in (
        (smaller, "40 x 40 x 5 voxels against 40 x 40 x 4"),
        (moved, "their centres are 1.000 mm apart"),
    ):
        with pytest.raises(InvalidImageError, match=rf"lies on another grid than .*t1.nii.gz \({how}\)") as error:
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


@pytest.mark.parametrize(
    "spacing",
    [[1.0, 1.0], [1.0, -1.0, 2.0], ["1", "1", "1"], [1, 1, float("nan")], [1, 1, 1e30], [1, 1, True], 2.0, "111"],
)
def test_refuses_spacing(spacing: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spacing must be .*three voxel sizes in mm"):
        LoadVolumed("image")({"image": write_head(tmp_path)["image"], "spacing": spacing})


@pytest.mark.parametrize(("units", "scale"), [("micron", 1e3), ("meter", 1e-3), ("unknown", 1.0)])
def test_units_are_honoured_and_kept(units: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine = AFFINE.copy()
    affine[:3] *= scale
    path = write(tmp_path, HEAD, affine, units)
    plain = preprocessed(write(tmp_path, HEAD, name="mm.nii.gz"), monkeypatch)
    other = preprocessed(path, monkeypatch)
    torch.testing.assert_close(other["image"].as_tensor(), plain["image"].as_tensor())
    save_nifti(other["input_image"], path, tmp_path / "out.nii.gz")
    before, after = nib.load(path), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()


def test_sizes_that_no_memory_holds_are_refused(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3] *= 1000
    path = write(tmp_path, HEAD, affine)
    with pytest.raises(InvalidImageError, match="measures 200000 x 240000 x 140000 mm") as error:
        LoadVolumed("image")({"image": path})
    assert path in str(error.value)


def test_names_and_content_may_disagree_on_compression(tmp_path: Path) -> None:
    packed = Path(write(tmp_path, HEAD)).read_bytes()
    plain, zipped = tmp_path / "plain.nii.gz", tmp_path / "zipped.nii"
    plain.write_bytes(gzip.decompress(packed))
    zipped.write_bytes(packed)
    for path in (plain, zipped):
        image = LoadVolumed("image")({"image": str(path)})["image"]
        np.testing.assert_array_equal(image[0], HEAD)
        np.testing.assert_array_equal(image.affine, AFFINE)
        save_nifti(image, str(path), tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, AFFINE)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
def test_a_header_that_does_not_say_where_the_axes_go_is_refused(suffix: str, tmp_path: Path) -> None:
    """ITK takes the patient's own axes then, and the sides could be exchanged."""
    values = noise(40, 40, 4)
    raw = values.T.tobytes()
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 40 40 4\nElementSpacing = 2 2 5\nElementType = MET_FLOAT\n"
    nrrd = "NRRD0005\ntype: float\ndimension: 3\nsizes: 40 40 4\nendian: little\nencoding: raw\n"
    nrrd += "space: left-posterior-superior\n"
    directions = {
        ".mha": ("TransformMatrix = -1 0 0 0 -1 0 0 0 1\n", "Rotation = -1 0 0 0 -1 0 0 0 1\n"),
        ".mhd": ("Orientation = -1 0 0 0 -1 0 0 0 1\n",),
        ".nrrd": ("space directions: (-2,0,0) (0,-2,0) (0,0,5)\n",),
    }[suffix]
    path = tmp_path / f"a{suffix}"

    def write(field: str) -> dict[str, Any]:
        if suffix == ".nrrd":
            path.write_bytes((nrrd + field + "\n").encode() + raw)
        elif suffix == ".mha":
            path.write_bytes((meta + field + "ElementDataFile = LOCAL\n").encode() + raw)
        else:
            path.write_text(meta + field + "ElementDataFile = a.raw\n")
            (tmp_path / "a.raw").write_bytes(raw)
        return {"image": str(path)}

    for field in directions:
        image = LoadVolumed("image")(write(field))["image"]
        np.testing.assert_allclose(image.affine, np.diag([2.0, 2.0, 5.0, 1.0]), atol=1e-6)
        np.testing.assert_array_equal(image[0], values)
    with pytest.raises(InvalidImageError, match=f"a{suffix}: its orientation is unknown .its header has no field"):
        LoadVolumed("image")(write(""))
