"""A radiograph's mask as DICOM: on the image's own pixels, with no place in space, and as a picture for every viewer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.uid import SecondaryCaptureImageStorage

import dicom
from scripts.dicom.overlay import overlay
from scripts.dicom.segmentation import segmentation
from scripts.dicom.series import read_images
from scripts.images.radiographs import read_radiograph
from scripts.images.restoring import COLOURS
from scripts.running.dicom_objects import check_dicom_inputs, write_dicom_objects

ROWS, COLUMNS = 90, 120
GREY = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS)).astype(np.uint8)
MASK = np.zeros((ROWS, COLUMNS), np.uint8)
MASK[50:60, 20:50] = 1
MASK[70:75, 100:120] = 2
SAID: dict[str, Any] = {"version": "1", "score": 0.25}
CAPTURE: dict[str, Any] = {"SOPClassUID": SecondaryCaptureImageStorage, "PixelSpacing": None, "PatientAge": "77"}


def images(folder: Path, array: np.ndarray = GREY, **attributes: Any) -> list[pydicom.Dataset]:
    made = dicom.image(array, PixelSpacing=[0.3, 0.2])
    for keyword, value in attributes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return read_images(dicom.save(made, folder / "x.dcm"))


def on_grid(radiograph: list[pydicom.Dataset], rows: np.ndarray = MASK) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns as a volume with the affine of the radiograph."""
    affine = read_radiograph(str(radiograph[0].filename), ()).affine.numpy()
    return np.ascontiguousarray(rows.T[:, :, None]), affine


@pytest.mark.parametrize(
    "about", [{}, {"PatientOrientation": ["R", "F"]}, CAPTURE], ids=["plain", "mirrored", "capture"]
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_has_the_pixels_of_its_radiograph(about: dict[str, Any], turned: bool, tmp_path: Path) -> None:
    radiograph = images(tmp_path, **about)
    array, affine = on_grid(radiograph)
    if turned:  # as a program that stores axes otherwise gives it
        array = array[::-1].transpose(1, 0, 2)
        affine = affine @ np.array([[0, -1, 0, COLUMNS - 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    found = segmentation(radiograph, array, affine, **SAID)
    np.testing.assert_array_equal(found.pixel_array, np.stack([MASK == 1, MASK == 2]))
    assert "FrameOfReferenceUID" not in found and "PixelMeasuresSequence" not in str(found)
    [source] = found.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    assert source.ReferencedSOPInstanceUID == radiograph[0].SOPInstanceUID
    assert source.SpatialLocationsPreserved == "YES"
    [reference] = found.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == radiograph[0].SeriesInstanceUID
    [region] = found.SegmentSequence[0].AnatomicRegionSequence
    assert region.CodeMeaning == "Chest"


def test_what_the_file_says_of_its_place_is_taken_over(tmp_path: Path) -> None:
    radiograph = images(tmp_path, FrameOfReferenceUID="1.2.3", BodyPartExamined="HAND", PatientOrientation=["L", "F"])
    found = segmentation(radiograph, *on_grid(radiograph), **SAID)
    assert found.FrameOfReferenceUID == radiograph[0].FrameOfReferenceUID == "1.2.3"
    assert found.PatientOrientation == ["L", "F"]
    assert "AnatomicRegionSequence" not in found.SegmentSequence[0]


def test_a_mask_of_another_picture_is_refused(tmp_path: Path) -> None:
    radiograph = images(tmp_path)
    array, affine = on_grid(radiograph)
    for wrong in ((array[1:], affine), (array, affine @ np.diag([2, 2, 1, 1])), (array[..., 0], affine)):
        with pytest.raises(ValueError, match="does not lie on the pixels of the radiograph"):
            segmentation(radiograph, *wrong, **SAID)


def test_the_outline_is_drawn_within_what_it_encloses(tmp_path: Path) -> None:
    large = np.kron(GREY, np.ones((10, 10))).astype(np.uint8)
    radiograph = images(tmp_path, 255 - large, PhotometricInterpretation="MONOCHROME1")
    mask = np.kron(MASK, np.ones((10, 10))).astype(np.uint8)
    found = overlay(radiograph, *on_grid(radiograph, mask), warnings=["Look twice."], **SAID)
    picture = found.pixel_array
    assert picture.shape == (*large.shape, 3) and found.Modality == "OT"
    for label, colour in COLOURS.items():
        drawn = (picture == colour).all(-1)
        assert drawn.any() and (mask[drawn] == label).all()
        assert drawn.sum() < 0.3 * (mask == label).sum()
    inside = (slice(520, 580), slice(220, 480))
    np.testing.assert_allclose(picture[(*inside, 0)], large[inside], atol=8)  # all else is grey, bright where it was
    assert (picture[:20, :200] == 255).any() and "CHECK" in found.SeriesDescription
    assert found.SeriesDescription.startswith("AI 0.250") and "Look twice." in found.DerivationDescription
    assert found.SourceImageSequence[0].ReferencedSOPInstanceUID == radiograph[0].SOPInstanceUID


@pytest.mark.parametrize("about", [{}, CAPTURE, {"FrameOfReferenceUID": "1.2.3"}], ids=["plain", "capture", "frame"])
def test_objects_are_without_fault_for_dciodvfy(about: dict[str, Any], tmp_path: Path) -> None:
    tool = shutil.which("dciodvfy")
    if tool is None:
        assert os.environ.get("CI") != "true"
        pytest.skip("`make viewers` installs dicom3tools, which has dciodvfy")
    radiograph = images(tmp_path, **about)
    placed = on_grid(radiograph)
    found = {"overlay": overlay(radiograph, *placed, **SAID)}
    found["automatic"] = segmentation(radiograph, *placed, **SAID)
    found["reviewed"] = segmentation(radiograph, placed[0] == 1, placed[1], version="1", algorithm=False)
    for name, dataset in found.items():
        dataset.save_as(tmp_path / f"{name}.dcm")
        said = subprocess.run([tool, str(tmp_path / f"{name}.dcm")], capture_output=True, text=True).stderr
        assert [line for line in said.splitlines() if line.startswith("Error")] == [], name


def test_the_command_line_writes_both(tmp_path: Path) -> None:
    radiograph = images(tmp_path)
    items = [{"image": str(tmp_path / "x.dcm")}, {"image": "picture.png"}]
    check_dicom_inputs(items)
    assert "error" not in items[0]
    assert items[1]["error"].startswith("picture.png: is no DICOM image, nor a folder with a series of them")
    array, affine = on_grid(radiograph)
    labels = MetaTensor(
        torch.from_numpy(array)[None], affine=torch.from_numpy(affine), meta={"source": items[0]["image"]}
    )
    result = {"pred": labels, "anomaly_map": labels.float(), "input_image": labels, "slices": [], "warnings": []}
    write_dicom_objects(result, {"threshold": 0.3}, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.dcm")) == ["overlay.dcm", "segmentation.dcm", "x.dcm"]
    found = pydicom.dcmread(tmp_path / "segmentation.dcm")
    np.testing.assert_array_equal(found.pixel_array, np.stack([MASK == 1, MASK == 2]))
    algorithm = found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmParameters == "threshold=0.3"
