"""Volumes from every format that holds one: the same voxels at the same place, or a refusal that says why."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from pydicom.uid import generate_uid

import dicom
from scripts.digests import source_digest
from scripts.images.dicom_series import describe
from scripts.images.loading import InvalidImageError, LoadVolumed
from scripts.images.masks import load_mask
from scripts.images.volume_files import read_volume
from scripts.running.saving import is_of_picture, save_nifti
from synthetic import OBLIQUE

SHAPE = (36, 40, 5)
VOLUME = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
# of ScannerRAS axes that are perpendicular, as DICOM and ITK want them
TURN = np.linalg.qr(OBLIQUE[:3, :3])[0]
TURN = TURN * np.sign(np.diag(TURN))
AFFINE = nib.affines.from_matvec(TURN @ np.diag([0.8, 0.9, 5.5]), (-30.0, 12.5, 40.0))


def loaded(path: str | list[str], **options: Any) -> Any:
    return LoadVolumed("image", **options)({"image": path})["image"]


def itk_image(volume: np.ndarray, affine: np.ndarray, vector: bool = False) -> SimpleITK.Image:
    """Of ``(X, Y, Z)`` or ``(X, Y, Z, C)``."""
    order = (2, 1, 0, 3) if vector else tuple(reversed(range(volume.ndim)))
    image = SimpleITK.GetImageFromArray(volume.transpose(order), isVector=vector)
    if volume.ndim == 3 or vector:
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize("ending", ["nrrd", "mha", "mhd", "NRRD", "mgz", "nii"])
def test_every_format_gives_the_same_voxels_at_the_same_place(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"flair.{ending}"
    if ending == "mgz":
        nib.save(nib.MGHImage(VOLUME.astype(np.float32), AFFINE), path)
    elif ending == "nii":
        nib.save(nib.Nifti1Image(VOLUME, AFFINE), path)
    else:
        SimpleITK.WriteImage(itk_image(VOLUME, AFFINE), str(path))
    image = loaded(str(path))
    np.testing.assert_array_equal(image[0], VOLUME)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)


def test_channels_of_a_nrrd_file(tmp_path: Path) -> None:
    both = np.stack([VOLUME, 2 * VOLUME], axis=-1)
    path = str(tmp_path / "x.nrrd")
    SimpleITK.WriteImage(itk_image(both, AFFINE, vector=True), path)
    image = loaded(path, channels=2)
    np.testing.assert_array_equal(image, np.moveaxis(both, -1, 0))
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("ending", ["nrrd", "mgz"])
def test_an_unknown_orientation_is_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    if ending == "nrrd":
        header = "NRRD0004\ntype: uint16\ndimension: 3\nsizes: 36 40 5\nencoding: raw\nendian: little\n\n"
        path.write_bytes(header.encode() + VOLUME.tobytes())
    else:
        nib.save(nib.MGHImage(VOLUME.astype(np.float32), AFFINE), path)
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[28:30] = b"\0\0"
        path.write_bytes(gzip.compress(content))
    with pytest.raises(InvalidImageError, match=f"x.{ending}: its orientation is unknown"):
        loaded(str(path))


def nrrd_in(space: str, path: Path) -> str:
    """4 x 5 x 6 voxels of 1 mm, with a fourth axis of two where the space has time."""
    four = space.endswith("time")
    n = 4 if four else 3
    axes = " ".join(f"({','.join(str(int(k == axis)) for k in range(n))})" for axis in range(n))
    header = (
        f"NRRD0004\ntype: short\ndimension: {n}\nspace: {space}\nsizes: 4 5 6{' 2' if four else ''}\nspace directions: {axes}\n"
        f"endian: little\nencoding: raw\nspace origin: (10,20,30{',0' if four else ''})\n\n"
    )
    path.write_bytes(header.encode() + bytes(480))
    return str(path)


@pytest.mark.parametrize(
    ("space", "signs"),
    {
        "right-anterior-superior": (1, 1),
        "left-anterior-superior": (-1, 1),
        "left-posterior-superior": (-1, -1),
        "LPS": (-1, -1),
        "left-posterior-superior-time": (-1, -1),
    }.items(),
)
def test_the_space_of_a_nrrd_file_is_honoured(space: str, signs: tuple[int, int], tmp_path: Path) -> None:
    affine = read_volume(nrrd_in(space, tmp_path / "x.nrrd")).affine.numpy()
    np.testing.assert_array_equal(affine[:3, 3], [10 * signs[0], 20 * signs[1], 30])
    np.testing.assert_array_equal(affine[:3, :3], np.diag([*signs, 1]))


@pytest.mark.parametrize(
    "space", ["scanner-xyz", "3D-right-handed", "3D-left-handed", "scanner-xyz-time", "right-anterior-superior-time"]
)
def test_a_space_that_says_nothing_of_the_patient_is_refused(space: str, tmp_path: Path) -> None:
    """Such were read as left-posterior-superior."""
    message = (
        f"x.nrrd: its orientation is unknown .its field 'space' is {space}.; set it to one of left-posterior-superior, "
    )
    with pytest.raises(InvalidImageError, match=message):
        read_volume(nrrd_in(space, tmp_path / "x.nrrd"))


def test_a_broken_nrrd_file_and_a_mask_in_one(tmp_path: Path) -> None:
    (tmp_path / "x.nrrd").write_text("NRRD0004\n")
    with pytest.raises(
        InvalidImageError, match=r"x.nrrd: can't be read as an image \(is it complete, and is the file of its"
    ):
        loaded(str(tmp_path / "x.nrrd"))
    nib.save(nib.Nifti1Image(VOLUME, AFFINE), tmp_path / "a.nii")
    marked = (VOLUME > 2000).astype(np.uint8)
    # its axes in another order
    turned = AFFINE @ np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    SimpleITK.WriteImage(itk_image(marked[::-1], turned), str(tmp_path / "m.mha"))
    mask = load_mask(tmp_path / "m.mha", loaded(str(tmp_path / "a.nii")))
    np.testing.assert_array_equal(mask[0], marked)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.npy", "x.hdr", "x.txt"])
def test_what_is_no_volume_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InvalidImageError, match=r"is not of a format that the model takes; allowed are NIfTI.*DICOM"):
        loaded(str(tmp_path / name))


def test_a_series_gives_the_volume_that_it_was_made_from(tmp_path: Path) -> None:
    slices = dicom.series(VOLUME, AFFINE, RescaleSlope=2.0, RescaleIntercept=-100.0)
    folder = dicom.save_series(slices, tmp_path / "series")
    # other files, hidden ones and folders are no part of it
    (tmp_path / "series" / "notes.txt").write_text("x")
    (tmp_path / "series" / "._IM0000.dcm").write_text("x")
    dicom.save(slices[0], tmp_path / "series" / "deeper" / "x.dcm")
    image = loaded(folder)
    np.testing.assert_array_equal(image[0], VOLUME * 2.0 - 100)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    assert describe(folder) == ("MR", "t2_flair_tra")
    # files without an ending
    for n, dataset in enumerate(slices):
        dicom.save(dataset, tmp_path / "bare" / f"1.2.{n}")
    np.testing.assert_array_equal(loaded(str(tmp_path / "bare")), image)


def test_a_left_handed_volume_comes_in_the_order_of_its_slices_normal(tmp_path: Path) -> None:
    flipped = AFFINE @ np.diag([1, 1, -1, 1])
    image = loaded(dicom.save_series(dicom.series(VOLUME, flipped), tmp_path / "series"))
    np.testing.assert_array_equal(image[0], VOLUME[:, :, ::-1])
    np.testing.assert_allclose(image.affine[:3, 3], (flipped @ [0, 0, SHAPE[2] - 1, 1])[:3], atol=1e-4)


def test_a_series_of_one_slice(tmp_path: Path) -> None:
    [one] = dicom.series(VOLUME[:, :, :1], AFFINE)
    image = loaded(dicom.save_series([one], tmp_path / "one"))
    np.testing.assert_array_equal(image[0], VOLUME[:, :, :1])
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    del one.SliceThickness
    with pytest.raises(InvalidImageError, match=r"IM0000.dcm: is a single slice without a Slice Thickness"):
        loaded(dicom.save_series([one], tmp_path / "one"))


def test_compressed_series(tmp_path: Path) -> None:
    slices = dicom.series(VOLUME, AFFINE)
    for dataset in slices:
        dataset.compress("1.2.840.10008.1.2.5")  # RLE
    np.testing.assert_array_equal(loaded(dicom.save_series(slices, tmp_path / "series"))[0], VOLUME)


def one_missing(slices: list[Any]) -> None:
    del slices[2]


def tilted(slices: list[Any]) -> None:
    for k, dataset in enumerate(slices):
        column = np.array(dataset.ImageOrientationPatient[3:], float)
        dataset.ImagePositionPatient = (np.array(dataset.ImagePositionPatient, float) + k * column).round(5).tolist()


def uneven(slices: list[Any]) -> None:
    normal = np.cross(*np.reshape(np.array(slices[0].ImageOrientationPatient, float), (2, 3)))
    slices[-1].ImagePositionPatient = (np.array(slices[-1].ImagePositionPatient, float) + 2 * normal).round(5).tolist()


def twice(slices: list[Any]) -> None:
    slices[1].ImagePositionPatient = slices[0].ImagePositionPatient


def two_series(slices: list[Any]) -> None:
    slices[1].SeriesInstanceUID, slices[1].SeriesDescription = generate_uid(), "t1_mprage"


def enlarged(slices: list[Any]) -> None:
    slices[1].PixelSpacing = [3.0, 3.0]


def cut(slices: list[Any]) -> None:
    slices[1].PixelData = slices[1].PixelData[:100]


def without_position(slices: list[Any]) -> None:
    del slices[1].ImagePositionPatient


def of_many_frames(slices: list[Any]) -> None:
    slices[1].NumberOfFrames = 3


def inverted(slices: list[Any]) -> None:
    slices[2].PhotometricInterpretation = "MONOCHROME1"


def by_palette(slices: list[Any]) -> None:
    slices[2].PhotometricInterpretation = "PALETTE COLOR"


def of_ct(slices: list[Any]) -> None:
    for dataset in slices:
        dataset.Modality = "CT"


ODD = {
    one_missing: r"1 missing image\(s\) between instance numbers 2 and 4",
    tilted: r"a gantry tilt of 10.3 degrees",
    uneven: r"uneven spacing, from 5.50 to 7.50 mm",
    twice: r"IM\d+.dcm: lies at the position of IM\d+.dcm",
    two_series: r"holds 2 series: 't2_flair_tra' \(4 images\), 't1_mprage' \(1 images\); move each to a folder",
    enlarged: r"its PixelSpacing \[3.0, 3.0\] differs",
    cut: r"ends before its last pixel",
    without_position: r"is not a slice with a position in space \(no ImagePositionPatient\)",
    of_many_frames: r"holds 3 frames",
    inverted: r"IM\d+.dcm: shows high values dark \(MONOCHROME1\)",
    by_palette: r"IM\d+.dcm: its pixels are PALETTE COLOR",
    of_ct: r"its modality is CT; the model takes MR",
}


@pytest.mark.parametrize("change", ODD, ids=lambda c: c.__name__)
def test_a_series_that_is_no_even_grid_is_refused(change: Any, tmp_path: Path) -> None:
    slices = dicom.series(VOLUME, AFFINE)
    change(slices)
    folder = dicom.save_series(slices, tmp_path / "series")
    with pytest.raises(InvalidImageError, match=ODD[change]) as error:
        loaded(folder)
    assert folder in str(error.value)


def test_any_image_runs_with_a_warning(tmp_path: Path) -> None:
    slices = dicom.series(VOLUME, AFFINE)
    of_ct(slices)
    path = dicom.save_series(slices, tmp_path / "series")
    d = LoadVolumed("image", allow_any_image="true")({"image": path})
    assert d["warnings"] == ["The modality is CT, the model takes MR."]


def test_a_file_of_a_series_and_an_empty_folder_say_what_to_give(tmp_path: Path) -> None:
    path = dicom.save(dicom.series(VOLUME, AFFINE)[0], tmp_path / "x.dcm")
    with pytest.raises(InvalidImageError, match=r"x.dcm: is one image of a series; give the folder"):
        loaded(path)
    chest = dicom.series(VOLUME, AFFINE)
    of_ct(chest)
    for what in (dicom.save(chest[0], tmp_path / "y.dcm"), dicom.save_series(chest, tmp_path / "ct")):
        with pytest.raises(InvalidImageError, match="its modality is CT; the model takes MR"):
            loaded(str(what))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidImageError, match=r"empty: no DICOM file lies in this folder"):
        loaded(str(tmp_path / "empty"))


@pytest.mark.parametrize("kind", ["series", "x.nrrd", "x.mgz"])
def test_results_lie_on_the_grid_of_the_input(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / kind)
    if kind == "series":
        dicom.save_series(dicom.series(VOLUME, AFFINE), tmp_path / kind)
    elif kind == "x.mgz":
        nib.save(nib.MGHImage(VOLUME.astype(np.float32), AFFINE), path)
    else:
        SimpleITK.WriteImage(itk_image(VOLUME, AFFINE), path)
    image = loaded(path)
    assert not is_of_picture(image, path)
    save_nifti(image, path, tmp_path / "out.nii.gz")
    result = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(result.get_fdata(), VOLUME)
    np.testing.assert_allclose(result.affine, AFFINE, atol=1e-4)
    assert result.header.get_xyzt_units()[0] == "mm"


def test_the_digest_of_a_series_is_that_of_its_files(tmp_path: Path) -> None:
    slices = dicom.series(VOLUME, AFFINE)
    first, same = (dicom.save_series(slices, tmp_path / name) for name in ("a", "b"))
    (tmp_path / "b" / ".hidden").write_text("x")
    assert source_digest(first) == source_digest(same) is not None
    dicom.save_series(slices[:4], tmp_path / "c")
    assert source_digest(str(tmp_path / "c")) != source_digest(first)
    path = tmp_path / "b" / "IM0007.dcm"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert source_digest(same) != source_digest(first)
    assert source_digest(str(tmp_path / "nowhere")) is None
