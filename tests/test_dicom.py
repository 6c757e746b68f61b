"""DICOM: exact geometry both ways, the codes and references of what is written, and errors that say what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicomweb_client import DICOMwebClient
from highdicom._iods import IOD_MODULE_MAP
from highdicom._modules import MODULE_ATTRIBUTE_MAP
from highdicom.seg import segread
from skimage.color import rgb2lab

from lib.demonstration.mr_series import series_from_nifti
from lib.studies.storing import RefusedError, store
from scripts.dicom.describing import AUTOMATIC_LABEL
from scripts.dicom.parametric_map import NOT_ASSESSED, parametric_map
from scripts.dicom.segmentation import segmentation
from scripts.dicom.series import read_series

SHAPE = (7, 6, 5)


def rotation(*degrees: float) -> np.ndarray:
    matrix = np.eye(3)
    for (i, j), angle in zip(((0, 1), (0, 2), (1, 2)), np.deg2rad(degrees), strict=True):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def grid(matrix: Any, spacing: Any = (1.0, 1.0, 1.0), origin: Any = (-31.5, 22.25, 10.125)) -> np.ndarray:
    return nib.affines.from_matvec(np.asarray(matrix) @ np.diag(spacing), origin)


GRIDS: dict[str, tuple[tuple[int, int, int], np.ndarray]] = {
    "plain": (SHAPE, grid(np.eye(3))),
    "anisotropic": (SHAPE, grid(np.eye(3), (0.4297, 0.9, 6.5))),
    "oblique": (SHAPE, grid(rotation(17, -11, 23), (1.1, 0.9, 4.7))),
    "flipped": (SHAPE, grid(np.diag([-1, -1, -1]), (2.0, 2.0, 5.0))),
    "left-handed": (SHAPE, grid(np.diag([-1, 1, 1]) @ rotation(5, 6, 7), (2.0, 2.5, 5.0))),
    "sagittal": ((4, 6, 7), grid(np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]]), (2.0, 1.5, 3.0))),
    "one slice": ((7, 6, 1), grid(rotation(3, 4, 5), (2.0, 2.5, 5.0))),
}
ON_EVERY_GRID = pytest.mark.parametrize("name", GRIDS)
OBLIQUE = GRIDS["oblique"][1]


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def numbers(shape: tuple[int, int, int]) -> np.ndarray:
    """Every voxel another value, so that no flip or permutation goes unseen."""
    return np.random.default_rng(0).permutation(int(np.prod(shape))).astype(np.int16).reshape(shape)


def write_series(folder: Path, name: str = "oblique", description: str = "FLAIR", **keywords: Any) -> list[Path]:
    shape, affine = GRIDS[name]
    folder.mkdir(exist_ok=True)
    path = write_nifti(folder / f"{name}.nii.gz", numbers(shape), affine)
    keywords = {"patient_id": "P1", "patient_name": "Doe^Jane", **keywords}
    return series_from_nifti(path, folder / description, series_description=description, **keywords)


def itk_image(paths: list[Path]) -> nib.Nifti1Image:
    """A series as ITK sees it, which is what MONAI Label works on."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(paths[0].parent)))
    return as_nifti(reader.Execute())


def as_nifti(image: sitk.Image) -> nib.Nifti1Image:
    matrix = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ nib.affines.from_matvec(matrix, image.GetOrigin())
    return nib.Nifti1Image(sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine, dtype=np.float64)


def assert_same(a: nib.Nifti1Image, b: nib.Nifti1Image, atol: float = 0) -> None:
    """The same values at the same places, whichever way the axes run."""
    a, b = nib.as_closest_canonical(a), nib.as_closest_canonical(b)
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(a.dataobj), np.asarray(b.dataobj), atol=atol, rtol=0)


def reread(dataset: pydicom.Dataset, folder: Path) -> pydicom.Dataset:
    folder.mkdir(exist_ok=True)
    dataset.save_as(folder / "object.dcm")
    return pydicom.dcmread(folder / "object.dcm")


def frames(dataset: pydicom.Dataset) -> np.ndarray:
    return dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)


def on_nifti(dataset: pydicom.Dataset, shape: tuple[int, int, int], affine: np.ndarray, segment: int = 1) -> np.ndarray:
    """A multi-frame object's pixels at the NIfTI's indices, from the object's own positions alone; NaN is unfilled."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    across, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    out = np.full(shape, np.nan)
    to_index = np.linalg.inv(affine) @ np.diag([-1, -1, 1, 1])
    j, i = np.indices((dataset.Rows, dataset.Columns))[..., None]
    for frame, item in zip(frames(dataset), dataset.PerFrameFunctionalGroupsSequence, strict=True):
        identification = item.get("SegmentIdentificationSequence")
        if identification and identification[0].ReferencedSegmentNumber != segment:
            continue
        origin = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        index = nib.affines.apply_affine(to_index, origin + across * spacing[1] * i + down * spacing[0] * j)
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        out[tuple(np.rint(index).astype(int).reshape(-1, 3).T)] = frame.ravel()
    return out


def code(item: pydicom.Dataset) -> tuple[str, str, str]:
    return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning


def assert_complete(dataset: pydicom.Dataset, iod: str) -> None:
    """The attributes that the standard's tables require at the root, type 1 with a value, type 2 at least empty."""
    for module in IOD_MODULE_MAP[iod]:
        for attribute in MODULE_ATTRIBUTE_MAP[module["key"]] if module["usage"] == "M" else []:
            if not attribute["path"] and attribute["type"] in ("1", "2"):
                assert attribute["keyword"] in dataset, (module["key"], attribute)
                assert attribute["type"] == "2" or not dataset[attribute["keyword"]].is_empty, attribute


# -- a NIfTI volume as a series


@ON_EVERY_GRID
def test_itk_reads_back_the_grid_and_the_values(name: str, tmp_path: Path) -> None:
    paths = write_series(tmp_path, name)
    assert len(paths) == GRIDS[name][0][2]
    assert_same(itk_image(paths), nib.load(tmp_path / f"{name}.nii.gz"))


def test_geometry_and_pixels_have_the_known_numbers(tmp_path: Path) -> None:
    array = numbers((3, 4, 2))
    affine = grid(np.diag([-1, -1, 1]), (2.0, 3.0, 5.0), (10.0, 20.0, -30.0))
    path = write_nifti(tmp_path / "a.nii", array, affine)
    paths = series_from_nifti(
        path, tmp_path / "d", series_description="FLAIR", patient_id="P1", patient_name="Doe^Jane", series_number=4
    )
    first, second = (pydicom.dcmread(p) for p in paths)
    assert list(first.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    assert list(first.ImagePositionPatient) == [-10, -20, -30] and list(second.ImagePositionPatient) == [-10, -20, -25]
    assert list(first.PixelSpacing) == [3, 2] and first.SliceThickness == 5 and first.SpacingBetweenSlices == 5
    assert (first.Rows, first.Columns) == (4, 3)
    assert (second.pixel_array == array[:, :, 1].T).all() and second.pixel_array.dtype == np.uint16
    assert "RescaleSlope" not in first
    assert first.Modality == "MR" and first.SeriesNumber == 4 and first.SOPClassUID.name == "MR Image Storage"
    assert first.StudyDescription == "Brain MR, converted from NIfTI"


def test_what_the_mr_image_iod_requires_is_there(tmp_path: Path) -> None:
    assert_complete(pydicom.dcmread(write_series(tmp_path)[0]), "mr-image")


def test_uids_follow_from_patient_and_description(tmp_path: Path) -> None:
    flair = [pydicom.dcmread(p) for p in write_series(tmp_path / "a")]
    again = [pydicom.dcmread(p) for p in write_series(tmp_path / "b")]
    t1 = [pydicom.dcmread(p) for p in write_series(tmp_path / "a", description="T1")]
    other = [pydicom.dcmread(p) for p in write_series(tmp_path / "c", patient_id="P2")]
    assert [d.SOPInstanceUID for d in flair] == [d.SOPInstanceUID for d in again]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({d[keyword].value for d in flair + t1}) == 1
        assert flair[0][keyword].value != other[0][keyword].value
    assert len({d.SeriesInstanceUID for d in flair + t1 + other}) == 3
    assert len({d.SOPInstanceUID for d in flair + t1 + other}) == 15
    given = pydicom.dcmread(write_series(tmp_path / "d", study_uid="1.2.3", series_uid="1.2.3.4")[0])
    assert (given.StudyInstanceUID, given.SeriesInstanceUID) == ("1.2.3", "1.2.3.4")


@pytest.mark.parametrize(
    ("low", "high", "intercept"),
    [(0.0, 1.0, 0.0), (200.25, 70000.0, 0.0), (-5.0, 5.0, -5.0), (3.5, 3.5, 0.0), (-2.0, -2.0, -2.0)],
)
def test_other_intensities_are_scaled_and_come_back(low: float, high: float, intercept: float, tmp_path: Path) -> None:
    array = np.linspace(low, high, int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)
    path = write_nifti(tmp_path / "a.nii", array, OBLIQUE)
    paths = series_from_nifti(path, tmp_path / "d", series_description="a", patient_id="P1", patient_name="A^B")
    dataset = pydicom.dcmread(paths[0])
    assert dataset.RescaleIntercept == intercept and dataset.RescaleSlope > 0
    assert_same(itk_image(paths), nib.load(path), atol=(high - intercept) / 65535 * 0.51 + 1e-6)
    assert dataset.WindowWidth > 0 and low - 1e-6 <= dataset.WindowCenter <= high + 1e-6


def unknown_orientation(path: Path) -> None:
    image = nib.Nifti1Image(numbers(SHAPE), None)
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    nib.save(image, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: write_nifti(p, np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), "4 dimensions"),
        (lambda p: write_nifti(p, np.full(SHAPE, np.nan, np.float32), np.eye(4)), "NaN"),
        (lambda p: write_nifti(p, numbers(SHAPE), grid([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])), "not perpendicular"),
        (unknown_orientation, "orientation is unknown"),
    ],
)
def test_a_volume_that_dicom_cannot_hold_is_named(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.nii")
    with pytest.raises(ValueError, match=rf"a\.nii: .*{message}"):
        series_from_nifti(
            tmp_path / "a.nii", tmp_path / "d", series_description="a", patient_id="P1", patient_name="A^B"
        )


# -- reading a series


@ON_EVERY_GRID
def test_slices_come_in_the_order_of_their_positions(name: str, tmp_path: Path) -> None:
    paths = write_series(tmp_path, name)
    for path, new in zip(paths, np.random.default_rng(1).permutation(len(paths)), strict=True):
        path.rename(path.with_name(f"{new}"))
    (paths[0].parent / ".DS_Store").touch()
    series = read_series(paths[0].parent)
    across, down = np.array(series[0].ImageOrientationPatient, float).reshape(2, 3)
    heights = np.array([np.cross(across, down) @ np.array(d.ImagePositionPatient, float) for d in series])
    np.testing.assert_allclose(np.diff(heights), np.full(len(paths) - 1, float(series[0].SliceThickness)), atol=1e-6)
    assert {d.InstanceNumber for d in series} == set(range(1, len(paths) + 1))


def drop(path: Path, *keywords: str) -> None:
    dataset = pydicom.dcmread(path)
    for keyword in keywords:
        del dataset[keyword]
    dataset.save_as(path)


def change(path: Path, keyword: str, value: Any) -> None:
    dataset = pydicom.dcmread(path)
    setattr(dataset, keyword, value)
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p[2].write_bytes(b"not DICOM"), r"IM0003\.dcm: is not a DICOM file"),
        (lambda p: p[2].write_bytes(p[2].read_bytes()[:-30]), r"IM0003\.dcm: ends before its last pixel"),
        (
            lambda p: p[2].write_bytes(p[2].read_bytes()[:500]),
            r"IM0003\.dcm: (can't be read|is a DICOM object without pixels)",
        ),
        (
            lambda p: drop(p[2], "ImagePositionPatient"),
            r"IM0003\.dcm: is not a slice with a position .*no ImagePosition",
        ),
        (lambda p: drop(p[2], "PixelData"), r"IM0003\.dcm: is a DICOM object without pixels"),
        (
            lambda p: change(p[2], "SeriesInstanceUID", "1.2.3"),
            r"holds 2 series: 'FLAIR' \(4 images\), 'FLAIR' \(1 images\)",
        ),
        (lambda p: change(p[2], "PixelSpacing", [1, 2]), r"IM0003\.dcm: its PixelSpacing .* differs"),
        (lambda p: change(p[2], "Rows", 3), r"IM0003\.dcm: its Rows 3 differs from 6"),
        (lambda p: shutil.copy(p[2], p[2].with_name("IM0009.dcm")), r"IM0009\.dcm: lies at the position of IM0003"),
        (lambda p: [path.unlink() for path in p], "no DICOM file lies in this folder"),
        (lambda p: shutil.rmtree(p[0].parent), "no DICOM file lies in this folder"),
    ],
)
def test_a_series_that_cannot_be_used_is_named(
    spoil: Callable[[list[Path]], Any], message: str, tmp_path: Path
) -> None:
    paths = write_series(tmp_path)
    spoil(paths)
    with pytest.raises(ValueError, match=message):
        read_series(paths[0].parent)


def move(paths: list[Path], offsets: Any) -> None:
    """Shift slices, by mm along rows, columns and normal: ``(slices, 3)``."""
    for path, offset in zip(paths, offsets, strict=True):
        dataset = pydicom.dcmread(path)
        row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        shift = np.asarray(offset) @ np.stack([row, column, np.cross(row, column)])
        place = np.array(dataset.ImagePositionPatient, float) + shift
        change(path, "ImagePositionPatient", [f"{v:.4f}" for v in place])


# slices of the oblique series lie 4.7 mm apart, its pixels measure 1.1 by 0.9 mm
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p[1].unlink(), r"d/FLAIR: 1 missing image\(s\) between instance numbers 1 and 3\. Only evenly"),
        (lambda p: [p[1].unlink(), p[2].unlink()], r"uneven spacing, from 4\.70 to 14\.10 mm"),
        (lambda p: move(p, [(0, 0, z) for z in (0, 0, 0, 2, 4)]), r"uneven spacing, from 4\.70 to 6\.70 mm"),
        (lambda p: move(p, [(0, 4.7 * k * np.tan(np.deg2rad(15)), 0) for k in range(5)]), r"tilt of 15\.0 degrees"),
        (
            lambda p: move(p, [(0, 0, 0), (0, 0, 0), (3, 0, 0), (0, 0, 0), (0, 0, 0)]),
            r"shifted sideways by up to 3\.0 mm",
        ),
        (lambda p: move(p, [(0, 0, 0), (0, 0, 0.3), (0, 0, 0), (0, 0, 0), (0, 0, 0)]), r"uneven spacing"),
    ],
    ids=["one missing", "two missing", "varying", "tilt", "one shifted", "over the tolerance"],
)
def test_slices_that_are_not_evenly_stacked_are_refused(
    spoil: Callable[[list[Path]], Any], message: str, tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "d")
    spoil(paths)
    with pytest.raises(ValueError, match=message):
        read_series(paths[0].parent)


def test_positions_that_are_rounded_are_even(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    move(paths, [(0, 0.02, 0), (0.03, 0, 0.1), (0, 0, 0), (0, 0.01, -0.1), (0.02, 0, 0)])
    assert len(read_series(paths[0].parent)) == 5


def test_a_single_slice_without_any_thickness_is_named(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, "one slice")
    drop(path, "SliceThickness", "SpacingBetweenSlices")
    with pytest.raises(ValueError, match=r"IM0001\.dcm: is a single slice without a Slice Thickness"):
        read_series(path.parent)


# -- a mask as a segmentation


def blob(shape: tuple[int, int, int]) -> np.ndarray:
    """Not symmetric in any axis."""
    mask = np.zeros(shape, bool)
    mask[1:3, 2:5, 0] = True
    mask[4:, 0, -1] = True
    mask[-1, 1, :] = True
    return mask


def reorient(array: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    image = nib.Nifti1Image(array.astype(np.float64), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axes)))
    image = image.as_reoriented(turn)
    return np.asarray(image.dataobj), image.affine


@ON_EVERY_GRID
@pytest.mark.parametrize("axes", [None, "RAS", "LPS", "SLA", "PIR"])
def test_a_mask_lies_where_its_affine_says(name: str, axes: str | None, tmp_path: Path) -> None:
    shape, affine = GRIDS[name]
    mask = blob(shape)
    given, given_affine = reorient(mask, affine, axes) if axes else (mask, affine)
    series = read_series(write_series(tmp_path, name)[0].parent)
    dataset = segmentation(series, given.astype(np.uint8), given_affine, version="1")
    read = reread(dataset, tmp_path / "out")
    assert read.NumberOfFrames == shape[2]
    np.testing.assert_array_equal(on_nifti(read, shape, affine), mask)


@pytest.mark.parametrize("name", ["oblique", "one slice"])
def test_a_mask_on_the_grid_of_itks_reader_fits(name: str, tmp_path: Path) -> None:
    shape, affine = GRIDS[name]
    paths = write_series(tmp_path, name)
    image = itk_image(paths)
    nib.save(image, tmp_path / "itk.nii.gz")
    mask = np.asarray(image.dataobj) > 100
    read = reread(
        segmentation(read_series(paths[0].parent), mask, nib.load(tmp_path / "itk.nii.gz").affine, version="1"),
        tmp_path / "out",
    )
    np.testing.assert_array_equal(on_nifti(read, shape, affine), numbers(shape) > 100)


def test_an_automatic_segmentation_says_what_it_is(tmp_path: Path) -> None:
    series = read_series(write_series(tmp_path, patient_name="Müller^Jürgen")[0].parent)
    dataset = segmentation(series, blob(SHAPE), OBLIQUE, score=0.3142, version="1.2.0")
    read = reread(dataset, tmp_path / "out")
    assert_complete(read, "segmentation")
    assert (read.Modality, read.SegmentationType) == ("SEG", "BINARY")
    assert read.SeriesDescription == "AI 0.314 anomaly of FLAIR, not for clinical use"
    assert read.ContentLabel == AUTOMATIC_LABEL == "ANOMALY_AI"
    (segment,) = segread(tmp_path / "out" / "object.dcm").SegmentSequence
    assert segment.SegmentLabel == "anomaly" and segment.SegmentAlgorithmType == "AUTOMATIC"
    assert code(segment.SegmentedPropertyCategoryCodeSequence[0]) == (
        "49755003",
        "SCT",
        "Morphologically Abnormal Structure",
    )
    assert code(segment.SegmentedPropertyTypeCodeSequence[0]) == ("52988006", "SCT", "Lesion")
    assert code(segment.AnatomicRegionSequence[0]) == ("12738006", "SCT", "Brain")
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == segment.SegmentAlgorithmName == "Diffusion anomaly detection"
    assert algorithm.AlgorithmVersion == read.SoftwareVersions == "1.2.0"
    assert code(algorithm.AlgorithmFamilyCodeSequence[0]) == ("123110", "DCM", "Artificial Intelligence")
    assert str(read.PatientName) == "Müller^Jürgen"


@pytest.mark.parametrize(
    ("part", "region"),
    [
        (None, "Brain"),
        ("BRAIN", "Brain"),
        ("HEAD", "Brain"),
        ("SKULL", "Brain"),
        ("HEADNECK", "Brain"),
        ("Kopf", "Brain"),
        ("KNEE", "Knee"),
        ("Prostate", "Prostate"),
        ("CHEST", "Chest"),
        ("CERVICAL SPINE", "Cervical spine"),
    ],
)
def test_a_series_that_names_another_part_of_the_body_is_not_called_a_brain(
    part: str | None, region: str, tmp_path: Path
) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    for image in series:
        image.BodyPartExamined = part
    [found] = make_seg(series).SegmentSequence[0].AnatomicRegionSequence
    [mapped] = make_map(series).SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0].AnatomicRegionSequence
    assert code(found) == code(mapped) and found.CodeMeaning == region


def test_a_readers_segmentation_names_no_algorithm(tmp_path: Path) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    dataset = segmentation(series, blob(SHAPE), OBLIQUE, version="1", algorithm=False)
    read = reread(dataset, tmp_path / "out")
    assert (read.SeriesDescription, read.ContentLabel) == ("anomaly of FLAIR (reviewed)", "ANOMALY")
    (segment,) = read.SegmentSequence
    assert segment.SegmentAlgorithmType == "MANUAL"
    assert "SegmentAlgorithmName" not in segment and "SegmentationAlgorithmIdentificationSequence" not in segment


def make_seg(series: list[pydicom.Dataset]) -> pydicom.Dataset:
    return segmentation(series, blob(SHAPE), OBLIQUE, version="1")


def make_map(series: list[pydicom.Dataset]) -> pydicom.Dataset:
    return parametric_map(series, blob(SHAPE) * 0.5, OBLIQUE, version="1", score=0.2)


@pytest.mark.parametrize("make", [make_seg, make_map])
def test_every_instance_is_referenced_in_the_same_study(make: Callable[..., pydicom.Dataset], tmp_path: Path) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    one, two = reread(make(series), tmp_path / "one"), reread(make(series), tmp_path / "two")
    (reference,) = one.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == series[0].SeriesInstanceUID
    assert [r.ReferencedSOPInstanceUID for r in reference.ReferencedInstanceSequence] == [
        d.SOPInstanceUID for d in series
    ]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDescription"):
        assert one[keyword].value == series[0][keyword].value
    assert len({d.SeriesInstanceUID for d in (one, two, *series)}) == 3
    assert len({d.SOPInstanceUID for d in (one, two, *series)}) == 7


@pytest.mark.parametrize("make", [make_seg, make_map])
def test_attributes_that_archives_drop_are_made_up_for(make: Callable[..., pydicom.Dataset], tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    thickness = float(pydicom.dcmread(paths[0]).SliceThickness)
    for path in paths:
        drop(path, "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "SliceThickness")
    read = reread(make(read_series(paths[0].parent)), tmp_path / "out")
    assert read.PatientBirthDate == "" and read.AccessionNumber == ""
    measures = read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == pytest.approx(thickness, abs=1e-6)


@pytest.mark.parametrize("make", [make_seg, make_map])
@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("PatientSex", "U", ""),
        ("PatientSex", "Unknown", ""),
        ("PatientSex", "O", "O"),
        ("PatientBirthDate", "19500000", ""),
        ("PatientBirthDate", "00000000", ""),
        ("PatientBirthDate", "1950", ""),
        ("PatientBirthDate", "19500102", "19500102"),
        ("StudyDate", "20200000", ""),
        ("StudyTime", "10:11:12", ""),
        ("StudyTime", "101112.5", "101112.5"),
    ],
)
def test_no_mask_is_lost_to_what_anonymisers_write(
    make: Callable[..., pydicom.Dataset], keyword: str, value: str, kept: str, tmp_path: Path
) -> None:
    paths = write_series(tmp_path)
    for path in paths:
        dataset = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            setattr(dataset, keyword, value)
            dataset.save_as(path)
    read = reread(make(read_series(paths[0].parent)), tmp_path / "out")
    assert read[keyword].value == kept and read.PatientID == "P1"


@ON_EVERY_GRID
def test_a_mask_without_a_marked_pixel_is_an_object_like_others(name: str, tmp_path: Path) -> None:
    shape, affine = GRIDS[name]
    series = read_series(write_series(tmp_path, name)[0].parent)
    dataset = segmentation(series, np.zeros(shape, bool), affine, score=0.0, version="1")
    read = reread(dataset, tmp_path / "out")
    assert read.NumberOfFrames == shape[2] and read.SeriesDescription.startswith("AI 0.000 anomaly of FLAIR")
    np.testing.assert_array_equal(on_nifti(read, shape, affine), 0)


def dcmqi(name: str) -> str:
    """The path of one of its commands; the locked requirements have it on Linux on x86_64, where CI runs."""
    tool = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if tool is None:
        assert os.environ.get("CI") != "true"
        pytest.skip("dcmqi is not installed")
    return tool


@pytest.mark.parametrize("name", ["anisotropic", "oblique", "flipped", "sagittal"])
@pytest.mark.parametrize("empty", [False, True])
def test_dcmqi_reads_the_same_mask(name: str, empty: bool, tmp_path: Path) -> None:
    tool = dcmqi("segimage2itkimage")
    shape, affine = GRIDS[name]
    mask = blob(shape) & (not empty)
    series = read_series(write_series(tmp_path, name)[0].parent)
    reread(segmentation(series, mask, affine, version="1"), tmp_path / "seg")
    command = [tool, "--inputDICOM", str(tmp_path / "seg/object.dcm"), "--outputDirectory", str(tmp_path), "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    assert_same(as_nifti(sitk.ReadImage(str(tmp_path / "1.nrrd"))), nib.Nifti1Image(mask.astype(np.uint8), affine))


def shifted(voxels: float) -> np.ndarray:
    return OBLIQUE @ nib.affines.from_matvec(np.eye(3), (voxels, 0, 0))


OFF_GRID: dict[str, tuple[tuple[int, int, int], np.ndarray]] = {
    "shifted by a voxel": (SHAPE, shifted(1.0)),
    "shifted by half a voxel": (SHAPE, shifted(0.5)),
    "shifted by a tenth": (SHAPE, shifted(0.1)),
    "scaled": (SHAPE, OBLIQUE @ np.diag([1.05, 1, 1, 1])),
    "turned": (SHAPE, grid(rotation(17, -11, 24), (1.1, 0.9, 4.7))),
    "a slice less": ((7, 6, 4), OBLIQUE),
    "a row more": ((7, 7, 5), OBLIQUE),
    "axes exchanged": ((6, 7, 5), OBLIQUE),
    "singular": (SHAPE, np.diag([1.0, 1.0, 0.0, 1.0])),
    "not finite": (SHAPE, np.full((4, 4), np.nan)),
}


@pytest.mark.parametrize("name", OFF_GRID)
def test_another_grid_is_refused(name: str, tmp_path: Path) -> None:
    shape, affine = OFF_GRID[name]
    series = read_series(write_series(tmp_path)[0].parent)
    message = r"does not lie on the grid of the series \(5 slices of 6 rows and 7 columns\); resample"
    with pytest.raises(ValueError, match=message):
        segmentation(series, np.zeros(shape, bool), affine, version="1")
    with pytest.raises(ValueError, match=message):
        parametric_map(series, np.zeros(shape), affine, version="1", score=None)


def test_the_rounding_of_a_header_is_not_another_grid(tmp_path: Path) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    read = reread(segmentation(series, blob(SHAPE), shifted(0.02), version="1"), tmp_path / "out")
    np.testing.assert_array_equal(on_nifti(read, SHAPE, OBLIQUE), blob(SHAPE))


def test_labels_and_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    with pytest.raises(ValueError, match=r"other values than 0, 1, 2: \[3\]"):
        segmentation(series, blob(SHAPE) * np.uint8(3), OBLIQUE, version="1")
    with pytest.raises(ValueError, match=r"other values than 0, 1: \[2\]"):
        segmentation(series, blob(SHAPE) * np.uint8(2), OBLIQUE, version="1", algorithm=False)


def test_what_was_not_assessed_is_a_segment_of_its_own(tmp_path: Path) -> None:
    mask = blob(SHAPE).astype(np.uint8)
    mask[0, 0, 3:] = 2
    series = read_series(write_series(tmp_path)[0].parent)
    read = reread(segmentation(series, mask, OBLIQUE, score=0.5, version="1"), tmp_path / "out")
    lesion, other = read.SegmentSequence
    assert (lesion.SegmentLabel, other.SegmentLabel) == ("anomaly", "not assessed")
    assert lesion.SegmentAlgorithmType == other.SegmentAlgorithmType == "AUTOMATIC"
    category, kind = other.SegmentedPropertyCategoryCodeSequence[0], other.SegmentedPropertyTypeCodeSequence[0]
    assert code(category) == ("309825002", "SCT", "Spatial and Relational Concept")
    assert code(kind) == ("NOT_ASSESSED", "99DAB", "Not assessed by the algorithm")
    for number in (1, 2):
        np.testing.assert_array_equal(on_nifti(read, SHAPE, OBLIQUE, number), mask == number)
    # colours as DICOM encodes them: 0 to 100 and -128 to 127 are 0 to 65535
    for item, rgb in ((lesion, (68, 230, 42)), (other, (211, 211, 211))):
        lab = np.array(item.RecommendedDisplayCIELabValue) / 65535 * (100, 255, 255) - (0, 128, 128)
        np.testing.assert_allclose(lab, rgb2lab(np.array(rgb) / 255), atol=0.1)
    assert read.SeriesDate == read.ContentDate != "" and read.SeriesTime == read.ContentTime != ""


LONG = "AX T2 FLAIR propeller fat-saturated post contrast repeated 2"


@pytest.mark.parametrize(
    ("source", "score", "warnings", "options", "mask", "anomaly_map"),
    [
        ("AX T2 FLAIR", 0.0977, [], "", "AI 0.098 anomaly of AX T2 FLAIR, not for clinical use", None),
        ("", 0.0977, [], "", "AI 0.098 anomaly, not for clinical use", "AI 0.098 map, not for clinical use"),
        ("FLAIR", None, [], "", "AI no score anomaly of FLAIR, not for clinical use", None),
        ("FLAIR", 0.5, ["Bright."], "", "AI 0.500 CHECK anomaly of FLAIR, not for clinical use", None),
        ("FLAIR", 0.5, [], "L500 s20 t0.2", None, "AI 0.500 map of FLAIR (L500 s20 t0.2, research)"),
        (LONG, 0.5, [], "", "AI 0.500 anomaly of AX T2 FLAI...epeated 2, not for clinical use", None),
        (
            LONG,
            None,
            ["Bright."],
            "L500 g99.5 s20",
            "AI no score CHECK anomaly of AX T2 FL...eated 2 (L500 g99.5 s20)",
            None,
        ),
        ("FLAIR", None, ["Bright."], "o" * 40, f"AI no score CHECK anomaly ({'o' * 37}", None),
    ],
)
def test_descriptions_begin_with_the_score_and_name_the_source(
    source: str, score: float | None, warnings: list[str], options: str, mask: str, anomaly_map: str, tmp_path: Path
) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    for dataset in series:
        dataset.SeriesDescription = source
    said: Any = {"version": "1", "score": score, "warnings": warnings, "options": options}
    seg = segmentation(series, blob(SHAPE), OBLIQUE, **said)
    pm = parametric_map(series, np.zeros(SHAPE), OBLIQUE, **said)
    assert len(seg.SeriesDescription) <= 64 and len(pm.SeriesDescription) <= 64
    assert mask is None or seg.SeriesDescription == seg.ContentDescription == mask
    assert anomaly_map is None or pm.SeriesDescription == anomaly_map
    assert seg.SegmentSequence[0].get("SegmentDescription", "") == " ".join(warnings)
    assert all(warning in pm.ContentDescription for warning in warnings)


# -- a map as a parametric map


@ON_EVERY_GRID
def test_a_map_comes_back_and_what_was_not_assessed_is_padding(name: str, tmp_path: Path) -> None:
    shape, affine = GRIDS[name]
    values = (numbers(shape) / 300).astype(np.float32)
    values[1:3, 2, :] = np.nan
    given, given_affine = reorient(values, affine, "PSR")
    series = read_series(write_series(tmp_path, name)[0].parent)
    read = reread(parametric_map(series, given, given_affine, version="1", score=0.25), tmp_path / "out")
    assert frames(read).dtype == np.float32 and read.BitsAllocated == 32
    assert read.FloatPixelPaddingValue == read.FloatPixelPaddingRangeLimit == NOT_ASSESSED == -1
    back = on_nifti(read, shape, affine)
    np.testing.assert_array_equal(back, np.where(np.isnan(values), -1, values))


def test_a_map_says_what_it_is_and_stays_out_of_the_list_of_mr_series(tmp_path: Path) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    values = np.full(SHAPE, 0.5)
    values[0, 0, 0] = 1.75
    read = reread(parametric_map(series, values, OBLIQUE, version="1.2.0", score=0.25), tmp_path / "out")
    assert_complete(read, "parametric-map")
    assert read.SOPClassUID.name == "Parametric Map Storage" and read.Modality == "OT"
    assert read.SeriesDescription == "AI 0.250 map of FLAIR, not for clinical use"
    assert list(read.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    assert (read.ContentLabel, read.ContentDescription, read.SoftwareVersions) == (
        "ANOMALY_AI",
        "Score 0.250.",
        "1.2.0",
    )
    shared = read.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    assert mapping.LUTLabel == "ANOMALY" and (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == 0
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == 1.75
    assert code(mapping.MeasurementUnitsCodeSequence[0]) == ("1", "UCUM", "no units")
    (quantity,) = mapping.QuantityDefinitionSequence
    assert code(quantity.ConceptNameCodeSequence[0]) == ("246205007", "SCT", "Quantity")
    assert code(quantity.ConceptCodeSequence[0]) == ("246262008", "SCT", "Score")
    window = shared.FrameVOILUTSequence[0]
    assert (window.WindowCenter, window.WindowWidth, window.VOILUTFunction) == (0.5, 1, "LINEAR_EXACT")
    assert code(shared.FrameAnatomySequence[0].AnatomicRegionSequence[0]) == ("12738006", "SCT", "Brain")


def test_a_map_where_nothing_was_assessed_is_all_padding(tmp_path: Path) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    read = reread(parametric_map(series, np.full(SHAPE, np.nan), OBLIQUE, version="1", score=None), tmp_path / "out")
    assert (frames(read) == -1).all() and read.ContentDescription == "Nothing was assessed."


@pytest.mark.parametrize("value", [-0.1, np.inf])
def test_a_map_with_impossible_values_is_refused(value: float, tmp_path: Path) -> None:
    series = read_series(write_series(tmp_path)[0].parent)
    with pytest.raises(ValueError, match="negative or infinite"):
        parametric_map(series, np.full(SHAPE, value), OBLIQUE, version="1", score=None)


def test_dcmqi_reads_the_same_map(tmp_path: Path) -> None:
    tool = dcmqi("paramap2itkimage")
    values = (numbers(SHAPE) / 300).astype(np.float32)
    series = read_series(write_series(tmp_path)[0].parent)
    reread(parametric_map(series, values, OBLIQUE, version="1", score=None), tmp_path / "map")
    command = [tool, "--inputDICOM", str(tmp_path / "map/object.dcm"), "--outputDirectory", str(tmp_path), "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    assert_same(as_nifti(sitk.ReadImage(str(tmp_path / "pmap.nrrd"))), nib.Nifti1Image(values, OBLIQUE))


# -- storing


@contextmanager
def server(status: int, body: dict[str, Any] | str | None) -> Iterator[tuple[DICOMwebClient, list[bytes]]]:
    """A DICOMweb server with one answer, and what it was sent."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", f"application/dicom+{'xml' if isinstance(body, str) else 'json'}")
            self.end_headers()
            self.wfile.write((body if isinstance(body, str) else json.dumps(body) if body is not None else "").encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    client = DICOMwebClient(f"http://127.0.0.1:{http.server_port}/dicom-web")
    client.set_http_retry_params(retry=False)
    # so that the stub needs not read chunks
    client.set_chunk_size(10**8)
    try:
        yield client, received
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture
def mask(tmp_path: Path) -> pydicom.Dataset:
    return make_seg(read_series(write_series(tmp_path)[0].parent))


def answer(sequence: str, uid: str, reason: int | None = None) -> dict[str, Any]:
    item = {"00081155": {"vr": "UI", "Value": [uid]}}
    if reason is not None:
        item["00081197"] = {"vr": "US", "Value": [reason]}
    return {sequence: {"vr": "SQ", "Value": [item]}}


def test_an_object_that_the_server_lists_is_stored(mask: pydicom.Dataset) -> None:
    with server(200, answer("00081199", mask.SOPInstanceUID)) as (client, received):
        store(client, mask)
    assert b"DICM" in received[0] and mask.SOPInstanceUID.encode() in received[0]


# dicomweb-client sets the reason, a number, as text
@pytest.mark.filterwarnings("ignore:A value of type 'str' cannot be assigned:UserWarning")
def test_an_answer_in_xml_is_understood(mask: pydicom.Dataset) -> None:
    def xml(sequence: str, reason: str = "") -> str:
        value = f'<Value number="1">{mask.SOPInstanceUID}</Value>'
        item = f'<DicomAttribute vr="UI" keyword="ReferencedSOPInstanceUID">{value}</DicomAttribute>{reason}'
        return (
            f'<NativeDicomModel><DicomAttribute vr="SQ" keyword="{sequence}"><Item number="1">{item}</Item>'
            "</DicomAttribute></NativeDicomModel>"
        )

    with server(200, xml("ReferencedSOPSequence")) as (client, _):
        store(client, mask)
    reason = '<DicomAttribute vr="US" keyword="FailureReason"><Value number="1">272</Value></DicomAttribute>'
    with server(202, xml("FailedSOPSequence", reason)) as (client, _), pytest.raises(RuntimeError, match="0x0110"):
        store(client, mask)


def test_a_servers_reason_is_given(mask: pydicom.Dataset) -> None:
    body = answer("00081198", mask.SOPInstanceUID, 0x0122)
    with server(202, body) as (client, _), pytest.raises(RuntimeError) as error:
        store(client, mask)
    for part in (
        "'AI no score anomaly of FLAIR, not for clinical use' was not stored",
        "0x0122",
        "Segmentation Storage",
        "store again",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("body", [None, {}, answer("00081199", "1.2.3")])
def test_an_answer_that_does_not_confirm_is_an_error(body: dict[str, Any] | None, mask: pydicom.Dataset) -> None:
    with server(200, body) as (client, _), pytest.raises(RuntimeError, match="without confirming it.*log"):
        store(client, mask)


@pytest.mark.parametrize("status", [401, 409, 503])
def test_a_refusal_is_an_error_that_says_what_to_check(status: int, mask: pydicom.Dataset) -> None:
    with server(status, None) as (client, _), pytest.raises(RuntimeError, match=f"{status}.*Check that the server"):
        store(client, mask)


@pytest.mark.parametrize(
    ("status", "reason", "final"),
    [
        (202, 0x0122, True),
        (202, 0xA900, True),
        (202, 0xC000, True),
        (202, 0xA700, False),
        (202, 0x0110, False),
        (202, None, False),
        (409, 0x0122, True),
        (409, 0xA700, False),
        (409, 0, False),
        (409, None, False),
        (415, 0, True),
        (401, 0x0122, False),
        (503, 0, False),
    ],
)
def test_a_refusal_for_good_is_told_from_one_that_may_pass(
    status: int, reason: int | None, final: bool, mask: pydicom.Dataset
) -> None:
    body = None if reason == 0 else answer("00081198", mask.SOPInstanceUID, reason)
    with server(status, body) as (client, _), pytest.raises(RuntimeError) as error:
        store(client, mask)
    assert isinstance(error.value, RefusedError) == final


def test_a_server_that_is_not_there_is_an_error(mask: pydicom.Dataset) -> None:
    with server(200, None) as (client, _):
        pass
    with pytest.raises(RuntimeError, match="Check that the server runs"):
        store(client, mask)


def test_a_server_that_stays_busy_is_an_error(mask: pydicom.Dataset) -> None:
    with server(503, None) as (client, received):
        client.set_http_retry_params(max_attempts=2, wait_exponential_multiplier=1)
        with pytest.raises(RuntimeError, match="503.*Check that the server"):
            store(client, mask)
    assert len(received) == 2
