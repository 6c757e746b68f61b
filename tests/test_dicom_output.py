"""DICOM objects on the command line: beside the NIfTI files, on the source series' images, and refused where there is none."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from lib.demonstration.mr_series import series_from_nifti
from scripts.dicom.parametric_map import NOT_ASSESSED
from synthetic import GRIDS, write_head
from test_dicom import on_nifti
from tiny_run import datalist, run, summary, visible

FILES = ["anomaly_map.dcm", "anomaly_map.nii.gz", "counterfactual.nii.gz", "overview.png", "pred.nii.gz", "result.json"]


# "oblique" is sheared too, which DICOM can't express
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid != "oblique"])
def test_objects_lie_on_the_images_and_say_what_the_nifti_files_do(
    grid: str,
    tmp_path: Path,
    weights: dict[str, str],
) -> None:
    item = write_head(tmp_path, grid)
    description = {"series_description": "AX FLAIR", "patient_id": "P1", "patient_name": "Doe^Jane"}
    images = [pydicom.dcmread(p) for p in series_from_nifti(item["image"], tmp_path / "series", **description)]
    path = datalist(tmp_path, [{**item, "image": "series"}])
    out = tmp_path / "out"
    assert (
        run(weights, input=path, output_dir=str(out), write_dicom=True, **{"displayable_configs#threshold": 0.1}) == 0
    )
    assert visible(out / "flair") == sorted([*FILES, "segmentation.dcm"])
    shape, affine = GRIDS[grid]
    objects = {name: pydicom.dcmread(out / "flair" / f"{name}.dcm") for name in ("segmentation", "anomaly_map")}
    for dataset in objects.values():
        assert dataset.StudyInstanceUID == images[0].StudyInstanceUID and dataset.PatientID == "P1"
        (reference,) = dataset.ReferencedSeriesSequence
        assert reference.SeriesInstanceUID == images[0].SeriesInstanceUID
        referenced = {i.ReferencedSOPInstanceUID for i in reference.ReferencedInstanceSequence}
        assert referenced == {i.SOPInstanceUID for i in images}
        record = summary(out)["flair"]
        assert dataset.SeriesDescription.startswith(f"AI {record['score']:.3f}")
        assert ("CHECK" in dataset.SeriesDescription) is bool(record["warnings"])
        assert "AX FLAIR" in dataset.SeriesDescription
    mask, anomaly_map = (nib.load(out / "flair" / f"{name}.nii.gz") for name in ("pred", "anomaly_map"))
    placed = [nib.as_closest_canonical(i) for i in (mask, anomaly_map)]
    for n, segment in enumerate(objects["segmentation"].SegmentSequence, start=1):
        found = nib.Nifti1Image(on_nifti(objects["segmentation"], shape, affine, n), affine)
        np.testing.assert_array_equal(nib.as_closest_canonical(found).get_fdata(), placed[0].get_fdata() == n)
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert {"threshold=0.1", "guidance_exponent=0"} <= set(algorithm.AlgorithmParameters.split(","))
    found = nib.Nifti1Image(on_nifti(objects["anomaly_map"], shape, affine), affine)
    expected = np.nan_to_num(placed[1].get_fdata(), nan=NOT_ASSESSED)
    np.testing.assert_array_equal(nib.as_closest_canonical(found).get_fdata(), expected)


def test_objects_are_without_fault_for_dciodvfy(tmp_path: Path, weights: dict[str, str]) -> None:
    tool = shutil.which("dciodvfy")
    if tool is None:
        assert os.environ.get("CI") != "true"
        pytest.skip("`make viewers` installs dicom3tools, which has dciodvfy")
    item = write_head(tmp_path)
    series_from_nifti(
        item["image"], tmp_path / "series", series_description="FLAIR", patient_id="P1", patient_name="Doe^Jane"
    )
    path = datalist(tmp_path, [{**item, "image": "series"}])
    assert run(weights, input=path, output_dir=str(tmp_path / "out"), write_dicom=True) == 0
    for name in ("segmentation", "anomaly_map"):
        said = subprocess.run([tool, str(tmp_path / "out" / "flair" / f"{name}.dcm")], capture_output=True, text=True)
        assert [line for line in said.stderr.splitlines() if line.startswith("Error")] == []


def test_what_is_no_dicom_is_a_failed_volume_and_the_others_run(
    tmp_path: Path,
    weights: dict[str, str],
) -> None:
    item = write_head(tmp_path)
    series_from_nifti(
        item["image"], tmp_path / "series", series_description="FLAIR", patient_id="P1", patient_name="Doe^Jane"
    )
    path = datalist(tmp_path, [{**item, "name": "nifti"}, {**item, "image": "series", "name": "dicom"}])
    assert run(weights, input=path, output_dir=str(tmp_path / "out"), write_dicom=True) == 1
    found = summary(tmp_path / "out")
    assert found["nifti"]["error"].endswith(
        "flair.nii.gz: is no DICOM image, nor a folder with a series of them; --write_dicom true needs one."
    )
    assert found["dicom"]["status"] == "ok" and "segmentation.dcm" in found["dicom"]["outputs"]
    # alone it is a mistake in the command, which costs no older result
    with pytest.raises(Exception) as error:
        run(weights, input=item["image"], output_dir=str(tmp_path / "alone"), write_dicom=True)
    assert "is no DICOM image, nor a folder with a series of them" in str(error.value.__cause__)
    assert not (tmp_path / "alone").exists()
    # without it, the same volume has NIfTI files alone
    assert run(weights, input=path, output_dir=str(tmp_path / "out")) == 0
    assert "segmentation.dcm" not in visible(tmp_path / "out" / "dicom")


def test_a_missing_package_is_said_before_anything_is_computed(
    tmp_path: Path,
    weights: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = datalist(tmp_path, [write_head(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception) as error:
        run(weights, input=path, output_dir=str(tmp_path / "out"), write_dicom=True)
    assert re.search(r"--write_dicom true needs highdicom: pip install highdicom==[\d.]+$", str(error.value.__cause__))
    assert not (tmp_path / "out").exists()
