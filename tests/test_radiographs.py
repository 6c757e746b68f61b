"""Radiographs: the pixels as a viewer shows them, at their place, and a refusal of what the model was not made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForProcessing, JPEG2000Lossless, JPEGLosslessSV1, RLELossless

import dicom
from scripts.images.loading import InvalidImageError, LoadVolumed
from scripts.images.masks import load_mask
from scripts.images.radiograph_check import MODEL, CheckRadiographd, correlation
from scripts.running.records import measured
from scripts.running.saving import is_of_picture, save_labels_png, save_nifti

ROWS, COLUMNS = 40, 48
GREY = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS)).astype(np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (ROWS, COLUMNS)).astype(np.uint16)
CHEST = {"modalities": ["CR", "DX"], "body_parts": ["CHEST", "THORAX"], "views": ["AP", "PA"]}


def load(path: str | list[str], **options: Any) -> dict[Any, Any]:
    return LoadVolumed("image", **{**CHEST, **options})({"image": path})


def pixels(path: str, **options: Any) -> np.ndarray:
    """Rows and columns as a viewer shows them."""
    image = load(path, **options)["image"]
    assert image.ndim == 4 and image.shape[0] == image.shape[3] == 1
    return image[0, :, :, 0].numpy().T


def picture(folder: Path, array: np.ndarray, name: str = "x.png", **options: Any) -> str:
    Image.fromarray(array).save(folder / name, **options)
    return str(folder / name)


def test_grey_pictures_keep_every_level(tmp_path: Path) -> None:
    same = np.repeat(GREY[..., None], 3, axis=2)
    palette = Image.fromarray(GREY)
    palette.putpalette([v for n in range(256) for v in (n, n, n)])
    palette.save(tmp_path / "palette.png")
    for path in (
        picture(tmp_path, GREY),
        picture(tmp_path, GREY, "x.tif"),
        picture(tmp_path, same, "rgb.png"),
        picture(tmp_path, np.dstack([same, GREY]), "rgba.png"),
        picture(tmp_path, np.dstack([GREY, GREY[::-1]]), "la.png"),
        str(tmp_path / "palette.png"),
    ):
        np.testing.assert_array_equal(pixels(path), GREY)
    np.testing.assert_array_equal(pixels(picture(tmp_path, DEEP, "deep.png")), DEEP)
    np.testing.assert_array_equal(pixels(picture(tmp_path, DEEP, "deep.tif")), DEEP)
    deep_colours = SimpleITK.GetImageFromArray(np.repeat(DEEP[..., None], 3, axis=2), isVector=True)
    SimpleITK.WriteImage(deep_colours, str(tmp_path / "deep_rgb.png"))
    np.testing.assert_array_equal(pixels(str(tmp_path / "deep_rgb.png")), DEEP)


def test_a_negative_tiff_is_turned(tmp_path: Path) -> None:
    path = picture(tmp_path, DEEP, "x.tif")
    content = bytearray(Path(path).read_bytes())
    at = content.index((262).to_bytes(2, "little") + b"\x03\0\x01\0\0\0\x01\0")  # BlackIsZero
    content[at + 8] = 0
    Path(path).write_bytes(content)
    np.testing.assert_array_equal(pixels(path), 65535 - DEEP)


def test_a_jpeg_lies_as_its_exif_data_wants_it_shown(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(ROWS) * 4, np.arange(COLUMNS)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
    path = picture(tmp_path, smooth, "x.jpg", quality=100, exif=exif)
    np.testing.assert_allclose(pixels(path), np.rot90(smooth, -1), atol=2)
    np.testing.assert_allclose(pixels(picture(tmp_path, smooth, "y.JPEG", quality=100)), smooth, atol=2)


def test_a_picture_has_axes_and_no_size(tmp_path: Path) -> None:
    path = picture(tmp_path, GREY, dpi=(96, 96))
    d = load(path)
    np.testing.assert_array_equal(d["image"].affine, np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert len(d["warnings"]) == 2
    assert "AP or PA was not checked" in d["warnings"][0] and "how large a pixel is" in d["warnings"][1]
    sized = LoadVolumed("image", **CHEST)({"image": path, "spacing": [0.2, 0.3]})
    assert sized["image"].pixdim.tolist() == pytest.approx([0.2, 0.3, 1.0]) and len(sized["warnings"]) == 1
    assert load(path, views=())["warnings"] == d["warnings"][1:]


def test_colours_are_refused_unless_they_are_channels(tmp_path: Path) -> None:
    colours = np.stack([GREY, GREY.T.reshape(ROWS, COLUMNS), 255 - GREY], axis=2)
    path = picture(tmp_path, colours)
    with pytest.raises(InvalidImageError, match="x.png: is a coloured picture; the model takes 1 channel"):
        load(path)
    np.testing.assert_array_equal(load(path, channels=3)["image"][..., 0].numpy(), colours.transpose(2, 1, 0))
    d = load(path, allow_any_image=True)
    assert "The picture is coloured. Its brightness was taken." in d["warnings"]
    brightness = colours @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(d["image"][0, :, :, 0].numpy().T, brightness, rtol=1e-5)


def test_a_picture_for_each_channel(tmp_path: Path) -> None:
    both = [picture(tmp_path, GREY, "a.png"), picture(tmp_path, 255 - GREY, "b.png")]
    image = load(both, channels=2)["image"]
    np.testing.assert_array_equal(image[..., 0].numpy(), np.stack([GREY.T, 255 - GREY.T]))
    picture(tmp_path, GREY.T, "b.png")
    with pytest.raises(InvalidImageError, match="b.png: lies on another grid than"):
        load(both, channels=2)


def test_bad_pictures_name_file_and_reason(tmp_path: Path) -> None:
    pages = tmp_path / "pages.tif"
    Image.fromarray(GREY).save(pages, save_all=True, append_images=[Image.fromarray(GREY)])
    (tmp_path / "cut.png").write_bytes(Path(picture(tmp_path, GREY)).read_bytes()[:200])
    (tmp_path / "none.jpg").write_text("x")
    for path, reason in (
        ("pages.tif", "holds 2 pictures"),
        ("cut.png", "can't be read"),
        ("none.jpg", "can't be read"),
    ):
        with pytest.raises(InvalidImageError, match=f"{path}: {reason}"):
            load(str(tmp_path / path))


def test_a_mask_that_is_a_picture_lies_on_its_radiograph(tmp_path: Path) -> None:
    mask = picture(tmp_path, (GREY > 100).astype(np.uint8) * 255, "mask.png")
    image = load(
        dicom.save(dicom.image(GREY, PixelSpacing=[0.3, 0.2], PatientOrientation=["R", "F"]), tmp_path / "x.dcm")
    )
    np.testing.assert_array_equal(load_mask(mask, image["image"])[0, :, :, 0].numpy().T, GREY > 100)
    Image.open(mask).save(tmp_path / "mask.jpeg")
    with pytest.raises(ValueError, match=r"mask.jpeg: can't be read as a mask \(JPEG doesn't keep a mask's pixels"):
        load_mask(tmp_path / "mask.jpeg", image["image"])
    turned = Orientation("LPS", labels=None)(image["image"])
    np.testing.assert_array_equal(load_mask(mask, turned)[0, :, :, 0].numpy().T, (GREY > 100)[:, ::-1])


def dx(folder: Path, array: np.ndarray, **attributes: Any) -> str:
    return dicom.save(dicom.image(array, **attributes), folder / "x.dcm")


def test_pixels_of_a_plain_radiograph(tmp_path: Path) -> None:
    path = dx(tmp_path, DEEP, PixelSpacing=[0.3, 0.2], ImagerPixelSpacing=[0.33, 0.22])
    d = load(path)
    np.testing.assert_array_equal(pixels(path), DEEP)
    np.testing.assert_allclose(d["image"].affine, np.diag([-0.2, -0.3, 1.0, 1.0]))
    assert d["warnings"] == []
    assert load(dx(tmp_path, GREY, ImagerPixelSpacing=[0.33, 0.22]))["image"].pixdim.tolist() == pytest.approx(
        [0.22, 0.33, 1.0]
    )
    assert "how large a pixel is" in load(dx(tmp_path, GREY))["warnings"][0]


def test_inverted_rescaled_and_windowed(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        pixels(dx(tmp_path, GREY, PhotometricInterpretation="MONOCHROME1")), float(GREY.max()) + GREY.min() - GREY
    )
    rescale = {"RescaleSlope": 2.0, "RescaleIntercept": -100.0}
    np.testing.assert_array_equal(pixels(dx(tmp_path, GREY, **rescale)), GREY * 2.0 - 100)
    # from 100 to 200 of the rescaled unit, onto the range of what can be stored
    window = {"WindowCenter": 150.0, "WindowWidth": 100.0, "VOILUTFunction": "LINEAR_EXACT"}
    shown = np.clip((GREY * 2.0 - 100 - 100) / 100, 0, 1) * 510 - 100
    np.testing.assert_allclose(pixels(dx(tmp_path, GREY, **rescale, **window)), shown, rtol=1e-5)
    # of several windows the first
    several = {"WindowCenter": [150.0, 5.0], "WindowWidth": [100.0, 1.0], "VOILUTFunction": "LINEAR_EXACT"}
    np.testing.assert_allclose(pixels(dx(tmp_path, GREY, **rescale, **several)), shown, rtol=1e-5)


def test_an_empty_voi_lut_function_is_linear(tmp_path: Path) -> None:
    window = {"WindowCenter": 150.0, "WindowWidth": 100.0}
    shown = pixels(dx(tmp_path, GREY, **window, VOILUTFunction="LINEAR"))
    for function in ("", " ", None):
        about = {} if function is None else {"VOILUTFunction": function}
        np.testing.assert_array_equal(pixels(dx(tmp_path, GREY, **window, **about)), shown)
    assert shown.min() == 0 and shown.max() == 255 and shown.std() > GREY.std()
    with pytest.raises(InvalidImageError, match="its window can't be used .*CUBIC"):
        load(dx(tmp_path, GREY, **window, VOILUTFunction="CUBIC"))


@pytest.mark.parametrize(
    "about", [{"PresentationIntentType": "FOR PROCESSING"}, {"SOPClassUID": DigitalXRayImageStorageForProcessing}]
)
def test_raw_values_of_a_detector_are_said(about: dict[str, Any], tmp_path: Path) -> None:
    """By its own word or by its class; an image for viewing isn't."""
    size = {"PixelSpacing": [1, 1]}
    [said] = load(dx(tmp_path, GREY, **size, **about))["warnings"]
    assert said.startswith("The file holds the detector's raw values (FOR PROCESSING)")
    assert load(dx(tmp_path, GREY, **size, PresentationIntentType="FOR PRESENTATION"))["warnings"] == []


@pytest.mark.parametrize("bits", [8, 16])
def test_lookup_tables(bits: int, tmp_path: Path) -> None:
    """A table of 4096 entries, first of the value 100, that turns the values round."""
    table = Dataset()
    entries = (np.arange(4096)[::-1] >> (4 if bits == 8 else 0)).astype(np.uint16)
    table.add_new(0x00283002, "US", [4096, 100, bits])
    table.add_new(0x00283006, "US", entries.tolist())
    stored = DEEP >> 3  # up to 8191
    expected = entries[np.clip(stored.astype(int) - 100, 0, 4095)]
    voi = dx(tmp_path, stored, VOILUTSequence=[table], WindowCenter=5, WindowWidth=1)
    np.testing.assert_array_equal(pixels(voi), expected)
    modality = dx(tmp_path, stored, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(pixels(modality), expected)


def test_unused_bits_and_the_sign_are_honoured(tmp_path: Path) -> None:
    twelve = DEEP & 0x0FFF
    path = dx(tmp_path, DEEP, BitsStored=12, HighBit=11)  # overlays lie above
    np.testing.assert_array_equal(pixels(path), twelve)
    signed = (DEEP & 0x0FFF).astype(np.int16)
    expected = np.where(twelve >= 2048, twelve.astype(int) - 4096, twelve)
    np.testing.assert_array_equal(pixels(dx(tmp_path, signed, BitsStored=12, HighBit=11)), expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_values_in_the_upper_bits_are_refused(compressed: bool, tmp_path: Path) -> None:
    """They were read without their upper four bits."""
    dataset = dicom.image((DEEP & 0x0FFF) << 4, BitsStored=12, HighBit=15)
    if compressed:
        dataset.compress(RLELossless)
    with pytest.raises(InvalidImageError, match=r"x.dcm: its HighBit is 15 and its BitsStored 12, .* allowed is 11\."):
        load(dicom.save(dataset, tmp_path / "x.dcm"))


def test_unused_bits_of_rle_are_cut_too(tmp_path: Path) -> None:
    dataset = dicom.image(DEEP, BitsStored=12, HighBit=11)
    dataset.compress(RLELossless)
    np.testing.assert_array_equal(pixels(dicom.save(dataset, tmp_path / "x.dcm")), DEEP & 0x0FFF)


def test_padding_is_dark(tmp_path: Path) -> None:
    array = GREY.copy()
    array[:5] = 0
    array[5:] = np.maximum(array[5:], 1)
    path = dx(tmp_path, array, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    shown = pixels(path)
    assert (shown[:5] == shown[5:].min()).all() and shown[5:].max() == 254


@pytest.mark.parametrize("syntax", ["RLE", "JPEG", "JPEG2000", "broken"])
def test_compressed_pixels(syntax: str, tmp_path: Path) -> None:
    """Lossless JPEG is what most radiographs are sent in; pydicom has no decoder for it here, ITK has."""
    dataset = dicom.image(GREY, PhotometricInterpretation="MONOCHROME1", RescaleSlope=2.0, RescaleIntercept=1.0)
    if syntax == "RLE":
        dataset.compress(RLELossless)
    elif syntax == "broken":
        dataset.PixelData = encapsulate([b"nothing"])
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    else:
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "coded.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor(syntax)
        writer.Execute(SimpleITK.GetImageFromArray(GREY[None]))
        coded = dcmread(tmp_path / "coded.dcm")
        dataset.PixelData = coded.PixelData
        dataset.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
        assert coded.file_meta.TransferSyntaxUID == {"JPEG": JPEGLosslessSV1, "JPEG2000": JPEG2000Lossless}[syntax]
    dataset["PixelData"].is_undefined_length = True
    path = dicom.save(dataset, tmp_path / "x.dcm")
    if syntax == "broken":
        with pytest.raises(InvalidImageError, match=r"x.dcm: its pixels can't be decoded \(JPEG Lossless"):
            load(path)
        return
    plain = GREY * 2.0 + 1
    np.testing.assert_array_equal(pixels(path), plain.max() + plain.min() - plain)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (["L", "F"], GREY),
        (["R", "F"], GREY[:, ::-1]),
        (["L", "H"], GREY[::-1]),
        (["F", "L"], GREY.T),
        (["FR", "RH"], GREY.T[:, ::-1]),
        (None, GREY),
        ([], GREY),
    ],
)
def test_the_patients_left_comes_to_the_right(
    orientation: list[str] | None, turned: np.ndarray, tmp_path: Path
) -> None:
    about = {} if orientation is None else {"PatientOrientation": orientation}
    image = load(dx(tmp_path, GREY, PixelSpacing=[0.3, 0.2], **about))["image"]
    np.testing.assert_array_equal(image[0, :, :, 0].numpy().T, GREY)
    warned = [w for w in load(dx(tmp_path, GREY, **about))["warnings"] if "turned or mirrored" in w]
    assert bool(warned) == (orientation not in (["L", "F"], None, []))
    upright = Orientation("LPS", labels=None)(image)
    np.testing.assert_array_equal(upright[0, :, :, 0].numpy().T, turned)


REFUSED = {
    "modality is CT": {"Modality": "CT"},
    "view is LL": {"ViewPosition": "LL"},
    "view is LATERAL": {"ViewPosition": "LATERAL"},
    "view is RL": {"ViewPosition": "", "PatientPosition": "RL"},
    "body part is KNEE": {"BodyPartExamined": "KNEE"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_model_was_not_made_for_is_refused(reason: str, tmp_path: Path) -> None:
    path = dx(tmp_path, GREY, PixelSpacing=[1, 1], **REFUSED[reason])
    with pytest.raises(InvalidImageError, match=f"x.dcm: its {reason}; the model takes"):
        load(path)
    [warning] = load(path, allow_any_image=True)["warnings"]
    assert warning.startswith(f"The {reason}, the model takes")
    assert load(path, modalities=["CT", "DX"], body_parts=(), views=())["warnings"] == []


def test_a_view_that_the_model_does_badly_on_gets_a_warning(tmp_path: Path) -> None:
    for view, warned in (("AP", True), ("AP AXIAL", True), ("PA", False)):
        path = dx(tmp_path, GREY, ViewPosition=view, PixelSpacing=[1, 1])
        warnings = load(path, doubtful_views={"AP": "it is not told"})["warnings"]
        assert warnings == ["The view is AP: it is not told."] * warned
        assert load(path)["warnings"] == []


def test_a_lateral_view_is_seen_by_its_orientation_or_code(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="its view is LATERAL"):
        load(dx(tmp_path, GREY, ViewPosition="", PatientOrientation=["A", "F"]))
    code = Dataset()
    code.CodeMeaning = "left lateral"
    with pytest.raises(InvalidImageError, match="its view is LEFT LATERAL"):
        load(dx(tmp_path, GREY, ViewPosition="", ViewCodeSequence=[code]))
    code.CodeMeaning = "postero-anterior"
    assert load(dx(tmp_path, GREY, ViewPosition="", PixelSpacing=[1, 1], ViewCodeSequence=[code]))["warnings"] == []


def test_what_is_named_as_lateral_is_refused(tmp_path: Path) -> None:
    """Of every kind of file that says nothing of its view."""
    slice_ = nib.Nifti1Image(GREY.T[..., None], np.diag([-2, -3, 7, 1]))
    nib.save(slice_, tmp_path / "chest_lateral.nii.gz")
    for name in ("view2_lateral.png", "LAT.png", "x-lat-1.png", "chest_lateral.nii.gz"):
        path = str(tmp_path / name) if name.endswith(".nii.gz") else picture(tmp_path, GREY, name)
        with pytest.raises(InvalidImageError, match=f"{name}: is named as a lateral view; the model takes AP or PA"):
            load(path)
        assert "is named as a lateral view" in load(path, allow_any_image=True)["warnings"][0]
        assert len(load(path, views=())["warnings"]) == (1 if name.endswith(".png") else 0)
    load(picture(tmp_path, GREY, "plate_bilateral.png"))
    nib.save(slice_, tmp_path / "chest.nii")
    assert (
        "doesn't name its view; whether it is AP or PA was not checked"
        in load(str(tmp_path / "chest.nii"))["warnings"][0]
    )


@pytest.mark.parametrize(
    ("kind", "marked"),
    [("unknown.png", {"lesion_pixels": 4.0}), ("known.dcm", {"lesion_cm2": 0.24}), ("one.nii", {"lesion_cm2": 0.24})],
)
def test_what_is_marked_in_a_picture_is_an_area(kind: str, marked: dict[str, float], tmp_path: Path) -> None:
    """A picture has no thickness, whatever the header of a file of one slice says."""
    path = str(tmp_path / kind)
    if kind == "one.nii":
        nib.save(nib.Nifti1Image(GREY.T[..., None], np.diag([-2, -3, 7, 1])), path)
    else:
        path = dx(tmp_path, GREY, PixelSpacing=[3, 2]) if kind == "known.dcm" else picture(tmp_path, GREY, kind)
    image = load(path)["image"]
    labels = MetaTensor(torch.zeros(image.shape, dtype=torch.uint8), affine=image.affine)
    labels[0, 3:5, 7:9] = 1
    found = measured({"input_image": image, "pred": labels, "slices": []})
    assert {k: v for k, v in found.items() if k.startswith("lesion")} == pytest.approx(marked)


def test_what_a_file_leaves_out_is_said(tmp_path: Path) -> None:
    about = {"PixelSpacing": [1, 1], "PatientOrientation": ["R", "F"], "BurnedInAnnotation": "YES"}
    warnings = load(dx(tmp_path, GREY, ViewPosition=None, BodyPartExamined=None, **about))["warnings"]
    for said, words in zip(
        warnings,
        ("THORAX was not checked", "AP or PA was not checked", "turned or mirrored", "burned into"),
        strict=True,
    ):
        assert words in said
    assert load(dx(tmp_path, GREY, ViewPosition="AP PORTABLE", BodyPartExamined="PORT CHEST"))["warnings"][1:] == []


def test_no_single_grey_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="x.dcm: holds 2 frames"):
        load(dx(tmp_path, np.concatenate([GREY, GREY]), Rows=ROWS, NumberOfFrames=2))
    with pytest.raises(InvalidImageError, match="x.dcm: is a coloured|x.dcm: is a colour picture"):
        load(dx(tmp_path, GREY, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0))
    with pytest.raises(InvalidImageError, match="x.dcm: is a DICOM object without pixels"):
        load(dx(tmp_path, GREY, PixelData=None))
    with pytest.raises(InvalidImageError, match="its pixels can't be read .* complete"):
        load(dx(tmp_path, GREY, PixelData=b"\0" * 100))
    with pytest.raises(InvalidImageError, match="its lookup tables or its window can't be used"):
        load(dx(tmp_path, GREY, WindowCenter=5, WindowWidth=0))


def test_models_of_volumes_and_of_pictures_say_what_they_take(tmp_path: Path) -> None:
    path = picture(tmp_path, GREY)
    with pytest.raises(InvalidImageError, match="x.png: is not of a format that the model takes"):
        load(path, modalities=["MR"])
    volume, one = str(tmp_path / "v.nii"), str(tmp_path / "one.nii")
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((40, 40, 3), np.float32), np.eye(4)), volume)
    with pytest.raises(
        InvalidImageError, match=r"v.nii: is a volume of \(40, 40, 3\) voxels; the model takes pictures"
    ):
        load(volume)
    nib.save(nib.Nifti1Image(GREY.T[..., None], np.diag([-0.2, -0.3, 1, 1])), one)
    np.testing.assert_array_equal(pixels(one), GREY)


@pytest.mark.parametrize("kind", ["x.png", "x.dcm", "exif.jpg"])
def test_results_lie_on_the_pixels_of_the_picture(kind: str, tmp_path: Path) -> None:
    about: dict[str, Any] = {}
    if kind == "x.dcm":
        path = dicom.save(dicom.image(GREY, PixelSpacing=[0.3, 0.2], PatientOrientation=["R", "F"]), tmp_path / kind)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        about = {"exif": exif} if kind == "exif.jpg" else {}
        path = picture(tmp_path, GREY, kind, **about)
    image = load(path)["image"]
    labels = MetaTensor(torch.zeros(image.shape, dtype=torch.uint8), affine=image.affine)
    labels[0, 7, 2, 0], labels[0, 30, 3, 0] = 1, 2  # column and row
    assert is_of_picture(labels, path)
    save_labels_png(labels, tmp_path / "pred.png")
    with Image.open(tmp_path / "pred.png") as saved:
        assert saved.size == ((ROWS, COLUMNS) if kind == "exif.jpg" else (COLUMNS, ROWS))
        values = np.asarray(saved)
        assert values[2, 7] == 1 and values[3, 30] == 2 and (values > 0).sum() == 2
        shown = np.asarray(saved.convert("RGBA"))
    assert shown[0, 0, 3] == 0 and shown[2, 7].tolist() == [255, 64, 64, 255]
    save_nifti(labels, path, tmp_path / "pred.nii.gz")
    result = nib.load(tmp_path / "pred.nii.gz")
    np.testing.assert_array_equal(np.asarray(result.dataobj), labels[0].numpy())
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-6)
    again = load(str(tmp_path / "pred.nii.gz"))["image"]
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-6)


def test_colours_by_a_palette_are_refused(tmp_path: Path) -> None:
    """Their numbers say nothing of brightness: a table that falls would show a negative."""
    with pytest.raises(InvalidImageError, match="x.dcm: its pixels are PALETTE COLOR"):
        load(dx(tmp_path, GREY, PhotometricInterpretation="PALETTE COLOR"))


def test_pixels_that_are_not_square_need_a_size(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidImageError, match="its pixels are not square .PixelAspectRatio 1:2., and their size is not"
    ):
        load(dx(tmp_path, GREY, PixelAspectRatio=[1, 2]))
    assert load(dx(tmp_path, GREY, PixelAspectRatio=[1, 1]))["image"].shape[0] == 1
    sized = load(dx(tmp_path, GREY, PixelAspectRatio=[1, 2], PixelSpacing=[0.2, 0.4]))["image"]
    assert sized.pixdim.tolist() == pytest.approx([0.4, 0.2, 1.0])
    # one spacing of zeros, another one that says it
    found = load(dx(tmp_path, GREY, PixelSpacing=[0, 0], ImagerPixelSpacing=[0.33, 0.22]))["image"]
    assert found.pixdim.tolist() == pytest.approx([0.22, 0.33, 1.0])


def test_what_does_not_look_like_a_radiograph_gets_a_warning() -> None:
    """Of pictures on the networks' grid, axes first: the mean radiograph itself, and what is made of it."""
    mean = torch.tensor(MODEL["mean"]).float().mT / 100
    noise = torch.rand(24, 24, generator=torch.Generator().manual_seed(0))

    def warned(picture: torch.Tensor) -> bool:
        picture = picture.repeat_interleave(4, 0).repeat_interleave(4, 1)
        d = CheckRadiographd("image")({"image": MetaTensor(picture[None, :, :, None])})
        return "does not look like a frontal radiograph of a chest" in " ".join(d.get("warnings", []))

    assert not any(map(warned, (mean, mean + 0.5, 0.2 * mean, mean + 0.3 * noise, mean.flip(0))))
    others = (-mean, mean.flip(1), mean.rot90(), mean.rot90(-1), noise, torch.zeros(24, 24))
    assert all(map(warned, others))
    framed = torch.ones(24, 24)
    framed[4:-4, 4:-4] = torch.nn.functional.interpolate(mean[None, None], (16, 16), mode="area")[0, 0]
    assert warned(framed)


def test_correlation_is_pearsons() -> None:
    a, b = torch.rand(2, 8, 8), torch.rand(4, 4)
    small = a.reshape(2, 4, 2, 4, 2).mean(dim=(2, 4))
    expected = [float(np.corrcoef(s.flatten(), b.flatten())[0, 1]) for s in small]
    np.testing.assert_allclose(correlation(a, b).numpy(), expected, atol=1e-5)
