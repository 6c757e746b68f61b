"""docs/advisories.md: its versions are the installed ones, what it says we don't use isn't imported, and attacks fail."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.specifiers import SpecifierSet
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.fileset import FileSet

from dicom import image, save, save_series, series
from scripts.errors import InvalidImageError
from scripts.images.loading import LoadVolumed
from test_locks import versions

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = (ROOT / "docs" / "advisories.md").read_text("utf-8").split("\n## ")


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[1:]]


AFFECTED, PAST = rows(SECTIONS[1]), rows(SECTIONS[2])


def is_affected(version: str, affected: str) -> bool:
    """Whether a version lies in one of the ranges of a row, such as ``>=2.0,<2.4.5` or `>=3.0,<3.0.2``."""
    return any(version in SpecifierSet(part) for part in affected.split("` or `"))


def test_the_tables_are_read() -> None:
    assert ["CVE-2026-56445", "pynetdicom"] in [row[:2] for row in AFFECTED]
    assert len(PAST) > 5 and all(len(row) == 4 for row in PAST) and all(len(row) == 5 for row in AFFECTED)
    [pydicom] = [row[2] for row in PAST if row[0] == "CVE-2026-32711"]
    affected = {version: is_affected(version, pydicom) for version in ("2.4.4", "2.4.5", "3.0.1", "3.0.2")}
    assert affected == {"2.4.4": True, "2.4.5": False, "3.0.1": True, "3.0.2": False}


@pytest.mark.parametrize(("package", "affected"), sorted({(row[1], row[2]) for row in AFFECTED}))
def test_a_row_is_of_the_installed_version(package: str, affected: str) -> None:
    """Otherwise the pin was raised past it, and the row is to be moved."""
    assert is_affected(importlib.metadata.version(package), affected)


@pytest.mark.parametrize(("package", "affected"), sorted({(row[1], row[2]) for row in PAST}))
def test_the_installed_version_is_past(package: str, affected: str) -> None:
    assert not is_affected(importlib.metadata.version(package), affected)


def test_the_installed_versions_are_the_locked_ones() -> None:
    """So that both tables speak of what is released."""
    locked = versions("cuda") | versions("locked") | versions("monailabel")
    for package in {row[1] for row in [*AFFECTED, *PAST]} & locked.keys():
        assert importlib.metadata.version(package).partition("+")[0] == locked[package]


def imported(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_an_advisory_names_is_imported_nowhere() -> None:
    """By nothing of ours, nor by MONAI Label, which brings these packages."""
    banned = {name for row in AFFECTED for name in re.findall(r"[\w.]+", row[3])}
    assert banned == {"pynetdicom.apps.qrscp"}
    spec = importlib.util.find_spec("monailabel")
    assert spec is not None and spec.submodule_search_locations
    for folder in (ROOT / "bundle", ROOT / "apps", ROOT / "benchmarks", Path(spec.submodule_search_locations[0])):
        found = {name for name in imported(folder) if any(f"{name}.".startswith(f"{b}.") for b in banned)}
        assert found == set(), folder
        assert not any("qrscp" in path.read_text("utf-8") for path in folder.rglob("*.py")), folder


@pytest.mark.parametrize("bad", ["NaN", "inf", "1e400"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient"])
def test_numbers_of_dicom_that_are_none_are_refused(keyword: str, bad: str, tmp_path: Path) -> None:
    """CVE-2026-48705."""
    values = {"PixelSpacing": [bad, "1"], "ImagePositionPatient": [bad, "0", "0"]}.get(keyword, bad)
    pixels = np.random.default_rng(0).integers(0, 1000, (12, 14, 5)).astype(np.uint16)
    wrong: Any = DataElement(tag_for_keyword(keyword), "DS", values, validation_mode=0)
    slices = series(pixels, np.diag([2.0, 2.0, 5.0, 1.0]))
    picture = image(pixels[..., 0])
    for dataset in (*slices, picture):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset[wrong.tag] = wrong
    for modality, path in (("MR", save_series(slices, tmp_path / "series")), ("DX", save(picture, tmp_path / "x.dcm"))):
        if modality == "DX" and keyword == "ImagePositionPatient":
            continue  # of a radiograph it isn't read
        with pytest.raises(InvalidImageError):
            LoadVolumed(keys="image", channels=1, modalities=[modality])({"image": path})


@pytest.mark.filterwarnings("ignore")  # pydicom warns of such names
def test_a_dicomdir_leads_to_no_file_outside_its_folder(tmp_path: Path) -> None:
    """CVE-2026-32711."""
    about = {"PatientID": "1", "StudyDate": "20260101", "StudyTime": "120000", "StudyID": "1"}
    numbers = {"SeriesNumber": 1, "InstanceNumber": 1}
    outside = save(image(np.zeros((4, 4), np.uint8), **about, **numbers), tmp_path / "OUTSIDE")
    files = FileSet()
    files.add(outside)
    files.write(tmp_path / "set")
    path = tmp_path / "set" / "DICOMDIR"
    [instance] = FileSet(path)
    assert Path(instance.path).is_relative_to(path.parent)
    directory = dcmread(path)
    [record] = (record for record in directory.DirectoryRecordSequence if "ReferencedFileID" in record)
    for wrong in (["..", "OUTSIDE"], outside):
        record.ReferencedFileID = wrong
        directory.save_as(path)
        with pytest.raises(PermissionError, match="must be inside the DICOMDIR root path"):
            FileSet(path)
