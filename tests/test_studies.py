"""Studies in a folder: what is one, what counts as read, and what bad days leave of labels and scores."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import random
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from filelock import FileLock
from monai.data import MetaTensor
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

from lib.grids import read_volume, reordered
from lib.studies import register
from lib.studies.folder_studies import FolderStudies
from lib.studies.labels import checked_label
from lib.studies.sizes import largest, shape_of
from lib.studies.tags import FINAL, result_tag, slices_file
from lib.studies.unchanged import check_unchanged, stamps_of
from lib.studies.uploads import small_enough
from lib.tasks import triage
from lib.tasks.triage import Dice, EveryStudy, MostAnomalousFirst
from lib.tasks.writing import write
from machine import files_up_to
from main import AnomalyDetection
from scripts.digests import digest_of, source_digest
from small_bundle import write_small_bundle
from synthetic import GRIDS, header_alone, write_head, write_images

SHAPE, AFFINE = GRIDS["oblique"]


def write_mask(path: Path, value: float = 1, where: int = 20, affine: np.ndarray = AFFINE, shape: Any = SHAPE) -> str:
    """A cube of one value; return its path."""
    mask = np.zeros(shape, np.float32)
    mask[where : where + 4, where : where + 4, 2:4] = value
    nib.save(nib.Nifti1Image(mask if value != int(value) else mask.astype(np.uint8), affine), path)
    return str(path)


@pytest.fixture
def studies(tmp_path: Path) -> FolderStudies:
    """Two images; a reader read "a"."""
    write_images(tmp_path / "studies", "a", "b")
    studies = FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])
    studies.save_label("a", write_mask(tmp_path / "mask.nii.gz"), FINAL, {"reader": "R"})
    return studies


def kept(studies: FolderStudies) -> dict[str, bytes]:
    """Every file in the folder, and what is known of the studies."""
    files = {str(p): p.read_bytes() for p in Path(studies._datastore_path).rglob("*") if p.is_file()}
    return {
        **files,
        "known": json.dumps(studies.json()).encode(),
        "unread": str(studies.get_unlabeled_images()).encode(),
    }


def text(path: Path) -> str:
    path.write_text("MZ this is no image")
    return str(path)


def empty(path: Path) -> str:
    path.touch()
    return str(path)


def cut(path: Path) -> str:
    write_mask(path)
    # the header is whole, the voxels aren't
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1000]))
    return str(path)


def four_dimensions(path: Path) -> str:
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 2), np.uint8), AFFINE), path)
    return str(path)


def no_number(path: Path) -> str:
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), AFFINE), path)
    return str(path)


UNFIT: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "program": (text, "x.exe", "must be a file of .nii.gz, .nii, .nrrd, .mha, .mhd, got '.exe'"),
    "text": (text, "x.nii.gz", "can't be read as an image"),
    "no bytes": (empty, "x.nii.gz", "is empty: 0 bytes"),
    "cut": (cut, "x.nii.gz", "can't be read as an image"),
    "shape": (lambda p: write_mask(p, shape=(*SHAPE[:2], 9)), "x.nii.gz", "lies on another grid"),
    "shifted": (lambda p: write_mask(p, affine=AFFINE + np.eye(4, k=3)), "x.nii.gz", "lies on another grid"),
    "larger voxels": (
        lambda p: write_mask(p, affine=AFFINE @ np.diag([1, 1, 2, 1])),
        "x.nii.gz",
        "lies on another grid",
    ),
    "several": (four_dimensions, "x.nii.gz", "must be one 3D volume"),
    "a level": (lambda p: write_mask(p, 7), "x.nii.gz", "holds the value 7; allowed are 0, 1, 2"),
    "a share": (lambda p: write_mask(p, 0.5), "x.nii.gz", "holds the value 0.5; allowed are 0, 1, 2"),
    "no number": (no_number, "x.nii.gz", "holds the value nan"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_label_is_refused_and_the_good_one_stays(studies: FolderStudies, case: str, tmp_path: Path) -> None:
    write, name, message = UNFIT[case]
    file = write(tmp_path / name)
    before = kept(studies)
    for image in ("a", "b"):
        with pytest.raises(MONAILabelException) as refusal:
            studies.save_label(image, file, FINAL, {"reader": "S"})
        assert refusal.value.error == MONAILabelError.INVALID_INPUT
        assert f"The label 'final' of {image}" in refusal.value.msg and message in refusal.value.msg
        assert str(tmp_path) not in refusal.value.msg
    assert kept(studies) == before
    assert studies.get_unlabeled_images() == ["b"]


def claims_to_be_large(path: Path, shape: tuple[int, ...]) -> str:
    lines = {
        ".nrrd": f"NRRD0004\ntype: uchar\ndimension: {len(shape)}\nsizes: {' '.join(map(str, shape))}\nencoding: raw\n\n",
        ".mha": f"ObjectType = Image\nNDims = {len(shape)}\nDimSize = {' '.join(map(str, shape))}\n"
        "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n",
    }
    path.write_text(lines[path.suffix])
    return str(path)


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.nrrd", "x.mha"])
@pytest.mark.parametrize("tag", [FINAL, "anomaly_map"])
def test_a_label_of_many_voxels_is_refused_by_its_header(
    studies: FolderStudies, name: str, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its voxels, of which there are none here, would take more memory than there is."""
    write = header_alone if name.startswith("x.nii") else claims_to_be_large
    for shape, message in (((2000, 2000, 2000), "another grid .*2000, 2000, 2000"), ((*SHAPE, 900), "one 3D volume")):
        assert shape_of(write(tmp_path / name, shape)) == shape
        with pytest.raises(MONAILabelException, match=message):
            studies.save_label("a", str(tmp_path / name), tag, {})
        monkeypatch.setitem(largest, "voxels", int(np.prod(shape)))
        small_enough(tmp_path / name)
        monkeypatch.setitem(largest, "voxels", int(np.prod(shape)) - 1)
        with pytest.raises(MONAILabelException, match="too large once it is unpacked"):
            small_enough(tmp_path / name)


def test_what_unpacks_to_more_than_its_header_says_is_refused(studies: FolderStudies, tmp_path: Path) -> None:
    """NRRD, and NIfTI under a name that says nothing of gzip, are unpacked whole."""
    zeros = gzip.compress(bytes(20 * int(np.prod(SHAPE))))
    claims_to_be_large(tmp_path / "x.nrrd", SHAPE)
    head = (tmp_path / "x.nrrd").read_bytes().replace(b"encoding: raw", b"encoding: gzip")
    (tmp_path / "x.nrrd").write_bytes(head + zeros)
    header_alone(tmp_path / "x.nii", SHAPE)
    (tmp_path / "x.nii").write_bytes((tmp_path / "x.nii").read_bytes() + zeros)
    for name in ("x.nrrd", "x.nii"):
        with pytest.raises(MONAILabelException, match="too large once it is unpacked"):
            studies.save_label("a", str(tmp_path / name), FINAL, {})
        small_enough(tmp_path / name)


def test_sizes_of_pictures_and_dicom_files_are_in_their_headers(tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.Image(7, 5, SimpleITK.sitkUInt8), str(tmp_path / "x.png"))
    assert shape_of(tmp_path / "x.png") == (7, 5)
    SimpleITK.WriteImage(SimpleITK.Image(7, 5, 1, SimpleITK.sitkUInt16), str(tmp_path / "x.dcm"))
    assert shape_of(tmp_path / "x.dcm") == (7, 5, 1, 1)
    assert (
        shape_of(text(tmp_path / "x.nii.gz")) == shape_of(empty(tmp_path / "y.nii.gz")) == shape_of("nothing.png") == ()
    )


def test_a_label_in_another_order_of_axes_is_brought_to_its_image(studies: FolderStudies, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    image = nib.Nifti1Image(mask, AFFINE)
    for n, order in enumerate(([[2, 1], [0, -1], [1, -1]], [[0, -1], [1, 1], [2, -1]])):
        other = image.as_reoriented(np.array(order))
        assert other.shape != SHAPE or n
        path = tmp_path / "other.nii.gz"
        nib.save(other, path)
        studies.save_label("b", str(path), FINAL, {})
        saved = nib.load(studies.get_label_uri("b", FINAL))
        np.testing.assert_array_equal(saved.get_fdata(), mask)
        np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-5)
    # as 3D Slicer writes it
    write_head(Path(studies._datastore_path), "flipped", "c")
    mask = np.random.default_rng(1).integers(0, 3, GRIDS["flipped"][0]).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, GRIDS["flipped"][1]), tmp_path / "c.nii.gz")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "c.nii.gz")), str(tmp_path / "c.seg.nrrd"))
    assert "c" in studies.list_images()
    studies.save_label("c", str(tmp_path / "c.seg.nrrd"), FINAL, {})
    np.testing.assert_array_equal(nib.load(studies.get_label_uri("c", FINAL)).get_fdata(), mask)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001)])
def test_a_label_in_mm_fits_an_image_in_another_unit(
    studies: FolderStudies, unit: str, mm: float, tmp_path: Path
) -> None:
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, Path(studies._datastore_path) / "c.nii.gz")
    assert "c" in studies.list_images()
    studies.save_label("c", write_mask(tmp_path / "m.nii.gz"), FINAL, {})
    saved = nib.load(studies.get_label_uri("c", FINAL))
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-3)
    assert saved.header.get_xyzt_units()[0] == "mm" and saved.get_data_dtype() == np.uint8


def test_grids_of_one_slice_and_grids_turned_by_45_degrees_are_told_apart() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(3, 2, 1)
    c = np.sqrt(0.5)
    turned = nib.affines.from_matvec(np.array([[c, -c, 0], [c, c, 0], [0, 0, 1]]) @ np.diag([2.0, 2.0, 5.0]))
    for order in ([[1, 1], [0, -1], [2, 1]], [[2, -1], [1, -1], [0, -1]]):
        other = nib.Nifti1Image(array, turned).as_reoriented(np.array(order))
        found = reordered(np.asarray(other.dataobj), other.affine, turned, array.shape)
        assert found is not None
        np.testing.assert_array_equal(found, array)
    thick = turned @ np.diag([1, 1, 1.5, 1])
    assert reordered(array, thick, turned, array.shape) is None
    assert reordered(array, np.zeros((4, 4)), turned, array.shape) is None
    assert reordered(array, turned, np.zeros((4, 4)), array.shape) is None


def results(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for tag in ("anomaly_map", "counterfactual"):
        paths[tag] = tmp_path / f"{tag}.nii.gz"
        nib.save(nib.Nifti1Image(np.random.default_rng(1).random(SHAPE, np.float32), AFFINE), paths[tag])
    return paths


def test_a_full_disk_leaves_the_old_label_and_nothing_of_the_new(studies: FolderStudies, tmp_path: Path) -> None:
    mask, maps = write_mask(tmp_path / "new.nii.gz", where=40), results(tmp_path)
    params = {"score": 0.5, "p_diseased": 0.25}
    studies.save_results("a", "original", mask, maps, params)
    before = kept(studies)
    label = os.path.getsize(studies.get_label_uri("a", FINAL))
    info = os.path.getsize(studies._datastore_config_path)
    assert label < info - 200 < os.path.getsize(maps["anomaly_map"])
    # nothing fits; the label does, what is known of the studies doesn't; both do, the maps don't
    for size in (0, label // 2, info - 200, info + 2000):
        with files_up_to(size):
            for image in ("a", "b"):
                if size < info:
                    with pytest.raises(MONAILabelException) as full:
                        studies.save_label(image, mask, FINAL, {})
                    assert full.value.error == MONAILabelError.SERVER_ERROR
                    assert "can't be written to (File too large). Nothing was stored." in full.value.msg
                with pytest.raises(MONAILabelException):
                    studies.save_results(image, "original", mask, maps, {**params, "score": 0.9})
            with pytest.raises(MONAILabelException):
                studies.add_image("c", str(Path(studies.get_image_uri("a"))), {})
        assert kept(studies) == before
    studies.save_results("a", "original", mask, maps, {**params, "score": 0.9})
    assert studies.get_image_info("a")["anomaly_score"] == 0.9


ROWS = [{"slice": n, "score": n / 155, "assessed": True} for n in range(155)]
PARAMS = {"score": 0.5, "p_diseased": 0.25, "options": {"threshold": 0.1}, "slices": ROWS}


def test_scores_of_slices_are_kept_once_and_not_in_the_register(studies: FolderStudies, tmp_path: Path) -> None:
    """It is written whole for every study, and they would be most of it."""
    mask, register = write_mask(tmp_path / "mask.nii.gz"), Path(studies._datastore_config_path)
    before = register.stat().st_size
    studies.save_results("a", "original", mask, results(tmp_path), PARAMS)
    assert register.stat().st_size - before < 1500 < len(json.dumps(ROWS))
    studies.mark_done("a", "original", PARAMS, {"version": "1"})
    for server in (studies, FolderStudies(studies._datastore_path, [["FLAIR"]])):
        info = server.get_label_info("a", "original")
        assert info["params"] == PARAMS and info["made_with"] == {"version": "1"}
        for tag in ("anomaly_map", "counterfactual"):
            assert server.get_label_info("a", tag)["params"] == {k: v for k, v in PARAMS.items() if k != "slices"}
        assert server.status()["left_out"] == {}
    path = studies.get_dataset_archive(None)
    with zipfile.ZipFile(path) as archive:
        told = json.loads(archive.read("metadata.json"))["objects"]["a"]["labels"]
    os.unlink(path)
    assert told["original"]["info"]["params"] == PARAMS and "slices" not in told["anomaly_map"]["info"]["params"]
    # who sends back what was told changes nothing
    studies.update_label_info("a", "original", {**info, "note": "n"})
    assert studies.get_label_info("a", "original") == {**info, "note": "n"}
    assert register.stat().st_size - before < 2000


@pytest.mark.parametrize("case", ["removed", "a reader's", "another result's", "another image's"])
def test_scores_of_slices_are_said_of_no_other_label(studies: FolderStudies, case: str, tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "mask.nii.gz")
    studies.save_results("a", "original", mask, {}, PARAMS)
    file = slices_file(Path(studies._datastore_path, "labels", "original"), "a")
    assert file.is_file()
    if case == "removed":
        studies.remove_label("a", "original")
    elif case == "a reader's":
        studies.save_label("a", mask, "original", {"params": {"score": 0.5}})
        assert studies.get_label_info("a", "original")["params"] == {"score": 0.5}
    elif case == "another image's":
        other_image(Path(studies.get_image_uri("a")))
        studies.list_images()
    else:
        other = {**PARAMS, "score": 0.75, "slices": ROWS[:2]}
        before = file.read_bytes()
        studies.save_results("a", "original", mask, {}, other)
        assert studies.get_label_info("a", "original")["params"] == other
        file.write_bytes(before)  # as of a process that was killed before all was in its place
        assert studies.get_label_info("a", "original")["params"] == {k: v for k, v in other.items() if k != "slices"}
    assert file.is_file() is (case == "another result's")


def test_scores_of_slices_that_a_version_before_kept_in_the_register_are_told(
    studies: FolderStudies, tmp_path: Path
) -> None:
    studies.save_results("a", "original", write_mask(tmp_path / "mask.nii.gz"), {}, PARAMS)
    slices_file(Path(studies._datastore_path, "labels", "original"), "a").unlink()
    path = Path(studies._datastore_config_path)
    known = json.loads(path.read_text())
    known["objects"]["a"]["labels"]["original"]["info"]["params"]["slices"] = ROWS
    path.write_text(json.dumps(known))
    for server in (studies, FolderStudies(studies._datastore_path, [["FLAIR"]])):
        assert server.get_label_info("a", "original")["params"] == PARAMS
    studies.mark_done("a", "original", PARAMS, {"version": "1"})
    info = studies.get_label_info("a", "original")
    assert info["params"] == PARAMS and info["made_with"] == {"version": "1"}
    studies.update_label_info("a", "original", {**info, "note": "n"})
    assert studies.get_label_info("a", "original") == {**info, "note": "n"}


def test_of_many_studies_only_the_one_that_changed_is_checked_again(
    studies: FolderStudies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To parse what is known of all of them took most of the time that a result took to be kept."""
    checked: list[set[str]] = []
    read = register._read

    def noted(content: str) -> Any:
        checked.append(set(json.loads(content)["objects"]))
        return read(content)

    studies.list_images()
    monkeypatch.setattr(register, "_read", noted)
    studies.save_results("b", "original", write_mask(tmp_path / "mask.nii.gz"), {}, PARAMS)
    studies.mark_done("b", "original", PARAMS, {"version": "1"})
    assert checked == [{"b"}, {"b"}]
    with pytest.raises(MONAILabelException, match="This can't be kept .* Nothing was stored"):
        studies.save_label("b", write_mask(tmp_path / "mask.nii.gz"), FINAL, {"note": endless()})
    again = FolderStudies(studies._datastore_path, [["FLAIR"]])
    assert again.json()["objects"] == studies.json()["objects"] and again.get_labeled_images() == ["a"]


def test_a_kill_at_any_moment_leaves_the_old_label_or_the_new(studies: FolderStudies, tmp_path: Path) -> None:
    masks = [write_mask(tmp_path / f"{where}.nii.gz", where=where) for where in (10, 30)]
    wanted = [nib.load(m).get_fdata() for m in masks]
    chance = random.Random(0)
    for _ in range(15):
        child = os.fork()
        if child == 0:  # pragma: no cover - it is killed
            mine = FolderStudies(studies._datastore_path, [["FLAIR"]])
            while True:
                for mask in masks:
                    mine.save_label("a", mask, FINAL, {"from": mask})
        time.sleep(0.05 + chance.random() / 10)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        label = nib.load(studies.get_label_uri("a", FINAL)).get_fdata()
        assert any(np.array_equal(label, w) for w in wanted) or studies.get_label_info("a", FINAL)["reader"] == "R"
        assert json.loads(Path(studies._datastore_config_path).read_text())["objects"].keys() == {"a", "b"}
    again = FolderStudies(studies._datastore_path, [["FLAIR"]])
    assert again.get_labeled_images() == ["a"] and not list(Path(studies._datastore_path).rglob(".part*"))


def test_labels_that_were_broken_before_do_not_count_as_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "studies"
    names = ("good", "empty", "cut", "text", "shifted", "hidden")
    write_images(folder, *names)
    final = folder / "labels" / "final"
    final.mkdir(parents=True)
    write_mask(final / "good.nii.gz")
    empty(final / "empty.nii.gz")
    cut(final / "cut.nii.gz")
    text(final / "text.nii.gz")
    write_mask(final / "shifted.nii.gz", affine=AFFINE + np.eye(4, k=3))
    write_mask(final / "._hidden.nii.gz")
    # as a server of before had it in its file
    label = {"ext": ".nii.gz", "info": {"name": "empty.nii.gz"}}
    objects = {"empty": {"image": {"ext": ".nii.gz", "info": {"name": "empty.nii.gz"}}, "labels": {"final": label}}}
    known = {"name": "n", "description": "d", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (folder / "datastore_v2.json").write_text(json.dumps(known))
    with caplog.at_level(logging.WARNING):
        studies = FolderStudies(str(folder), [["FLAIR"]])
        assert studies.get_labeled_images() == ["good"]
        assert studies.get_label_uri("empty", FINAL) == ""
    said = [r.getMessage() for r in caplog.records]
    assert sum("labels/final/cut.nii.gz is not used and its study counts as unread" in s for s in said) == 1
    assert studies.status()["left_out"]["labels that are broken, empty or of another image"] == 4
    assert [p["label"] for p in studies.datalist()] == [str(final / "good.nii.gz")]
    write_mask(final / "cut.nii.gz")
    assert sorted(studies.get_labeled_images()) == ["cut", "good"]
    # what was found whole is not read again by the next server, unless it changed
    stamps = {i: studies.get_label_info(i, FINAL)["stamp"] for i in ("cut", "good")}
    again = FolderStudies(str(folder), [["FLAIR"]])
    assert {i: again.get_label_info(i, FINAL)["stamp"] for i in ("cut", "good")} == stamps
    (final / "good.nii.gz").write_bytes(b"")
    assert again.get_labeled_images() == ["cut"]


def test_a_model_never_writes_what_a_reader_does() -> None:
    assert result_tag(None, "lesion_mask", True) == result_tag("original", "lesion_mask", True) == "original"
    assert result_tag(None, "lesion_preview", False) == "lesion_preview"
    assert result_tag("mine", "lesion_mask", True) == "mine"
    with pytest.raises(MONAILabelException, match="is the label of a reader"):
        result_tag("Final-of-3-images", "lesion_mask", True)
    for tag in ("final", "Final", "anomaly_map", "counterfactual"):
        with pytest.raises(MONAILabelException) as refusal:
            result_tag(tag, "lesion_mask", True)
        assert refusal.value.error == MONAILabelError.INVALID_INPUT
        assert f"label_tag '{tag}' is not allowed for what a model gives" in refusal.value.msg
        assert "Allowed are 'original' (the default), 'lesion_mask'" in refusal.value.msg


def test_what_is_a_study_and_what_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "studies"
    source = Path(write_head(tmp_path, "flipped", "source")["image"])
    bids = ["anat/sub-01_FLAIR", "anat/sub-01_T1w", "anat/sub-01_T2w", "dwi/sub-01_dwi", "anat/sub-01_desc-brain_mask"]
    brats = ["t2f", "t1n", "t1c", "t2w", "seg"]
    for name in [f"sub-01/{b}" for b in bids] + [f"BraTS-GLI-00000-000/BraTS-GLI-00000-000-{b}" for b in brats]:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
    for name in (
        "big.NII.GZ",
        "._x.nii.gz",
        ".git/annex/object.nii.gz",
        "p1/FLAIR/image.nii.gz",
        "p1/T1/image.nii.gz",
        "lesions/p2.nii.gz",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(source.read_bytes())
    nib.save(nib.load(source), folder / "plain.nii")
    for name in ("n.nrrd", "m.mha"):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(source)), str(folder / name))
    for name in ("photo.jpg", "free.mgz", "participants.tsv", "a-b.nii", "labelsTr/p1.nii.gz", "out/pred.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "a").mkdir()
    (folder / "a" / "b.nii.gz").write_bytes(source.read_bytes())
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.nii.gz").write_bytes(source.read_bytes())
    (folder / "round").symlink_to(folder)
    (folder / "lost.nii.gz").symlink_to(tmp_path / "nothing.nii.gz")
    (folder / ("long" * 30)).mkdir()
    (folder / ("long" * 30) / f"{'name' * 30}.nii.gz").write_bytes(source.read_bytes())
    with caplog.at_level(logging.INFO):
        studies = FolderStudies(str(folder), [["FLAIR"]])
    listed = {
        "sub-01-anat-sub-01_FLAIR", "BraTS-GLI-00000-000-BraTS-GLI-00000-000-t2f", "big", "plain", "n", "m", "p1-FLAIR-image",
        "linked-far", "lesions-p2", "a-b",
    }  # fmt: skip
    assert set(studies.list_images()) == set(studies.get_unlabeled_images()) == listed
    status = studies.status()
    assert status["total"] == len(listed) and status["completed"] == 0
    assert status["left_out"] == {
        "hidden": 2,
        "of a format that is not read (read are .nii.gz, .nii, .nrrd, .mha, .mhd)": 2,
        "other files": 1,
        "links that lead nowhere": 1,
        "in a folder that was read already": 1,
        "with the id of another": 1,
        "with too long a path or one with signs that a name can't have": 1,
        "named as T1": 3,
        "named as T1Gd": 1,
        "named as T2": 2,
        "named as DWI": 1,
        "named as mask": 4,
    }
    said = caplog.records[-1].getMessage()
    assert f"{len(listed)} studies in {folder}. Not studies: " in said
    assert "2 of a format that is not read (read are .nii.gz, .nii, .nrrd, .mha, .mhd) (free.mgz, photo.jpg)" in said
    # what is listed can be read, and has the same voxels
    values = nib.load(source).get_fdata()
    for image in listed - {"a-b"}:
        array, affine = read_volume(studies.get_image_uri(image))
        np.testing.assert_array_equal(array, values)
        np.testing.assert_allclose(affine, nib.load(source).affine, atol=1e-5)
        studies.save_label(image, str(write_blank(tmp_path / "blank.nii.gz", source)), FINAL, {})
    assert studies.siblings("sub-01-anat-sub-01_FLAIR", ["FLAIR", "T1"])[1] == "sub-01-anat-sub-01_T1w"
    assert studies.siblings("BraTS-GLI-00000-000-BraTS-GLI-00000-000-t2f", ["FLAIR", "T1"])[1].endswith("-t1n")
    assert studies.siblings("p1-FLAIR-image", ["T1", "FLAIR"]) == ["p1-T1-image", "p1-FLAIR-image"]
    assert len(studies.datalist()) == len(studies.get_labeled_images()) == len(listed) - 1
    # said once, and again only when something changed
    caplog.clear()
    with caplog.at_level(logging.INFO):
        studies.status()
        assert not caplog.records
        (folder / "new.nii.gz").write_bytes(source.read_bytes())
        assert "new" in studies.list_images()
        (folder / "new.nii.gz").unlink()
        assert "new" not in studies.list_images()


def write_blank(path: Path, like: Path) -> Path:
    image = nib.load(like)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    return path


def failing(call: Callable[..., Any], below: Path, number: int, times: int) -> Callable[..., Any]:
    """`call`, which fails so often with an errno for all that lies in a folder."""
    left = [times]

    def tried(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(below) and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), os.fsdecode(path))
        return call(path, *args, **kwargs)

    return tried


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("times", [1, 1000], ids=["once", "until it is back"])
@pytest.mark.parametrize(
    ("call", "below"), [("scandir", "p1/flair"), ("scandir", "p1"), ("scandir", "."), ("stat", "p1/flair")]
)
def test_what_is_known_of_a_folder_that_can_not_be_read_stays(
    call: str, below: str, times: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies, before = known_in_folders(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), tmp_path / "studies" / below, number, times))
        listed = studies.list_images()
        assert listed == ([] if below == "." else ["p2-flair-a"])
        left_out = studies.status()["left_out"]
        assert times == 1 or f"that can't be read ({os.strerror(number)})" in left_out
    assert (studies.list_images(), studies.json()["objects"]) == before


def known_in_folders(tmp_path: Path) -> tuple[FolderStudies, tuple[list[str], dict[str, Any]]]:
    """Studies in two folders, of the first of which more is known than its files say; the list and all that is known."""
    for patient in ("p1", "p2"):
        (tmp_path / "studies" / patient).mkdir(parents=True)
        write_images(tmp_path / "studies" / patient / "flair", "a")
    studies = FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])
    studies.save_label("p1-flair-a", write_mask(tmp_path / "mask.nii.gz"), FINAL, {"reader": "R"})
    studies.update_image_info("p1-flair-a", {"PatientID": "P", "image_label": "healthy", "anomaly_score": 0.5})
    return studies, (["p1-flair-a", "p2-flair-a"], studies.json()["objects"])


def test_what_is_known_of_a_link_that_leads_nowhere_for_a_while_stays(tmp_path: Path) -> None:
    studies, before = known_in_folders(tmp_path)
    folder, away = tmp_path / "studies" / "p1", tmp_path / "share"
    folder.rename(away)
    folder.symlink_to(away)
    assert (studies.list_images(), studies.json()["objects"]) == before
    away.rename(tmp_path / "not mounted")
    again = FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])
    assert studies.list_images() == again.list_images() == ["p2-flair-a"]
    (tmp_path / "not mounted").rename(away)
    assert (studies.list_images(), studies.json()["objects"]) == before
    # gone for good: what is known stays beside its label, until that goes
    folder.unlink()
    assert studies.list_images() == ["p2-flair-a"]
    assert studies.status()["left_out"] == {"in labels that belong to no image": 1}
    studies.remove_image("p1-flair-a")
    assert studies.list_images() == list(studies.json()["objects"]) == ["p2-flair-a"]


def other_image(path: Path, shape: Any = SHAPE, value: float = 5.0) -> None:
    """Another patient's volume, as large as the one it takes the place of."""
    nib.save(nib.Nifti1Image(np.full(shape, value, np.float32), AFFINE), path)


def later(path: Path) -> None:
    """As a copy, or a touch, leaves a file: with another time of change."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("case", ["same grid", "another grid", "gone in between", "another server"])
def test_what_is_known_of_an_image_is_not_said_of_another_in_its_place(
    studies: FolderStudies, case: str, tmp_path: Path
) -> None:
    image = Path(studies.get_image_uri("a"))
    params = {"score": 0.9, "p_diseased": 0.8}
    studies.save_results("a", "original", write_mask(tmp_path / "p.nii.gz"), results(tmp_path), params)
    studies.save_label("a", write_mask(tmp_path / "mine.nii.gz"), "mine", {})
    studies.update_image_info("a", {"PatientID": "OLD", "image_label": [0, 1]})
    studies.list_images()
    drawn, digest = Path(studies.get_label_uri("a", FINAL)).read_bytes(), studies.get_image_info("a")["sha256"]
    if case == "gone in between":
        image.unlink()
        assert studies.list_images() == ["b"] and studies.status()["completed"] == 0
        with pytest.raises(ImageNotFoundException):
            studies.get_image_uri("a")
        with pytest.raises(MONAILabelException, match="There is another image 'a'"):
            studies.add_image("a", studies.get_image_uri("b"), {})
    other_image(image, (30, 31, 8) if case == "another grid" else SHAPE)
    if case == "another server":
        studies = FolderStudies(studies._datastore_path, [["FLAIR"]])
    assert studies.get_unlabeled_images() == ["a", "b"]
    with pytest.raises(MONAILabelException, match="No study has a label of a reader"):
        studies.get_dataset_archive(None)
    info = studies.get_image_info("a")
    assert set(info) == {"ts", "name", "path", "stamp", "before"}
    assert info["before"] == {"PatientID": "OLD", "image_label": [0, 1]}
    aside = f"final-of-{digest[:12]}"
    assert set(studies.get_labels_by_image_id("a")) == {aside, f"{aside}-mine"}
    assert Path(studies.get_label_uri("a", aside)).read_bytes() == drawn
    assert studies.get_label_info("a", aside)["reader"] == "R"
    assert sorted(p.parent.name for p in Path(studies._datastore_path).rglob("labels/*/a.nii.gz")) == [
        aside,
        f"{aside}-mine",
    ]
    # nor does a second one take the place of what was set aside
    shutil.copy(studies.get_image_uri("b"), image)
    studies.list_images()
    assert Path(studies.get_label_uri("a", aside)).read_bytes() == drawn
    assert studies.get_image_info("a")["before"] == {"PatientID": "OLD", "image_label": [0, 1]}


def detached(tmp_path: Path, ending: str) -> tuple[FolderStudies, Path]:
    """A study whose voxels lie in a file beside its header, read by a reader; and that file."""
    header, voxels = tmp_path / "studies" / "p" / f"x{ending}", tmp_path / "studies" / "p" / "x.raw"
    header.parent.mkdir(parents=True)
    image = SimpleITK.GetImageFromArray(np.arange(48, dtype=np.uint16).reshape(3, 4, 4))
    SimpleITK.WriteImage(image, str(header.with_suffix(".mhd")))
    if ending == ".nrrd":
        header.with_suffix(".mhd").unlink()
        header.write_text(
            "NRRD0004\ntype: ushort\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 3\n"
            "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: raw\ndata file: x.raw\n\n"
        )
    studies = FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])
    affine = read_volume(header)[1]
    nib.save(nib.Nifti1Image(np.ones((4, 4, 3), np.uint8), affine), tmp_path / "m.nii.gz")
    studies.save_label("p-x", str(tmp_path / "m.nii.gz"), FINAL, {"reader": "R"})
    studies.update_image_info("p-x", {"PatientID": "P"})
    params = {"score": 0.9, "p_diseased": 0.8}
    studies.save_results("p-x", "original", str(tmp_path / "m.nii.gz"), {}, params)
    assert studies.get_labeled_images() == ["p-x"]
    return studies, voxels


@pytest.mark.parametrize("ending", [".mhd", ".nrrd"])
def test_what_is_known_of_an_image_is_not_said_of_other_voxels_behind_its_header(ending: str, tmp_path: Path) -> None:
    """Images of one grid have the same header."""
    studies, voxels = detached(tmp_path, ending)
    digest = studies.get_image_info("p-x")["sha256"]
    voxels.write_bytes((np.arange(48, dtype=np.uint16) + 1).tobytes())
    for server in (studies, FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])):
        assert server.get_unlabeled_images() == ["p-x"]
        info = server.get_image_info("p-x")
        assert set(info) == {"ts", "name", "path", "stamp", "before"} and info["before"] == {"PatientID": "P"}
        assert set(server.get_labels_by_image_id("p-x")) == {f"final-of-{digest[:12]}"}


@pytest.mark.parametrize("ending", [".mhd", ".nrrd"])
@pytest.mark.parametrize("case", ["copied", "gone for a while", "of a version before", "copied from a version before"])
def test_what_is_known_of_an_image_stays_with_its_voxels(case: str, ending: str, tmp_path: Path) -> None:
    studies, voxels = detached(tmp_path, ending)
    before = studies.json()["objects"]
    header = voxels.with_suffix(ending)
    if case == "copied":
        later(voxels)
    elif case == "gone for a while":
        voxels.rename(tmp_path / "away")
        for server in (studies, FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])):
            assert server.list_images() == [] and server.json()["objects"] == before
            assert server.status()["left_out"] == {"that can't be read, or whose file of voxels can't": 1}
        (tmp_path / "away").rename(voxels)
    else:  # it looked at the header alone
        path = Path(studies._datastore_config_path)
        known = json.loads(path.read_text())
        info = known["objects"]["p-x"]["image"]["info"]
        info |= {"stamp": info["stamp"][:2], "sha256": digest_of(header)}
        path.write_text(json.dumps(known))
        if case.startswith("copied"):
            later(header)
        studies = FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])
        assert studies.get_labeled_images() == ["p-x"]
        assert case.startswith("copied") or studies.json()["objects"] == before
        later(voxels)
    for server in (studies, FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])):
        assert server.get_labeled_images() == ["p-x"]
        info = server.get_image_info("p-x")
        assert (info["PatientID"], info["anomaly_score"], info["sha256"]) == ("P", 0.9, source_digest(str(header)))


def test_a_file_that_could_not_be_read_once_is_known_when_it_can(
    studies: FolderStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Path(studies.get_image_uri("a"))
    studies.list_images()
    later(image)
    with monkeypatch.context() as patch:
        patch.setattr("scripts.digests.digest_of", lambda path: None)
        assert studies.list_images() == ["b"]
    assert studies.get_labeled_images() == ["a"]


def test_labels_of_one_image_that_was_replaced_twice_are_both_kept(studies: FolderStudies, tmp_path: Path) -> None:
    image = Path(studies.get_image_uri("a"))
    content, drawn = image.read_bytes(), []
    for n in range(2):
        image.write_bytes(content)
        studies.list_images()
        studies.save_label("a", write_mask(tmp_path / "m.nii.gz", where=10 + n), FINAL, {})
        studies.list_images()
        drawn.append(Path(studies.get_label_uri("a", FINAL)).read_bytes())
        other_image(image)
        studies.list_images()
    tags = sorted(studies.get_labels_by_image_id("a"))
    assert tags[1] == f"{tags[0]}-2"
    assert [Path(studies.get_label_uri("a", tag)).read_bytes() for tag in tags] == drawn


@pytest.mark.parametrize("case", ["copied", "moved", "gone for a while", "of a version before"])
def test_what_is_known_of_an_image_stays_wherever_it_is_copied_to(studies: FolderStudies, case: str) -> None:
    folder = Path(studies._datastore_path)
    studies.update_image_info("a", {"PatientID": "P", "anomaly_score": 0.5})
    if case == "of a version before":
        path = Path(studies._datastore_config_path)
        known = json.loads(path.read_text())
        for obj in known["objects"].values():
            del obj["image"]["info"]["stamp"]
            obj["image"]["info"].pop("sha256", None)
        path.write_text(json.dumps(known))
    if case == "moved":
        (folder / "p").mkdir()
        (folder / "a.nii.gz").rename(folder / "p" / "x.nii.gz")
        for label in folder.rglob("labels/*/a.nii.gz"):
            label.rename(label.with_name("p-x.nii.gz"))
        assert studies.get_labeled_images() == ["p-x"]
        (folder / "p" / "x.nii.gz").rename(folder / "p-x.nii.gz")
        assert studies.get_labeled_images() == ["p-x"]
        return
    if case == "gone for a while":
        content = (folder / "a.nii.gz").read_bytes()
        (folder / "a.nii.gz").unlink()
        assert studies.list_images() == ["b"]
        (folder / "a.nii.gz").write_bytes(content)
    later(folder / "a.nii.gz")
    for server in (studies, FolderStudies(str(folder), [["FLAIR"]])):
        assert server.get_labeled_images() == ["a"]
        assert server.get_label_info("a", FINAL)["reader"] == "R"
        info = server.get_image_info("a")
        assert (info["PatientID"], info["anomaly_score"]) == ("P", 0.5)


def test_of_two_files_with_one_id_the_first_keeps_it(studies: FolderStudies, tmp_path: Path) -> None:
    folder = Path(studies._datastore_path)
    (folder / "p1").mkdir()
    (folder / "a.nii.gz").rename(folder / "p1" / "x.nii.gz")
    studies.list_images()
    studies.save_label("p1-x", write_mask(tmp_path / "m.nii.gz"), FINAL, {"reader": "R"})
    other_image(folder / "p1-x.nii.gz")
    for server in (studies, FolderStudies(str(folder), [["FLAIR"]])):
        assert server.get_labeled_images() == ["p1-x"] and server.get_image_info("p1-x")["name"] == "p1/x.nii.gz"
        assert server.status()["left_out"]["with the id of another"] == 1
    # while the first can't be read too; the second has it once the first is gone for good, and no label
    (folder / "p1").rename(tmp_path / "share")
    (folder / "p1").symlink_to(tmp_path / "not mounted")
    assert studies.list_images() == ["b"]
    (folder / "p1").unlink()
    assert studies.get_unlabeled_images() == ["b", "p1-x"]
    assert studies.get_image_info("p1-x")["name"] == "p1-x.nii.gz"


@pytest.mark.parametrize("what", ["digest", "label"])
def test_an_image_whose_labels_can_not_be_set_aside_is_not_listed(
    studies: FolderStudies, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    image = Path(studies.get_image_uri("a"))
    before = studies.json()["objects"]["a"]
    if what == "digest":
        later(image)
        monkeypatch.setattr("lib.studies.replaced.digest_at", fails)
    else:
        other_image(image)
        monkeypatch.setattr("lib.studies.replaced.os.replace", fails)
    assert studies.list_images() == ["b"] and studies.json()["objects"]["a"] == before
    reason = f"that changed and can't be read or set aside now ({os.strerror(errno.ESTALE)})"
    assert studies.status()["left_out"] == {reason: 1}
    monkeypatch.undo()
    assert studies.list_images() == ["a", "b"] and (studies.get_labeled_images() == ["a"]) is (what == "digest")


def test_a_result_is_not_kept_for_an_image_that_was_replaced_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    write_images(folder, "a")
    app = AnomalyDetection(str(tmp_path), str(folder), {"bundle": str(write_small_bundle(tmp_path)), "device": "cpu"})
    task = app._infers["lesion_mask"]
    run, files = task.run, []

    def replaced(request: Any) -> Any:
        found = run(request)
        files.append(found[0])
        other_image(folder / "a.nii.gz")
        app.datastore().list_images()
        return found

    task.run = replaced
    with pytest.raises(MONAILabelException, match="a: the series was replaced meanwhile; run it again") as refusal:
        app.infer({"model": "lesion_mask", "image": "a", "save_label": True})
    assert refusal.value.error == MONAILabelError.SERVER_ERROR and not os.path.exists(files[0])
    assert "anomaly_score" not in app.datastore().get_image_info("a")
    assert app.datastore().get_labels_by_image_id("a") == {}


def test_labels_that_can_not_be_listed_are_not_forgotten(
    studies: FolderStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(studies)
    labels = Path(studies._datastore_path) / "labels"
    for call in ("scandir", "listdir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(getattr(os, call), labels, errno.EACCES, 1000))
            with suppress(OSError):
                studies.list_images()
        assert kept(studies) == before


def fails_for_labels(case: str, studies: FolderStudies, patch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Take the reader's label of "a" away as a share that is not mounted does; return what brings it back."""
    labels = Path(studies._datastore_path) / "labels"
    file, kept_at = labels / "final" / "a.nii.gz", labels.parent.parent / "annexed"
    if case != "link":
        call, below, number = {
            "file": ("stat", file, errno.ESTALE),
            "folder": ("listdir", labels / "final", errno.EACCES),
            "folder of labels": ("listdir", labels, errno.EIO),
        }[case]
        patch.setattr(os, call, failing(getattr(os, call), below, number, 1000))
        return patch.undo
    file.rename(kept_at)
    file.symlink_to(labels / "nowhere")

    def back() -> None:
        file.unlink()
        kept_at.rename(file)

    return back


@pytest.mark.parametrize("case", ["link", "file", "folder", "folder of labels"])
@pytest.mark.parametrize("image", ["there", "gone"])
def test_what_is_known_of_labels_that_can_not_be_read_stays(
    studies: FolderStudies, case: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(studies._datastore_path)
    studies.list_images()
    before = studies.json()["objects"]
    if image == "gone":
        content = folder.joinpath("a.nii.gz").read_bytes(), folder.joinpath("a.nii.gz").stat().st_mtime_ns
        folder.joinpath("a.nii.gz").unlink()
    back = fails_for_labels(case, studies, monkeypatch)
    for server in (studies, FolderStudies(str(folder), [["FLAIR"]])):
        assert server.list_images() == (["a", "b"] if image == "there" else ["b"])
        assert server.get_unlabeled_images() == ["b"] and server.json()["objects"] == before
        reasons = server.status()["left_out"]
        assert len(reasons) == 1 and set(reasons.values()) == {1}
        assert image == "gone" or next(iter(reasons)).startswith("in labels that can't be read (")
    back()
    if image == "gone":
        folder.joinpath("a.nii.gz").write_bytes(content[0])
        os.utime(folder / "a.nii.gz", ns=(content[1], content[1]))
    assert studies.get_labeled_images() == ["a"] and studies.json()["objects"] == before


def test_a_label_that_is_away_is_not_that_of_the_next_image(
    studies: FolderStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(studies._datastore_path)
    digest = studies.get_image_info("a")["sha256"]
    back = fails_for_labels("link", studies, monkeypatch)
    image = nib.load(folder / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), folder / "a.nii.gz")
    for server in (studies, FolderStudies(str(folder), [["FLAIR"]])):
        server.list_images()
        assert any("can't be read or set aside now" in reason for reason in server.status()["left_out"])
    back()
    assert "a" in studies.get_unlabeled_images()
    assert set(studies.get_labels_by_image_id("a")) == {f"final-of-{digest[:12]}"}


def test_a_label_that_was_never_read_and_leads_nowhere_is_named(
    studies: FolderStudies, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(studies._datastore_path)
    (folder / "labels" / "final" / "b.nii.gz").symlink_to(folder / "nowhere")
    with caplog.at_level(logging.INFO):
        for server in (studies, FolderStudies(str(folder), [["FLAIR"]])):
            assert server.get_unlabeled_images() == ["b"] and server.get_labeled_images() == ["a"]
    why = f"in labels that can't be read ({os.strerror(errno.ENOENT)})"
    assert studies.status()["left_out"] == {why: 1} and f"1 {why} (final/b.nii.gz)" in caplog.text


def test_ten_times_the_studies_take_about_ten_times_as_long(tmp_path: Path) -> None:
    seconds = {}
    for n in (100, 1000):
        folder = tmp_path / str(n)
        folder.mkdir()
        for i in range(n):
            (folder / f"sub-{i:04}_flair.nii.gz").write_bytes(b"x")
        studies = FolderStudies(str(folder), [["FLAIR"]])
        runs = []
        for _ in range(5):
            start = time.process_time()
            assert len(studies.get_unlabeled_images()) == n
            MostAnomalousFirst()({}, studies)
            runs.append(time.process_time() - start)
        seconds[n] = min(runs)
    assert seconds[1000] < 30 * seconds[100]


def test_what_is_known_survives_another_process_and_a_broken_file(
    studies: FolderStudies, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = FolderStudies(studies._datastore_path, [["FLAIR"]])
    for n in range(50):
        # within one tick of the file system's clock, too
        studies.update_image_info("a", {f"s{n}": n})
        other.update_image_info("b", {f"o{n}": n})
    for mine in (studies, other):
        assert all(mine.get_image_info("a")[f"s{n}"] == mine.get_image_info("b")[f"o{n}"] == n for n in range(50))
    path = Path(studies._datastore_config_path)
    path.write_text("{")
    again = FolderStudies(studies._datastore_path, [["FLAIR"]])
    assert again.get_labeled_images() == ["a"] and again.get_unlabeled_images() == ["b"]
    assert [p.read_text() for p in path.parent.glob("*.broken")] == ["{"]
    assert "can't be read" in caplog.text
    assert again.status()["left_out"] == {}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("info", "is_kept"),
    [
        ({"note": "\ud83d"}, True),
        ({"note": nested(400)}, True),
        ({"note": float("inf")}, True),
        ({"note": endless()}, False),
    ],
    ids=["half an emoji", "nested", "infinite", "endless"],
)
def test_what_is_written_of_the_studies_can_be_read_again(
    studies: FolderStudies, info: dict[str, Any], is_kept: bool
) -> None:
    """The next process would set the file aside, with every score and all that was entered."""
    studies.update_image_info("b", {"anomaly_score": 0.7, "image_label": "healthy"})
    studies.list_images()
    if is_kept:
        studies.update_image_info("a", info)
    else:
        before = kept(studies)
        with pytest.raises(MONAILabelException, match="This can't be kept .* Nothing was stored"):
            studies.update_image_info("a", info)
        assert kept(studies) == before
    again = FolderStudies(studies._datastore_path, [["FLAIR"]])
    assert not list(Path(studies._datastore_path).glob("*.broken"))
    assert again.get_image_info("b")["anomaly_score"] == 0.7 and again.get_label_info("a", FINAL)["reader"] == "R"
    assert again.get_image_info("a").get("note") == (info["note"] if is_kept else None)
    os.unlink(again.get_dataset_archive(None))


def test_a_register_that_is_nested_too_deeply_is_set_aside(studies: FolderStudies) -> None:
    Path(studies._datastore_config_path).write_text("[" * 100_000)
    assert FolderStudies(studies._datastore_path, [["FLAIR"]]).get_labeled_images() == ["a"]
    assert len(list(Path(studies._datastore_path).glob("*.broken"))) == 1


def test_files_named_in_another_encoding_are_left_out(studies: FolderStudies, caplog: pytest.LogCaptureFixture) -> None:
    root = os.fsencode(studies._datastore_path)
    source = studies.get_image_uri("b")
    shutil.copy(source, root + b"/M\xfcller.nii.gz")
    os.makedirs(root + b"/labels/M\xfcller")
    shutil.copy(source, root + b"/labels/M\xfcller/b.nii.gz")
    with caplog.at_level(logging.INFO):
        assert studies.list_images() == ["a", "b"]
    assert "M\\udcfcller.nii.gz" in caplog.text
    left_out = studies.status()["left_out"]
    assert left_out["with too long a path or one with signs that a name can't have"] == 1
    assert left_out["in labels under a tag with signs that a name can't have"] == 1
    json.dumps(studies.json(), ensure_ascii=False).encode()
    assert FolderStudies(studies._datastore_path, [["FLAIR"]]).get_label_info("a", FINAL)["reader"] == "R"


def test_names_are_as_long_as_file_systems_take_in_bytes(studies: FolderStudies, tmp_path: Path) -> None:
    folder = Path(studies._datastore_path) / ("\u0449" * 60) / ("\u0449" * 60)
    folder.mkdir(parents=True)
    shutil.copy(studies.get_image_uri("b"), folder / "flair.nii.gz")
    assert studies.list_images() == ["a", "b"]
    fits = "\u0449" * 99 + "ab"
    shutil.copy(studies.get_image_uri("b"), Path(studies._datastore_path) / f"{fits}.nii.gz")
    assert fits in studies.list_images()
    studies.save_label(fits, write_mask(tmp_path / "m.nii.gz"), FINAL, {})
    assert fits in studies.get_labeled_images()
    # what is longer all the same is said of the disk, whose own error is the one that counts
    with pytest.raises(MONAILabelException, match="File name too long") as refusal:
        studies._replace({tmp_path / ("x" * 300): lambda part: part.write_bytes(b"x")}, lambda parts: None)
    assert refusal.value.error == MONAILabelError.SERVER_ERROR


def test_what_the_register_goes_by_is_not_changed_from_outside(studies: FolderStudies, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    label = str(write_mask(tmp_path / "p.nii.gz"))
    studies.save_label("a", label, "original", {"params": {"score": 0.5}})
    before = kept(studies)
    for key in (
        "name",
        "path",
        "ts",
        "stored",
        "outdated",
        "stamp",
        "params",
        "made_with",
        "StudyInstanceUID",
        "Modality",
    ):
        with pytest.raises(MONAILabelException, match=f"{key} can't be changed") as refusal:
            studies.update_image_info("a", {"PatientID": "P", key: str(secret)})
        assert refusal.value.error == MONAILabelError.INVALID_INPUT
        with pytest.raises(MONAILabelException, match=f"{key} can't be changed"):
            studies.update_label_info("a", "original", {"reader": "R", key: str(secret)})
    assert kept(studies) == before
    with pytest.raises(ImageNotFoundException):
        studies.update_image_info("nobody", {"name": "x"})
    # a client may send back what it was told
    studies.update_image_info("a", {**studies.get_image_info("a"), "PatientID": "P"})
    told = studies.get_label_info("a", "original")
    studies.update_label_info("a", "original", {**told, "reader": "R"})
    assert studies.list_images() == ["a", "b"] and studies.get_image_info("a")["PatientID"] == "P"
    assert studies.get_label_info("a", "original") == {**told, "reader": "R"}
    # nor followed where it was changed on the disk
    for name in (str(secret), "../secret", "x/../../secret"):
        studies._datastore.objects["a"].image.info["name"] = name
        for ask in (studies.get_image_uri, studies.get_image_info, studies.remove_image):
            with pytest.raises(ImageNotFoundException):
                ask("a")
    assert secret.exists()


def test_what_another_process_wrote_is_read_after_a_change_never_in_its_middle(studies: FolderStudies) -> None:
    """A thread that reads waits for the one that changes, whose change an older content would undo."""
    reader = threading.Thread(target=studies._read_again)
    with FileLock(f"{studies._datastore_config_path}.lock", is_singleton=True):
        reader.start()
        reader.join(0.5)
        assert reader.is_alive()
    reader.join(30)
    assert not reader.is_alive()


def test_an_uploaded_image_replaces_no_other(studies: FolderStudies, tmp_path: Path) -> None:
    before = kept(studies)
    other = write_head(tmp_path, "oblique", "other")["foreground"]
    for name, file, message in (
        ("a", other, "There is another image 'a'"),
        ("c", text(tmp_path / "x.exe"), "an image must be a file of .nii.gz, .nii, .nrrd, .mha that is not empty"),
        ("c", empty(tmp_path / "c.nii.gz"), "that is not empty"),
    ):
        with pytest.raises(MONAILabelException, match=message):
            studies.add_image(name, file, {})
    assert studies.add_image("a", studies.get_image_uri("a"), {}) == "a"
    assert kept(studies) == before
    assert studies.add_image("", other, {"from": "x", "stored": "y"}) == "other_brain"
    assert set(studies.get_image_info("other_brain")) == {"from", "name", "ts", "path"}
    assert Path(studies.get_image_uri("other_brain")).read_bytes() == Path(other).read_bytes()
    studies.remove_image("a")
    assert studies.list_images() == ["b", "other_brain"]
    assert not list(Path(studies._datastore_path).rglob("a.nii.gz"))
    with pytest.raises(ImageNotFoundException):
        studies.remove_image("a")


def test_the_most_anomalous_comes_first_and_hidden_files_stop_nothing(studies: FolderStudies, tmp_path: Path) -> None:
    folder = Path(studies._datastore_path)
    write_images(folder, "c", "d", "e")
    (folder / "._c.nii.gz").write_bytes(b"Mac OS X")
    (folder / "labels" / "final" / "._c.nii.gz").write_bytes(b"Mac OS X")
    (folder / "d_T1w.nii.gz").write_bytes(b"x")
    studies.list_images()
    for image, score in (("a", 0.99), ("c", 0.2), ("d", 0.7), ("d_T1w", 0.9), ("b", "high"), ("e", 10**400)):
        studies.update_image_info(image, {"anomaly_score": score})
    for unread, first in ((4, "d"), (3, "c"), (2, "b"), (1, "e")):
        found = MostAnomalousFirst()({}, studies)
        assert found is not None
        assert (found["id"], found["unread"]) == (first, unread)
        studies.save_label(first, write_mask(tmp_path / "m.nii.gz"), FINAL, {})
    assert MostAnomalousFirst()({}, studies) is None


def test_dice_compares_masks_in_any_order_of_axes(studies: FolderStudies, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    predicted, read = (rng.integers(0, 2, SHAPE).astype(np.uint8) for _ in range(2))
    nib.save(nib.Nifti1Image(predicted, AFFINE), tmp_path / "p.nii.gz")
    for image in ("a", "b"):
        studies.save_label(image, str(tmp_path / "p.nii.gz"), "original", {})
    # put there by another program, in another order
    other = nib.Nifti1Image(read, AFFINE).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(other, Path(studies._datastore_path) / "labels" / "final" / "b.nii.gz")
    Path(studies.get_label_uri("a", "original")).write_bytes(b"broken")
    both = np.logical_and(predicted, read).sum()
    expected = 2 * both / (predicted.sum() + read.sum())
    assert Dice()({}, studies) == {"b": pytest.approx(expected, abs=1e-6)}
    assert studies.get_image_info("b")["dice"] == pytest.approx(expected, abs=1e-6)


class Away:
    """Studies on a server that is away at times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def list_images(self) -> list[str]:
        if self.failures:
            self.failures -= 1
            raise MONAILabelException(MONAILabelError.SERVER_ERROR, "The DICOM server doesn't answer.")
        return ["e", "d", "c", "b", "a"]

    def taken_by(self, images: list[str], modalities: list[str]) -> list[str]:
        return images


def test_a_batch_goes_on_after_errors_and_says_what_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triage, "LISTING_WAITS", (0.0, 0.0))
    ran: list[str] = []

    def infer(task: dict[str, Any], datastore: Any) -> dict[str, Any]:
        ran.append(task["image"])
        if task["image"] == "b":
            raise MONAILabelException(MONAILabelError.SERVER_ERROR, "b: 3 of 9 instances came")
        if task["image"] == "c":
            raise ConnectionError("reset by peer")
        return {"params": {"score": 0.5}}

    def is_done(request: dict[str, Any], datastore: Any) -> bool:
        if request["image"] == "d":
            raise ConnectionError("is away")
        return bool(request["image"] == "a")

    batch = EveryStudy(is_done, lambda request: ["MR"])
    request = {"model": "lesion_mask", "device": "cpu"}
    with caplog.at_level(logging.INFO):
        result = batch(request, Away(2), infer)  # type: ignore[arg-type]
    assert {i: row["status"] for i, row in result.items()} == {
        "a": "skipped", "b": "failed", "c": "failed", "d": "ok", "e": "ok",
    }  # fmt: skip
    assert ran == ["b", "c", "d", "e"]  # none twice
    assert caplog.text.count("The studies can't be listed: The DICOM server doesn't answer. Asked again in 0 s.") == 2
    said = [r.getMessage() for r in caplog.records]
    assert "5 studies: 2 done now, 1 skipped as they were done before, 2 failed, 0 left for another time" in said
    assert said[-2:] == ["FAILED b: b: 3 of 9 instances came", "FAILED c: reset by peer"]
    ran.clear()
    # a limit counts those that are run
    result = batch({**request, "max_batch_size": 1}, Away(0), infer)  # type: ignore[arg-type]
    assert ran == ["b"] and set(result) == {"a", "b"}
    ran.clear()
    batch({**request, "overwrite": True}, Away(0), infer)  # type: ignore[arg-type]
    assert ran == ["a", "b", "c", "d", "e"]
    with pytest.raises(MONAILabelException, match="doesn't answer"):
        batch(request, Away(3), infer)  # type: ignore[arg-type]
    ran.clear()
    for images in (["/etc/passwd"], ["a", None], "everything"):
        with pytest.raises(MONAILabelException) as refusal:
            batch({**request, "images": images}, Away(0), infer)  # type: ignore[arg-type]
        assert refusal.value.error == MONAILabelError.INVALID_INPUT
    assert ran == []


@pytest.mark.parametrize("images", ["all", ["e", "d", "c", "b", "a"]])
def test_a_batch_holds_the_list_of_its_studies_once(images: Any) -> None:
    """MONAI Label makes all requests, each a copy, before the first runs: lists in them grow with the square of the studies."""
    lists: list[list[Any]] = []

    def infer(task: dict[str, Any], datastore: Any) -> dict[str, Any]:
        lists.append([value for value in task.values() if isinstance(value, list)])
        return {"params": {"score": 0.5}}

    batch = EveryStudy(lambda request, datastore: False, lambda request: ["MR"])
    batch({"model": "lesion_mask", "device": "cpu", "images": images}, Away(0), infer)  # type: ignore[arg-type]
    assert lists[0] == [["a", "b", "c", "d", "e"]] and len(lists) == 5
    assert all(one is first for held in lists for one, first in zip(held, lists[0], strict=True))


def test_what_another_process_says_of_a_label_is_read(studies: FolderStudies, tmp_path: Path) -> None:
    other = FolderStudies(studies._datastore_path, [["FLAIR"]])
    for score in (0.9, 0.1):
        other.save_label("a", write_mask(tmp_path / "m.nii.gz"), "original", {"params": {"score": score}})
        assert studies.get_label_info("a", "original")["params"] == {"score": score}


def test_a_batch_again_runs_only_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    write_images(folder, "a", "b")
    (folder / "b.nii.gz").rename(folder / "b.NII.GZ")
    bundle = write_small_bundle(tmp_path)
    conf = {"bundle": str(bundle), "device": "cpu"}
    app = AnomalyDetection(str(tmp_path), str(folder), conf)

    def statuses(**more: Any) -> dict[str, str]:
        request = {"model": "lesion_mask", "images": "all", "device": "cpu", **more}
        return {i: row["status"] for i, row in app.batch_infer(request).items()}

    assert statuses() == {"a": "ok", "b": "ok"}
    score = app.datastore().get_image_info("a")["anomaly_score"]
    assert statuses() == {"a": "skipped", "b": "skipped"}
    app = AnomalyDetection(str(tmp_path), str(folder), conf)
    assert statuses() == {"a": "skipped", "b": "skipped"}
    assert statuses(overwrite=True) == {"a": "ok", "b": "ok"}
    assert statuses(threshold=0.2) == {"a": "ok", "b": "ok"}
    assert statuses(threshold=0.2) == {"a": "skipped", "b": "skipped"}
    assert statuses(model="lesion_preview") == {"a": "ok", "b": "ok"}
    assert statuses(model="lesion_preview") == {"a": "skipped", "b": "skipped"}
    assert app.datastore().get_image_info("a")["anomaly_score"] == score
    # another image, a lost result, the same weights unpacked again, other weights
    image = nib.load(folder / "a.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32)[::-1], image.affine), folder / "a.nii.gz")
    assert statuses(threshold=0.2) == {"a": "ok", "b": "skipped"}
    os.unlink(app.datastore().get_label_uri("b", "original"))
    assert statuses(threshold=0.2) == {"a": "skipped", "b": "ok"}
    weights = bundle / "models" / "model.pt"
    os.utime(weights)
    assert statuses(threshold=0.2) == {"a": "skipped", "b": "skipped"}
    state = torch.load(weights, weights_only=True)
    torch.save({name: values + 1 if values.is_floating_point() else values for name, values in state.items()}, weights)
    assert statuses(threshold=0.2) == {"a": "ok", "b": "ok"}
    assert statuses(threshold=0.2, label_tag="final") == {"a": "failed", "b": "failed"}
    assert app.datastore().get_labeled_images() == []


def test_checked_label_takes_any_whole_value_where_none_is_named(tmp_path: Path) -> None:
    image = write_head(tmp_path, "oblique")["image"]
    assert checked_label(write_mask(tmp_path / "m.nii.gz", 9), image).max() == 9


def test_scores_of_one_name_in_two_folders_are_both_in_the_archive(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    for patient in ("p1", "p2", "p3"):
        (folder / patient).mkdir(parents=True)
        write_images(folder / patient, "flair")
    studies = FolderStudies(str(folder), [["FLAIR"]])
    with pytest.raises(MONAILabelException, match="No study has a label of a reader"):
        studies.get_dataset_archive(None)
    for n, image in enumerate(("p1-flair", "p2-flair")):
        studies.save_label(image, write_mask(tmp_path / "m.nii.gz", where=10 + n), FINAL, {})
    path = studies.get_dataset_archive(None)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.read("label/p2-flair.nii.gz") == Path(studies.get_label_uri("p2-flair", FINAL)).read_bytes()
    os.unlink(path)
    assert sorted(names) == [
        "image/p1-flair.nii.gz", "image/p2-flair.nii.gz", "label/p1-flair.nii.gz", "label/p2-flair.nii.gz", "metadata.json",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", [".mhd", ".nrrd"])
def test_the_voxels_beside_a_header_are_in_the_archive(ending: str, tmp_path: Path) -> None:
    studies, voxels = detached(tmp_path, ending)
    path = studies.get_dataset_archive(None)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    os.unlink(path)
    there = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert there == {f"image/p-x/x{ending}", "image/p-x/x.raw", "label/p-x.nii.gz", "metadata.json"}
    for got, known in zip(
        read_volume(tmp_path / "out" / "image" / "p-x" / f"x{ending}"),
        read_volume(voxels.with_suffix(ending)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, known)
    # what lies elsewhere would be found nowhere
    voxels.rename(voxels.parents[1] / "x.raw")
    header = voxels.with_suffix(ending)
    header.write_text(header.read_text().replace("x.raw", "../x.raw"))
    studies.list_images()
    studies.save_label("p-x", str(tmp_path / "m.nii.gz"), FINAL, {})
    with pytest.raises(
        MONAILabelException, match="image/p-x: the files of its voxels must lie in the folder of its header"
    ):
        studies.get_dataset_archive(None)


@pytest.mark.parametrize("case", ["a full disk", "a label that is gone"])
def test_an_archive_that_fails_leaves_nothing(
    studies: FolderStudies, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    if case == "a label that is gone":
        monkeypatch.setattr(studies, "get_label_uri", lambda *_: str(tmp_path / "gone.nii.gz"))
    with files_up_to(1000 if case == "a full disk" else 1 << 20), pytest.raises(OSError):
        studies.get_dataset_archive(None)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("extension", [".nii.gz", ".nii"])
def test_a_result_that_can_not_be_written_leaves_nothing(
    extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_head(tmp_path, "oblique")["image"]
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with files_up_to(100), pytest.raises(OSError):
        write(MetaTensor(torch.rand(1, *SHAPE), affine=torch.tensor(AFFINE)), source, extension, "float32")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_result_that_another_replaced_is_not_marked_done(studies: FolderStudies, tmp_path: Path) -> None:
    mask, first, second = write_mask(tmp_path / "p.nii.gz"), {"score": 0.1}, {"score": 0.2}
    for params in (first, second):
        studies.save_label("a", mask, "original", {"params": params})
    studies.mark_done("a", "original", first, {"version": "1"})
    assert "made_with" not in studies.get_label_info("a", "original")
    studies.mark_done("a", "original", second, {"version": "1"})
    assert studies.get_label_info("a", "original")["made_with"] == {"version": "1"}


@pytest.mark.parametrize("place", ["images_dir", "labels_dir", "ext", "tag", "label ext"])
def test_a_register_that_leads_elsewhere_is_set_aside(place: str, tmp_path: Path) -> None:
    """Whoever wrote it: no file beside the studies is read or removed."""
    folder = tmp_path / "studies"
    write_images(folder, "a")
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    label = {"ext": "/../../secret.txt" if place == "label ext" else ".nii.gz", "info": {"name": "a.nii.gz"}}
    tag = "../.." if place == "tag" else "final"
    image = {"ext": "/../../secret.txt" if place == "ext" else ".nii.gz", "info": {"name": "a.nii.gz"}}
    dirs = {"images_dir": ".", "labels_dir": "labels"}
    if place in dirs:
        dirs[place] = "../.." if place == "images_dir" else str(tmp_path)
    known = {"name": "n", "description": "d", **dirs, "objects": {"a": {"image": image, "labels": {tag: label}}}}
    (folder / "datastore_v2.json").write_text(json.dumps(known))
    studies = FolderStudies(str(folder), [["FLAIR"]])
    assert studies.list_images() == ["a"] and studies.get_labeled_images() == []
    assert len(list(folder.glob("datastore_v2.json.*.broken"))) == 1
    studies.remove_label("a", "final")
    assert secret.read_text() == "mine"


def test_studies_are_listed_without_a_folder_of_labels(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    write_images(folder, "a")
    studies = FolderStudies(str(folder), [["FLAIR"]])
    (folder / "labels").mkdir(exist_ok=True)
    shutil.rmtree(folder / "labels")
    assert studies.list_images() == ["a"]


def test_a_client_cannot_say_what_a_label_was_made_with(tmp_path: Path) -> None:
    """Its label would count as the model's result, and the study as done."""
    folder = tmp_path / "studies"
    write_images(folder, "a")
    studies = FolderStudies(str(folder), [["FLAIR"]])
    mask = write_mask(tmp_path / "mask.nii.gz")
    studies.save_label("a", str(mask), "original", {"made_with": {"version": "1"}, "stored": {"x": "y"}, "note": "n"})
    info = studies.get_label_info("a", "original")
    assert info["note"] == "n" and not {"made_with", "stored"} & info.keys()


def test_an_image_that_is_added_reads_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    write_images(folder, "a")
    studies = FolderStudies(str(folder), [["FLAIR"]])
    (tmp_path / "secret").write_bytes(b"\1" * 3200)
    upload = tmp_path / "x.mha"
    header = "ObjectType = Image\nNDims = 3\nDimSize = 40 40 2\nElementType = MET_UCHAR\nElementDataFile = "
    upload.write_text(f"{header}{tmp_path / 'secret'}\n")
    with pytest.raises(MONAILabelException, match="its header names another file"):
        studies.add_image("x", str(upload), {})
    assert studies.list_images() == ["a"]


def test_the_voxels_beside_a_header_are_its_image_too(tmp_path: Path) -> None:
    """What was made of an image is refused where only the file of its voxels was replaced."""
    path = tmp_path / "a.mhd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.uint8)), str(path))
    stamps = stamps_of([str(path)])
    check_unchanged("a", stamps)  # nothing was replaced
    path.with_suffix(".raw").write_bytes(bytes([1]) * 120)
    with pytest.raises(MONAILabelException, match="a: the series was replaced meanwhile"):
        check_unchanged("a", stamps)
