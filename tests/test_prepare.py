"""The commands that write datalists, on miniatures of each published layout."""

from __future__ import annotations

import csv
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fire
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from PIL import Image

import dicom
from scripts.errors import message_of
from scripts.learning.datalists import read_datalist
from scripts.prepare.__main__ import COMMANDS, check_options
from scripts.prepare.arrays import arrays
from scripts.prepare.brain_mr import brain_mr
from scripts.prepare.brats import brats
from scripts.prepare.chexpert import chexpert
from scripts.prepare.counting import described
from scripts.prepare.folder import folder
from scripts.prepare.lgg import lgg
from scripts.prepare.merge import merge
from scripts.prepare.msd_brain import msd_brain
from scripts.prepare.nih import nih
from scripts.prepare.splitting import read_split, split_subjects

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"
TUMOUR = (0, 3, 0, 5, 1, 0)
"""Voxels that are marked in each of six slices, from the bottom."""


def write_volume(path: Path, upwards: bool = True, marked: Sequence[int] | None = None, channels: int = 0) -> None:
    """A volume of six slices of 4 x 4 voxels, or a mask with so many voxels marked in each."""
    array = np.arange(96, dtype=np.uint8).reshape(4, 4, 6)
    if marked is not None:
        array = np.zeros((4, 4, 6), np.uint8)
        for z, n in enumerate(marked):
            array.reshape(16, 6)[:n, z] = 4
    if channels:
        array = np.stack([array + 10 * c for c in range(channels)], axis=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    image = nib.Nifti1Image(array, affine)
    if not upwards:
        image = image.as_reoriented(np.array([[0, 1], [1, 1], [2, -1]]))
    nib.save(image, path)


def write_case(
    folder: Path, names: Sequence[str] = ("t1", "t1ce", "t2", "flair"), end: str = ".nii.gz", sep: str = "_"
) -> None:
    for name in names:
        write_volume(folder / f"{folder.name}{sep}{name}{end}")
    write_volume(folder / f"{folder.name}{sep}seg{end}", marked=TUMOUR)


def items_of(path: Path) -> list[dict[str, Any]]:
    items = read_datalist(path)
    for item in items:
        for file in [item["image"]] if isinstance(item["image"], str) else item["image"]:
            assert Path(file).exists()
        assert Path(item.get("mask", file)).exists() and Path(item.get("foreground", file)).exists()
    return items


def items_in(path: Path) -> list[dict[str, Any]]:
    return [item for items in written(path).values() if isinstance(items, list) for item in items]


def written(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def write_picture(path: Path, marked: int = 1) -> None:
    """A picture of 8 rows and 10 columns of which so many pixels are white, as a radiograph or as a mask."""
    pixels = np.zeros(80, np.uint8)
    pixels[:marked] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".dcm":
        dicom.save(dicom.image(pixels.reshape(8, 10)), path)
    else:
        Image.fromarray(pixels.reshape(8, 10)).save(path)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


# BraTS


def test_brats_of_every_year_is_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_case(data / "HGG" / "Brats18_2013_10_1")
    write_case(data / "LGG" / "BraTS19_TMC_0_1")
    write_case(data / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_001", end=".nii")
    misnamed = data / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_355"
    write_case(misnamed, end=".nii")
    (misnamed / "BraTS20_Training_355_seg.nii").rename(misnamed / "W39_1998.09.19_Segm.nii")
    write_case(data / "BraTS2021_00000")
    for timepoint in ("000", "001"):
        write_case(data / f"BraTS-GLI-00003-{timepoint}", names=("t1n", "t1c", "t2w", "t2f"), sep="-")
    (data / "BraTS2021_00000" / "._BraTS2021_00000_seg.nii.gz").touch()
    brats(root=str(data), output=str(tmp_path / "d.json"), sequences="t1,t1ce,t2,flair")
    items = items_of(tmp_path / "d.json")
    assert {item["subject"] for item in items} == {
        *("Brats18_2013_10_1", "BraTS19_TMC_0_1", "BraTS20_Training_001", "BraTS20_Training_355", "BraTS2021_00000"),
        "BraTS-GLI-00003",
    }
    assert len(items) == 7 and all(item["label"] == [0, 1, 0, 1, 1, 0] for item in items)
    grades = {item["subject"]: item.get("groups") for item in items}
    assert grades["Brats18_2013_10_1"] == {"grade": "HGG"} and grades["BraTS19_TMC_0_1"] == {"grade": "LGG"}
    assert grades["BraTS2021_00000"] is None
    [new] = [item for item in items if "00003-001" in item["mask"]]
    assert [Path(p).name[20:] for p in new["image"]] == ["t1n.nii.gz", "t1c.nii.gz", "t2w.nii.gz", "t2f.nii.gz"]
    assert written(tmp_path / "d.json")["left_out"] == {}


def test_slices_are_counted_from_the_bottom_and_faint_ones_are_left_out(tmp_path: Path) -> None:
    case = tmp_path / "data" / "BraTS2021_00000"
    for upwards in (True, False):
        write_volume(case / "BraTS2021_00000_flair.nii.gz", upwards)
        write_volume(case / "BraTS2021_00000_seg.nii.gz", upwards, marked=TUMOUR)
        path = tmp_path / f"{upwards}.json"
        brats(root=str(tmp_path / "data"), output=str(path), slices=(1, 4), least_voxels=2)
        [item] = items_of(path)
        assert item["label"][:: 1 if upwards else -1] == [-1, 1, 0, 1, -1, -1]
        assert isinstance(item["image"], str)
        brats(root=str(tmp_path / "data"), output=str(path), every=2, overwrite=True)
        [item] = items_of(path)
        assert item["label"][:: 1 if upwards else -1] == [0, -1, 0, -1, 1, -1]


def test_damaged_cases_are_named_and_a_rerun_reads_only_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = tmp_path / "data", tmp_path / "d.json"
    for n in range(4):
        write_case(data / f"BraTS2021_0000{n}")
    (data / "BraTS2021_00001" / "BraTS2021_00001_flair.nii.gz").unlink()
    seg = data / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz"
    seg.write_bytes(seg.read_bytes()[:60])
    flair = data / "BraTS2021_00003" / "BraTS2021_00003_flair.nii.gz"
    nib.save(nib.load(flair).slicer[:, :, 1:], flair)
    brats(root=str(data), output=str(path))
    reasons = written(path)["left_out"]
    assert reasons["BraTS2021_00001"] == "has no flair."
    assert "BraTS2021_00002_seg.nii.gz: can't be read" in reasons["BraTS2021_00002"]
    mask = str(flair).replace("flair", "seg")
    assert (
        f"{mask}: lies on another grid than {flair} (4 x 4 x 6 voxels against 4 x 4 x 5)" in reasons["BraTS2021_00003"]
    )
    assert "left out: BraTS2021_00001: has no flair." in capsys.readouterr().out

    write_case(data / "BraTS2021_00002")
    read = []
    monkeypatch.setattr("scripts.prepare.brats.lesion_voxels", lambda mask, _: read.append(mask.name) or LESION)
    (tmp_path / "d.json.read").open("a").write('\n["killed while it wr')
    brats(root=str(data), output=str(path))
    assert read == ["BraTS2021_00002_seg.nii.gz", "BraTS2021_00003_seg.nii.gz"]
    assert [item["subject"] for item in items_of(path)].count("BraTS2021_00002") == 1


@pytest.mark.parametrize("change", ["orders", "trailing axis", "channel"])
def test_a_mask_may_hold_its_voxels_in_another_order(change: str, tmp_path: Path) -> None:
    """In any of the 48; the slices are counted as in the image. Channels lie in one order, as everything takes them so."""
    case = tmp_path / "data" / "BraTS2021_00000"
    write_case(case)
    seg = case / "BraTS2021_00000_seg.nii.gz"
    mask = nib.load(seg)
    marked = np.asarray(mask.dataobj)
    changed = [nib.Nifti1Image(marked[..., None], mask.affine)]
    if change == "orders":
        changed = [
            nib.Nifti1Image(marked, mask.affine).as_reoriented(np.array(list(zip(axes, signs, strict=True))))
            for axes in permutations(range(3))
            for signs in product((1, -1), repeat=3)
        ]
    elif change == "channel":
        write_volume(case / "BraTS2021_00000_t2.nii.gz", upwards=False)
    path, options = tmp_path / "d.json", {"root": str(tmp_path / "data"), "sequences": "flair,t2"}
    for n, image in enumerate(changed):
        nib.save(image, seg)
        if change == "channel":
            with pytest.raises(
                ValueError, match=r"t2.nii.gz: lies on another grid than .*flair.nii.gz \(their axes have"
            ):
                brats(output=str(path), **options)
        else:
            brats(output=str(path), overwrite=n > 0, **options)
            assert items_of(path)[0]["label"] == [0, 1, 0, 1, 1, 0]


def test_a_command_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = tmp_path / "data", tmp_path / "d.json"
    for n in range(4):
        write_case(data / f"BraTS2021_0000{n}", names=("flair",))
    read: list[str] = []

    def stopped(mask: Path, _: Any) -> dict[str, Any]:
        read.append(mask.name[:15])
        if len(read) == 3:
            raise KeyboardInterrupt
        return LESION

    monkeypatch.setattr("scripts.prepare.brats.lesion_voxels", stopped)
    with pytest.raises(KeyboardInterrupt):
        brats(root=str(data), output=str(path))
    assert not path.exists()
    brats(root=str(data), output=str(path))
    assert read == [f"BraTS2021_0000{n}" for n in (0, 1, 2, 2, 3)] and len(items_of(path)) == 4


LESION = {"voxels": list(TUMOUR), "upwards": True}


def test_a_split_is_drawn_by_patient_or_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    for n in range(10):
        write_case(data / f"BraTS2021_0000{n}", names=("flair",))
    drawn = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
    for path, seed in zip(drawn, (0, 0, 1), strict=True):
        brats(root=str(data), output=str(path), seed=seed)
    a, b, c = (written(path) for path in drawn)
    assert [len(a[s]) for s in ("training", "validation", "test")] == [7, 1, 2]
    assert a["test"] == b["test"] != c["test"]

    (tmp_path / "s.csv").write_text("subject,split\nBraTS2021_00004,train\nBraTS2021_00001,val\nBraTS2021_77777,test\n")
    brats(root=str(data), output=str(tmp_path / "d.json"), split=str(tmp_path / "s.csv"))
    content = written(tmp_path / "d.json")
    assert [item["subject"] for item in content["training"] + content["validation"]] == [
        "BraTS2021_00004",
        "BraTS2021_00001",
    ]
    assert len(content["left_out"]) == 8
    assert "1 were not found (BraTS2021_77777)" in capsys.readouterr().out

    (data / "cases.csv").write_text("case,split\n" + "".join(f"BraTS2021_0000{n},test\n" for n in range(10)))
    brats(root=str(data), output=str(tmp_path / "e.json"))
    assert len(written(tmp_path / "e.json")["test"]) == 10


def test_a_patient_of_two_data_sets_is_one(tmp_path: Path) -> None:
    """The split names cases, the datalist patients; one that is trained on in one list is not tested on in another."""
    data = tmp_path / "data"
    for n in range(3):
        write_case(data / f"BraTS2021_0000{n}", names=("flair",))
    (data / "cases.csv").write_text("case,split,tcga_patient\nBraTS2021_00001,test,TCGA_CS_4942\n")
    split = tmp_path / "s.csv"
    split.write_text("subject,split\nBraTS2021_00000,train\nBraTS2021_00001,test\nBraTS2021_00002,train\n")
    brats(root=str(data), output=str(tmp_path / "d.json"), split=str(split))
    content = written(tmp_path / "d.json")
    assert [item["subject"] for item in content["test"]] == ["TCGA_CS_4942"]
    assert len(content["training"]) == 2 and content["left_out"] == {}
    split.write_text(split.read_text() + "TCGA_CS_4942,train\n")
    with pytest.raises(
        ValueError, match="BraTS2021_00001 and TCGA_CS_4942 are one person, but the split has them in two"
    ):
        brats(root=str(data), output=str(tmp_path / "e.json"), split=str(split))
    other = {"image": "x.nii.gz", "label": 0, "subject": "TCGA_CS_4942"}
    for section, refused in (("test", False), ("training", True)):
        (tmp_path / "o.json").write_text(json.dumps({section: [other]}))
        options = {"root": str(tmp_path), "output": str(tmp_path / "m.json"), "datalists": "d.json,o.json"}
        if refused:
            with pytest.raises(ValueError, match="TCGA_CS_4942 is published in 'test' and in 'training'"):
                merge(**options, overwrite=True)
        else:
            merge(**options)
            assert len({item["subject"] for item in written(tmp_path / "m.json")["test"]}) == 1


def test_another_output_is_not_written_over(tmp_path: Path) -> None:
    write_case(tmp_path / "data" / "BraTS2021_00000")
    path = tmp_path / "d.json"
    for content in ('{"training": []}', "no json"):
        path.write_text(content)
        with pytest.raises(ValueError, match="d.json: is there already"):
            brats(root=str(tmp_path / "data"), output=str(path))
        assert path.read_text() == content
    brats(root=str(tmp_path / "data"), output=str(path), overwrite=True)
    brats(root=str(tmp_path / "data"), output=str(path))  # the same command again
    with pytest.raises(ValueError, match="--overwrite true"):
        brats(root=str(tmp_path / "data"), output=str(path), sequences="t1")


@pytest.mark.parametrize("change", ["label", "section", "digest"])
def test_what_was_corrected_by_hand_is_not_written_over(change: str, tmp_path: Path) -> None:
    """Nor a file of an earlier version, which can't tell; one that was laid out anew alone is the same."""
    write_case(tmp_path / "data" / "BraTS2021_00000")
    path = tmp_path / "d.json"
    brats(root=str(tmp_path / "data"), output=str(path))
    path.write_text(json.dumps(written(path), indent=4))
    brats(root=str(tmp_path / "data"), output=str(path))
    content = written(path)
    if change == "label":
        content["training"][0]["label"][1] = -1
    elif change == "section":
        content["demo"] = content.pop("training")
    else:
        del content["digest"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"d.json: may have been changed by hand .* --overwrite true"):
        brats(root=str(tmp_path / "data"), output=str(path))
    assert written(path) == content
    brats(root=str(tmp_path / "data"), output=str(path), overwrite=True)
    assert written(path)["training"][0]["label"] == [0, 1, 0, 1, 1, 0]


def test_options_that_cannot_be_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    common: dict[str, Any] = {"root": str(tmp_path / "data"), "output": str(tmp_path / "d.json")}
    for options, message in (
        ({"sequences": "t3"}, "--sequences must be one of t1, t1ce, t2, flair, got 't3'"),
        ({"slices": 80}, "--slices must be the first and the last, such as 80,128, got 80"),
        ({"slices": (128, 80)}, "--slices must be"),
        ({"fractions": (0.5, 0.1)}, "fractions must be three numbers"),
        ({"fractions": (0.5, 0.1, 0.1)}, "fractions must add up to 1"),
        ({"least_voxels": 0}, "least_voxels must be"),
        ({"output": "d.txt"}, "--output must be the name of a .json file, got 'd.txt'"),
        ({"root": 2020}, "--root must be a folder, got 2020; of a path, write ./2020"),
        ({"root": "nowhere"}, "nowhere: no such folder"),
        ({"split": "nowhere.csv"}, "nowhere.csv: can't be read as a CSV"),
        ({}, "nothing to list was found. Expected are folders such as BraTS2021_00000"),
    ):
        with pytest.raises(ValueError, match=message):
            brats(**(common | options))
    assert not (tmp_path / "d.json").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_empty_path_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a shell's variable that isn't set."""
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"root": str(tmp_path), "output": "d.json", "sequences": "flair", "images": "x"}
    options["datalists"] = "a.json"
    taken = {k: v for k, v in options.items() if k in inspect.signature(COMMANDS[name]).parameters}
    for option in ("root", "images"):
        if option in taken:
            with pytest.raises(ValueError, match=f"--{option} must be .*, got '', as of a variable that isn't set"):
                COMMANDS[name](**(taken | {option: ""}))
    assert not list(tmp_path.iterdir())


# the other volumes


def test_the_decathlon(tmp_path: Path) -> None:
    data = tmp_path / "Task01_BrainTumour"
    entries = []
    for n in range(3):
        name = f"BRATS_00{n}.nii.gz"
        write_volume(data / "imagesTr" / name, channels=4)
        write_volume(data / "labelsTr" / name, marked=TUMOUR)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (data / "labelsTr" / "BRATS_002.nii.gz").unlink()
    (data / "dataset.json").write_text(json.dumps({"training": entries, "test": ["./imagesTs/BRATS_485.nii.gz"]}))
    msd_brain(root=str(data), output=str(data / "d.json"), fractions=(1, 0, 0))
    items = items_of(data / "d.json")
    assert {item["subject"] for item in items} == {"BRATS_000", "BRATS_001"}
    assert items[0]["label"] == [0, 1, 0, 1, 1, 0]
    assert list(written(data / "d.json")["left_out"]) == ["BRATS_002"]

    with pytest.raises(ValueError, match="--images DIR is needed"):
        msd_brain(root=str(data), output=str(tmp_path / "e.json"), sequences="t2")
    msd_brain(root=str(data), output=str(tmp_path / "e.json"), sequences="t2,flair", images=str(tmp_path / "images"))
    t2, flair = (nib.load(path) for path in items_of(tmp_path / "e.json")[0]["image"])
    assert t2.shape == (4, 4, 6) and np.array_equal(t2.dataobj, np.asarray(flair.dataobj) + 30)


def test_the_decathlon_takes_no_other_volume_for_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However new it is; what it wrote itself is not read again."""
    data, images = tmp_path / "data", tmp_path / "images"
    write_volume(data / "imagesTr" / "B_1.nii.gz", channels=4)
    write_volume(data / "labelsTr" / "B_1.nii.gz", marked=TUMOUR)
    entry = {"image": "./imagesTr/B_1.nii.gz", "label": "./labelsTr/B_1.nii.gz"}
    (data / "dataset.json").write_text(json.dumps({"training": [entry]}))
    options: dict[str, Any] = {"root": str(data), "sequences": "flair", "images": str(images)}
    theirs = images / "B_1" / "flair.nii.gz"
    write_volume(theirs, marked=TUMOUR)
    before = theirs.read_bytes()
    with pytest.raises(ValueError, match="flair.nii.gz: is there already and is another volume"):
        msd_brain(output=str(tmp_path / "d.json"), **options)
    assert theirs.read_bytes() == before
    msd_brain(output=str(tmp_path / "d.json"), overwrite=True, **options)
    assert np.array_equal(nib.load(theirs).dataobj, nib.load(data / "imagesTr" / "B_1.nii.gz").dataobj[..., 0])
    with monkeypatch.context() as patched:
        patched.setattr("scripts.prepare.msd_brain.load_nifti", lambda path: pytest.fail("reads it again"))
        msd_brain(output=str(tmp_path / "d.json"), **options)
    theirs.unlink()
    msd_brain(output=str(tmp_path / "d.json"), **options)
    assert theirs.exists()


def test_a_patient_whose_mask_marks_nothing_is_no_healthy_one(tmp_path: Path) -> None:
    """In sets where every patient has a tumour."""
    data = tmp_path / "data"
    write_case(data / "BraTS2021_00000")
    write_case(data / "BraTS2021_00001")
    write_volume(data / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz", marked=[0] * 6)
    brats(root=str(data), output=str(tmp_path / "brats.json"))
    entries = []
    for n, marked in enumerate((TUMOUR, [0] * 6)):
        write_volume(data / "imagesTr" / f"B_{n}.nii.gz", channels=4)
        write_volume(data / "labelsTr" / f"B_{n}.nii.gz", marked=marked)
        entries.append({"image": f"imagesTr/B_{n}.nii.gz", "label": f"labelsTr/B_{n}.nii.gz"})
    (data / "dataset.json").write_text(json.dumps({"training": entries}))
    msd_brain(root=str(data), output=str(tmp_path / "msd.json"), fractions=(1, 0, 0))
    public = tmp_path / "kaggle_3m"
    write_lgg(public / "TCGA_CS_4941_19960909")
    write_lgg(public / "TCGA_CS_4942_19970222")
    for mask in (public / "TCGA_CS_4942_19970222").glob("*_mask.tif"):
        Image.fromarray(np.zeros((8, 10), np.uint8)).save(mask)
    lgg(root=str(public), output=str(tmp_path / "lgg.json"), images=str(tmp_path / "nifti"))
    for name, kept, left in (
        ("brats", "BraTS2021_00000", "BraTS2021_00001"),
        ("msd", "B_0", "B_1"),
        ("lgg", "TCGA_CS_4941", "TCGA_CS_4942_19970222"),
    ):
        assert {item["subject"] for item in items_of(tmp_path / f"{name}.json")} == {kept}
        assert list(written(tmp_path / f"{name}.json")["left_out"]) == [left]
        assert "its mask marks nothing" in written(tmp_path / f"{name}.json")["left_out"][left]


def write_lgg(folder: Path, flair_copied: bool = False) -> None:
    folder.mkdir(parents=True)
    for z in range(1, 13):
        picture = np.zeros((8, 10, 3), np.uint8)
        picture[..., 0], picture[..., 1], picture[..., 2] = (50 if flair_copied else 20), 50, 90
        picture[1, 7, 1] = 200 + z
        if flair_copied:
            picture[..., 0] = picture[..., 1]
        mask = np.zeros((8, 10), np.uint8)
        mask[1, 7] = 255 * (z > 9)
        Image.fromarray(picture).save(folder / f"{folder.name}_{z}.tif")
        Image.fromarray(mask).save(folder / f"{folder.name}_{z}_mask.tif")


def test_lgg_becomes_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "kaggle_3m"
    write_lgg(data / "TCGA_CS_4941_19960909")
    write_lgg(data / "TCGA_DU_5849_19950405", flair_copied=True)
    write_lgg(data / "TCGA_HT_0000_19950405")
    (data / "TCGA_HT_0000_19950405" / "TCGA_HT_0000_19950405_4.tif").unlink()
    write_lgg(data / "TCGA_FG_0000_19950405")
    (data / "TCGA_FG_0000_19950405" / "TCGA_FG_0000_19950405_1.tif").unlink()
    write_lgg(data / "TCGA_XX_0000_19950405")
    (data / "TCGA_XX_0000_19950405" / "TCGA_XX_0000_19950405_4.tif").write_bytes(b"II*\0")
    (data / "data.csv").touch()
    common: dict[str, Any] = {"root": str(tmp_path), "images": str(tmp_path / "nifti"), "stack_height": 120}
    lgg(output=str(tmp_path / "d.json"), **common)
    assert "pixels of 0.868 mm, and stacks 120 mm high" in capsys.readouterr().out
    items = {item["subject"]: item for item in items_of(tmp_path / "d.json")}
    assert items.keys() == {"TCGA_CS_4941", "TCGA_DU_5849"}
    item = items["TCGA_CS_4941"]
    assert item["label"] == [0] * 9 + [1] * 3 and item["groups"] == {"institution": "CS"}
    volume = nib.load(item["image"])
    assert volume.shape == (10, 8, 12) and np.allclose(volume.header.get_zooms(), (0.868, 0.868, 10))
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    assert list(np.asarray(volume.dataobj)[7, 1]) == list(range(201, 213))  # slice 10 is above slice 9
    assert np.array_equal(np.asarray(nib.load(item["mask"]).dataobj)[7, 1], [0] * 9 + [1] * 3)
    reasons = written(tmp_path / "d.json")["left_out"]
    assert "a slice is missing" in reasons["TCGA_HT_0000_19950405"]
    assert "a slice is missing, from 1 on there are 2, 3, 4" in reasons["TCGA_FG_0000_19950405"]
    assert "_4.tif: can't be read" in reasons["TCGA_XX_0000_19950405"]

    stamp = Path(item["image"]).stat().st_mtime_ns
    lgg(output=str(tmp_path / "d.json"), **common)
    assert Path(item["image"]).stat().st_mtime_ns == stamp
    Path(item["image"]).unlink()
    lgg(output=str(tmp_path / "d.json"), **common)
    assert Path(item["image"]).exists()
    # the set has a copy of FLAIR where a sequence is missing
    lgg(output=str(tmp_path / "e.json"), sequences=["pre", "flair"], **common)
    assert [len(i["image"]) for i in items_of(tmp_path / "e.json")] == [2]
    assert written(tmp_path / "e.json")["left_out"]["TCGA_DU_5849_19950405"].startswith("has no pre")


def test_the_bundled_split_is_by_patient_and_fits_the_public_set(tmp_path: Path) -> None:
    path = BUNDLE / "docs" / "split_brain_flair.csv"
    rows = list(csv.DictReader(path.open()))
    assert len({row["subject"] for row in rows}) == len(rows) == 102
    sections = read_split(str(path))
    assert [list(sections.values()).count(s) for s in ("training", "validation", "test", "demo")] == [77, 10, 14, 1]
    assert sections["TCGA_FG_6692"] == "demo"  # the sample that the bundle carries
    write_lgg(tmp_path / "kaggle_3m" / "TCGA_CS_4941_19960909")
    lgg(root=str(tmp_path), output=str(tmp_path / "d.json"), images=str(tmp_path / "nifti"), split=str(path))
    assert len(written(tmp_path / "d.json")["training"]) == 1


def test_the_bundled_split_of_brats_is_by_patient() -> None:
    path = BUNDLE / "docs" / "split_brats.csv"
    rows = list(csv.DictReader(path.open()))
    assert len({row["subject"] for row in rows}) == len(rows) == 34
    sections = list(read_split(str(path)).values())
    assert [sections.count(s) for s in ("training", "validation", "test")] == [22, 5, 7]


@pytest.mark.parametrize("number", [int, float])
def test_brain_mr(tmp_path: Path, number: Any) -> None:
    rows = []
    for patient, split, trusted, missing in (("a", "train", 1, 0), ("b", "val", 0, 0), ("c", "test", 1, 1)):
        for name in ("flair", "t1", "brain"):
            write_volume(tmp_path / "volumes" / patient / f"{name}.nii.gz")
        write_volume(tmp_path / "volumes" / patient / "seg.nii.gz", marked=TUMOUR)
        rows += [
            {
                "patient": patient,
                "z": number(z),
                "split": split,
                "has_tumour": number(TUMOUR[z] > 0),
                "mid_slice": number(0 < z < 5),
                "t1_missing": number(missing),
                "t1gd_missing": number(0),
                "brain_mask_trusted": number(trusted),
                "site": "DU",
            }
            for z in reversed(range(6))
        ]
    write_csv(tmp_path / "slices.csv", rows)
    common = {"root": str(tmp_path)}
    brain_mr(output=str(tmp_path / "a.json"), **common)
    [item] = read_datalist(tmp_path / "a.json", "training")
    assert item["label"] == [0, 1, 0, 1, 1, 0] and item["spacing"] == [1.736, 1.736, 145 / 6]
    assert item["groups"] == {"institution": "DU"}
    assert len(items_of(tmp_path / "a.json")) == 3
    brain_mr(output=str(tmp_path / "m.json"), middle=True, **common)
    [item] = read_datalist(tmp_path / "m.json", "training")
    assert item["label"] == [-1, 1, 0, 1, 1, -1]
    brain_mr(output=str(tmp_path / "b.json"), sequences="flair,t1", brain_masks=True, **common)
    [item] = items_of(tmp_path / "b.json")
    assert Path(item["foreground"]).name == "brain.nii.gz" and len(item["image"]) == 2
    assert written(tmp_path / "b.json")["left_out"].keys() == {"b", "c"}


# radiographs


def write_chexpert(root: Path) -> None:
    columns = ("Path", "Frontal/Lateral", "AP/PA", "No Finding", "Pleural Effusion")
    patient = {"Sex": "Male", "Age": "73"}
    rows = [
        ("train/patient00001/study1/view1_frontal.jpg", "Frontal", "AP", "1.0", ""),
        ("train/patient00002/study1/view1_frontal.jpg", "Frontal", "PA", "", "1.0"),
        ("train/patient00002/study1/view2_lateral.jpg", "Lateral", "", "", "1.0"),
        ("train/patient00003/study1/view1_frontal.jpg", "Frontal", "AP", "", "-1.0"),
        ("train/patient00004/study1/view1_frontal.jpg", "Frontal", "AP", "", "0.0"),
        ("train/patient00005/study1/view1_frontal.jpg", "Frontal", "AP", "", "1.0"),
        ("train/patient00006/study1/view1_frontal.jpg", "Frontal", "AP", "", "many"),
        ("valid/patient64541/study1/view1_frontal.jpg", "Frontal", "AP", "0.0", "1.0"),
    ]
    for split in ("train", "valid"):
        table = [
            dict(zip(columns, (f"CheXpert-v1.0/{r[0]}", *r[1:]), strict=True)) | patient
            for r in rows
            if r[0].startswith(split)
        ]
        write_csv(root / f"{split}.csv", table)
    for path, *_ in rows:
        if "00005" not in path:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()


def labels(path: Path) -> dict[str, int]:
    return {item["subject"]: item["label"] for item in items_of(path)}


def test_chexpert(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    common: dict[str, Any] = {"root": str(tmp_path), "fractions": (1, 0, 0)}
    path = tmp_path / "a.json"
    chexpert(output=str(path), **common)
    assert labels(path) == {"patient00001": 0, "patient00002": 1, "patient64541": 1}
    content = written(path)
    [valid] = content["test"]
    assert valid["subject"] == "patient64541" and valid["groups"] == {"view": "AP", "sex": "M", "age": "60 and over"}
    assert content["left_out"] == {
        "train/patient00005/study1/view1_frontal.jpg": "no such file.",
        "train/patient00006/study1/view1_frontal.jpg": "'Pleural Effusion' must be 1, 0, -1 or empty, got 'many'.",
    }
    assert content["passed_over"] == {
        "lateral views": 1,
        "neither healthy nor with Pleural Effusion, or uncertain": 2,
    }
    for n, (options, more) in enumerate(
        (
            ({"uncertain": "positive"}, {"patient00003": 1}),
            ({"uncertain": "negative"}, {}),
            ({"healthy": "without_finding"}, {"patient00004": 0}),
            ({"healthy": "without_finding", "uncertain": "negative"}, {"patient00004": 0, "patient00003": 0}),
        )
    ):
        path = tmp_path / f"{n}.json"
        chexpert(output=str(path), **options, **common)
        found = labels(path)
        assert {k: v for k, v in found.items() if k in ("patient00003", "patient00004")} == more
    chexpert(output=str(tmp_path / "pa.json"), views="PA", **common)
    assert labels(tmp_path / "pa.json") == {"patient00002": 1}
    with pytest.raises(ValueError, match="train.csv: has no column 'Effusion'; it has Path"):
        chexpert(output=str(tmp_path / "x.json"), finding="Effusion", **common)


def nih_row(name: str, findings: str, view: str = "PA") -> dict[str, Any]:
    return {
        "Image Index": name,
        "Finding Labels": findings,
        "Patient ID": int(name.split("_")[0]),
        "View Position": view,
        "Patient Gender": "F",
        "Patient Age": "057Y",
        "OriginalImage[Width": 2048,
        "Height]": 3072,
        "OriginalImagePixelSpacing[x": 0.143,
        "y]": 0.143,
    }


def test_nih(tmp_path: Path) -> None:
    rows = [
        nih_row("00000001_000.png", "Effusion|Mass"),
        nih_row("00000001_001.png", "No Finding"),
        nih_row("00000002_000.png", "No Finding", "AP"),
        nih_row("00000003_000.png", "Mass"),
        nih_row("00000004_000.png", "No Finding"),
        nih_row("00000005_000.png", "Effusion"),
    ]
    write_csv(tmp_path / "Data_Entry_2017_v2020.csv", rows)
    for n, row in enumerate(rows[:5]):
        path = tmp_path / f"images_{n % 2 + 1:03d}" / "images" / row["Image Index"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Effusion,10,20.5,30,40,,,\n"
        "00000001_000.png,Mass,1,2,3,4,,,\n"
    )
    (tmp_path / "train_val_list.txt").write_text("00000002_000.png\n00000003_000.png\n00000004_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000005_000.png")
    nih(root=str(tmp_path), output=str(tmp_path / "a.json"), fractions=(0.5, 0.5, 0))
    content = written(tmp_path / "a.json")
    assert [item["label"] for item in content["test"]] == [1, 0]
    assert content["test"][0]["boxes"] == [[10, 20.5, 40, 60.5]] and "boxes" not in content["test"][1]
    assert content["test"][0]["groups"] == {"view": "PA", "sex": "F", "age": "40 to 59"}
    assert content["test"][0]["spacing"] == [0.286, 0.429]
    assert [len(content[s]) for s in ("training", "validation")] == [1, 1]
    assert content["left_out"] == {"00000005_000.png": "no such file."}
    assert len(items_of(tmp_path / "a.json")) == 4
    nih(root=str(tmp_path), output=str(tmp_path / "b.json"), healthy="without_finding", views="PA")
    assert sorted(labels(tmp_path / "b.json").items()) == [("1", 0), ("3", 0), ("4", 0)]
    with pytest.raises(ValueError, match="--finding must be one of Effusion, Mass, got 'Fluid'"):
        nih(root=str(tmp_path), output=str(tmp_path / "c.json"), finding="Fluid")


def test_a_hundred_thousand_radiographs_take_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [nih_row(f"{n // 4:08d}_{n % 4:03d}.png", ("No Finding", "Effusion")[n % 2]) for n in range(100_000)]
    write_csv(tmp_path / "Data_Entry_2017.csv", rows)
    files = [SimpleNamespace(name=row["Image Index"], is_symlink=lambda: False) for row in rows]
    found = {f"{tmp_path}/images": files}
    monkeypatch.setattr("os.scandir", lambda folder: found.get(str(folder), []))
    start = time.perf_counter()
    nih(root=str(tmp_path), output=str(tmp_path / "d.json"))
    assert time.perf_counter() - start < 60
    content = written(tmp_path / "d.json")
    assert [len(content[s]) for s in ("training", "validation", "test")] == [80_000, 10_000, 10_000]


def test_arrays_become_pictures(tmp_path: Path) -> None:
    pictures = np.arange(4 * 64 * 32, dtype=np.uint8).reshape(4, 64, 32)
    np.savez(tmp_path / "x.npz", images=pictures)
    columns = ("row", "effusion", "no_finding", "split", "patient", "group", "sex", "age")
    values = [
        (0, 1, 0, "train", "p", 5, "M", "39.0"),
        (1, 0, 1, "val", "", 6, "unknown", "414"),  # nobody is so old
        (2, 0, 0, "test", "", 7, "F", ""),
        (9, 1, 0, "test", "", 8, "", ""),
    ]
    write_csv(tmp_path / "x.csv", [dict(zip(columns, v, strict=True)) for v in values])
    (tmp_path / "r.json").write_text(
        json.dumps([{"row": 0, "syms": ["Effusion", "Mass"], "boxes": [[0, 512, 256, 1024], [0, 0, 1, 1]]}])
    )
    common = {"root": str(tmp_path / "x.npz"), "images": str(tmp_path / "png"), "regions": str(tmp_path / "r.json")}
    arrays(output=str(tmp_path / "a.json"), healthy="no_finding", **common)
    assert [len(written(tmp_path / "a.json")[s]) for s in ("training", "validation", "test")] == [0, 1, 1]
    second, first = items_of(tmp_path / "a.json")
    assert np.array_equal(Image.open(first["image"]), pictures[0])
    assert first["boxes"] == [[0, 32, 8, 64]] and first["label"] == 1 and first["subject"] == "p"
    assert "boxes" not in second and second["label"] == 0 and second["subject"] == "group-6"
    assert first["groups"] == {"sex": "M", "age": "under 40"} and "groups" not in second
    assert written(tmp_path / "a.json")["left_out"] == {"x-00009": "there are 4 images."}
    arrays(output=str(tmp_path / "b.json"), **common)
    assert [item["label"] for item in items_of(tmp_path / "b.json")] == [0, 1, 0]
    (tmp_path / "png" / "x-00000.png").write_bytes(b"another's")
    with pytest.raises(ValueError, match=r"x-00000.png: is there already and is another picture"):
        arrays(output=str(tmp_path / "b.json"), **common)
    arrays(output=str(tmp_path / "b.json"), overwrite=True, **common)
    assert np.array_equal(Image.open(tmp_path / "png" / "x-00000.png"), pictures[0])


@pytest.mark.parametrize("written_as", [int, float, "{:.2f}".format])
def test_numbers_of_a_table_are_read_however_they_are_written(written_as: Any, tmp_path: Path) -> None:
    """1.0 is diseased, as 1 is; what is no number is refused."""
    np.savez(tmp_path / "x.npz", images=np.arange(3 * 64 * 64, dtype=np.uint8).reshape(3, 64, 64))
    values = [(0, 1, 0), (1, 0, 1), (2, 0, 0)]
    rows = [dict(zip(("row", "effusion", "normal"), map(written_as, v), strict=True)) for v in values]
    write_csv(tmp_path / "x.csv", rows)
    options = {"root": str(tmp_path / "x.npz"), "images": str(tmp_path / "png"), "healthy": "normal"}
    arrays(output=str(tmp_path / "d.json"), **options)
    assert {item["subject"]: item["label"] for item in items_of(tmp_path / "d.json")} == {"x-00000": 1, "x-00001": 0}
    for wrong in ("yes", "", "nan"):
        write_csv(tmp_path / "x.csv", [*rows, rows[0] | {"effusion": wrong}])
        with pytest.raises(ValueError, match=f"x.csv: row 5 must have a number as 'effusion', got '{wrong}'"):
            arrays(output=str(tmp_path / "e.json"), **options)


def test_what_radiologists_drew_is_for_evaluation(tmp_path: Path) -> None:
    """An outline becomes a mask, makes a picture diseased, and takes its patient out of training."""
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 64, 64), np.uint8))
    columns = ("row", "effusion", "no_finding", "split", "patient")
    values = [(0, 0, 0, "train", "p"), (1, 0, 1, "train", "p"), (2, 1, 0, "train", "q"), (3, 1, 0, "train", "r")]
    write_csv(tmp_path / "x.csv", [dict(zip(columns, v, strict=True)) for v in values])
    outline, speck = [[0, 512], [255, 512], [255, 1023], [0, 1023]], [[0, 0], [2, 0], [2, 2]]
    drawn = [
        {"row": 0, "syms": ["Effusion"], "boxes": [[0, 512, 256, 1024]], "polygons": [outline]},
        {"row": 2, "syms": ["Effusion"], "boxes": [[0, 0, 3, 3]], "polygons": [speck]},
    ]
    (tmp_path / "r.json").write_text(json.dumps(drawn))
    paths = {"root": str(tmp_path / "x.npz"), "images": str(tmp_path / "png"), "regions": str(tmp_path / "r.json")}
    arrays(output=str(tmp_path / "d.json"), healthy="no_finding", **paths)
    content = written(tmp_path / "d.json")
    assert [item["subject"] for item in content["training"]] == ["r"] and not content["validation"]
    first, second, third = content["test"]
    assert (first["label"], second["label"], third["label"]) == (1, 0, 1) and "mask" not in second
    expected = np.zeros((64, 64), bool)
    expected[32:, :16] = True
    assert np.array_equal(np.asarray(Image.open(tmp_path / first["mask"])) > 0, expected)
    assert "mask" not in third and len(third["boxes"]) == 1  # too small for a pixel
    (tmp_path / "s.csv").write_text("subject,split\np,train\nq,test\nr,train\n")
    arrays(output=str(tmp_path / "s.json"), split=str(tmp_path / "s.csv"), **paths)
    content = written(tmp_path / "s.json")
    assert [[item["subject"] for item in content[s]] for s in ("training", "test")] == [["r"], ["q"]]
    reason = f"p is in {tmp_path / 'r.json'}, for the test, but the split has it in 'training'."
    assert content["left_out"] == {"x-00000": reason, "x-00001": reason}


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    for name in ("healthy/p1/a.png", "healthy/b.nii.gz", "healthy/c.txt", "diseased/p1/b.PNG", "diseased/p2/c.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("diseased/p2/empty.jpg", "diseased/.hidden.png", "diseased/p2/c.png"):
        (tmp_path / name).touch()
    for name in ("masks/p1/b.tif", "foregrounds/b.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("diseased/p1/b.PNG", "masks/p1/b.tif"):
        write_picture(tmp_path / name)
    folder(root=str(tmp_path), output=str(tmp_path / "lists" / "d.json"))
    items = {Path(item["image"]).name: item for item in items_of(tmp_path / "lists" / "d.json")}
    assert {name: (item["subject"], item["label"]) for name, item in items.items()} == {
        "a.png": ("p1", 0),
        "b.nii.gz": ("b", 0),
        "b.PNG": ("p1", 1),
        "c.dcm": ("p2", 1),
    }
    assert Path(items["b.PNG"]["mask"]).name == "b.tif" and Path(items["b.nii.gz"]["foreground"]).name == "b.nii"
    assert written(tmp_path / "lists" / "d.json")["left_out"] == {
        "diseased/p2/c.png": "is named as p2/c.dcm.",
        "diseased/p2/empty.jpg": "is empty.",
    }


def test_a_dicom_series_in_a_folder_is_one_image_and_a_radiograph_without_a_suffix_one_too(tmp_path: Path) -> None:
    volume, grey = np.arange(32, dtype=np.uint8).reshape(4, 4, 2), np.zeros((4, 4), np.uint8)
    dicom.save_series(dicom.series(volume, np.eye(4)), tmp_path / "healthy" / "p1" / "flair")
    dicom.save(dicom.image(grey), tmp_path / "diseased" / "p2" / "IM0001")
    dicom.save(dicom.image(grey), tmp_path / "diseased" / "p2" / "b.DICOM")
    folder(root=str(tmp_path), output=str(tmp_path / "d.json"))
    items: dict[str, list[str]] = {item["subject"]: [] for item in items_of(tmp_path / "d.json")}
    for item in items_of(tmp_path / "d.json"):
        items[item["subject"]].append(Path(item["image"]).relative_to(tmp_path).as_posix())
    assert items == {"p1": ["healthy/p1/flair"], "p2": ["diseased/p2/IM0001", "diseased/p2/b.DICOM"]}
    dicom.save_series(dicom.series(volume, np.eye(4)), tmp_path / "healthy")
    with pytest.raises(ValueError, match="healthy: holds slices of DICOM series; give each series a folder in it"):
        folder(root=str(tmp_path), output=str(tmp_path / "d.json"))


def test_an_image_that_is_linked_is_that_of_the_folder_it_lies_in(tmp_path: Path) -> None:
    """Else a patient is two, one to train on and one to test on."""
    for n in range(4):
        for name in ("healthy", "diseased"):
            path = tmp_path / "data" / name / f"{name[0]}{n}" / "a.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.png").write_bytes(b"x")
    for link, to in (
        ("healthy/0latest", "h3"),
        ("healthy/all", "."),
        ("healthy/0latest.png", "h3/a.png"),
        ("healthy/p4", "../../other"),
        ("diseased/0/newest.png", "../d1/a.png"),
    ):
        (tmp_path / "data" / link).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / link).symlink_to(to)
    folder(root=str(tmp_path / "data"), output=str(tmp_path / "d.json"))
    items = items_of(tmp_path / "d.json")
    assert sorted(item["subject"] for item in items) == sorted([f"{c}{n}" for c in "dh" for n in range(4)] + ["p4"])
    assert written(tmp_path / "d.json")["left_out"] == {
        "healthy/0latest": "links to a folder that was searched.",
        "healthy/all": "links to a folder that was searched.",
        "data/healthy/0latest.png": "is the same file as data/healthy/h3/a.png.",
        "data/diseased/0/newest.png": "is the same file as data/diseased/d1/a.png.",
    }
    (tmp_path / "data" / "diseased" / "d9").symlink_to("../healthy/h1")
    with pytest.raises(ValueError, match="healthy/h1/a.png and diseased/d9/a.png are one file"):
        folder(root=str(tmp_path / "data"), output=str(tmp_path / "d.json"))


def test_a_link_to_nothing_costs_its_own_case_alone(tmp_path: Path) -> None:
    """As of git-annex and DataLad, of files that were not fetched; of a table it is refused, as its set would seem another."""
    data, volume = tmp_path / "own", np.arange(32, dtype=np.uint8).reshape(4, 4, 2)
    for n, name in enumerate(("healthy/a", "healthy/b", "diseased/c", "diseased/d", "masks/d", "foregrounds/b")):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(volume[..., n % 2]).save(data / f"{name}.png")
    for name in ("one", "two"):
        dicom.save_series(dicom.series(volume, np.eye(4)), data / "healthy" / name)
    public = {name: tmp_path / name for name in ("brats", "brain_mr", "chexpert", "nih")}
    for n in range(2):
        write_case(public["brats"] / f"BraTS2021_0000{n}")
        for name in ("flair", "seg"):
            write_volume(public["brain_mr"] / "volumes" / f"p{n}" / f"{name}.nii.gz")
    numbers = {name: 0 for name in ("z", "has_tumour", "mid_slice", "brain_mask_trusted", "t1_missing", "t1gd_missing")}
    write_csv(public["brain_mr"] / "slices.csv", [numbers | {"patient": f"p{n}", "split": "train"} for n in range(2)])
    public["chexpert"].mkdir()
    write_chexpert(public["chexpert"])
    (public["nih"] / "images").mkdir(parents=True)
    write_csv(public["nih"] / "Data_Entry_2017.csv", [nih_row(f"0000000{n}_000.png", "Effusion") for n in range(2)])
    for n in range(2):
        (public["nih"] / "images" / f"0000000{n}_000.png").touch()
    gone = {
        "own": ("healthy/a.png", "masks/d.png", "foregrounds/b.png", "healthy/two/IM0007.dcm"),
        "brats": ("BraTS2021_00001/BraTS2021_00001_flair.nii.gz",),
        "brain_mr": ("volumes/p1/flair.nii.gz",),
        "chexpert": ("train/patient00001/study1/view1_frontal.jpg",),
        "nih": ("images/00000001_000.png",),
    }
    for name, files in gone.items():
        for file in files:
            (tmp_path / name / file).unlink()
            (tmp_path / name / file).symlink_to(".git/annex/objects/none")

    def left_out(name: str) -> dict[str, str]:
        COMMANDS["folder" if name == "own" else name](root=str(tmp_path / name), output=str(tmp_path / f"{name}.json"))
        items_of(tmp_path / f"{name}.json")
        return dict(written(tmp_path / f"{name}.json")["left_out"])

    assert left_out("own") == {
        "healthy/two": "IM0007.dcm links to a file that isn't there.",
        "healthy/a.png": "links to a file that isn't there.",
        "healthy/b.png": "its foreground foregrounds/b.png links to a file that isn't there.",
        "masks/d.png": "links to a file that isn't there.",
    }
    assert sorted(Path(item["image"]).name for item in items_of(tmp_path / "own.json")) == ["c.png", "d.png", "one"]
    assert left_out("brats").keys() == {"BraTS2021_00001"} and left_out("brain_mr") == {"p1": "has no flair."}
    assert left_out("chexpert")["train/patient00001/study1/view1_frontal.jpg"] == "no such file."
    assert left_out("nih") == {"00000001_000.png": "no such file."}
    for name, table in (("brats", "cases.csv"), ("chexpert", "valid.csv"), ("nih", "test_list.txt")):
        (tmp_path / name / table).unlink(missing_ok=True)
        (tmp_path / name / table).symlink_to("none")
        with pytest.raises(ValueError, match=f"{table}: links to a file that isn't there"):
            left_out(name)


def test_a_mask_belongs_to_one_image_or_is_named(tmp_path: Path) -> None:
    for name in ("healthy/1.png", "diseased/1.png", "diseased/2.png", "masks/1.png", "masks/2_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(tmp_path / name)
    folder(root=str(tmp_path), output=str(tmp_path / "d.json"))
    items = items_of(tmp_path / "d.json")
    assert [Path(item["image"]).parent.name for item in items if "mask" in item] == ["diseased"]
    assert written(tmp_path / "d.json")["left_out"] == {"masks/2_mask.png": "there is no image of this name."}
    (tmp_path / "foregrounds").mkdir()
    (tmp_path / "foregrounds" / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="foregrounds/1.png: an image of this name is healthy and one is diseased"):
        folder(root=str(tmp_path), output=str(tmp_path / "e.json"))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "data" / "BraTS2021_00001")
    (tmp_path / "file").touch()
    (tmp_path / "d.json").mkdir()
    reads: list[Path] = []
    monkeypatch.setattr("scripts.prepare.brats.lesion_voxels", lambda mask, images: reads.append(mask))
    for output, message in (("file/d.json", "d.json: can't be written"), ("d.json", "d.json: is a folder")):
        with pytest.raises(ValueError, match=message):
            brats(root=str(tmp_path / "data"), output=str(tmp_path / output), overwrite=True)
    assert not reads


def test_a_full_disk_is_not_the_fault_of_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(tmp_path / "data" / "BraTS2021_00001")

    def full(path: Path, *args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RuntimeError, match=r"d.json.read: can't be written") as caught:
        brats(root=str(tmp_path / "data"), output=str(tmp_path / "d.json"))
    assert "No space left on device" in str(message_of(caught.value))


def test_a_table_that_breaks_off_is_refused(tmp_path: Path) -> None:
    header = "Image Index,Finding Labels,Patient ID,View Position\n"
    (tmp_path / "Data_Entry_2017.csv").write_text(header + "1.png,Effusion,1,PA\n2.png,Eff")
    with pytest.raises(ValueError, match="Data_Entry_2017.csv: row 3 ends too early; is the file complete"):
        nih(root=str(tmp_path), output=str(tmp_path / "d.json"))


def test_a_split_has_no_name_of_what_a_datalist_holds_beside(tmp_path: Path) -> None:
    write_case(tmp_path / "data" / "BraTS2021_00001")
    (tmp_path / "s.csv").write_text("subject,split\nBraTS2021_00001,left_out\n")
    with pytest.raises(ValueError, match="a split can't be called left_out"):
        brats(root=str(tmp_path / "data"), output=str(tmp_path / "d.json"), split=str(tmp_path / "s.csv"))


# splits and the command line


def test_a_draw_keeps_classes_even_and_moves_few_when_one_is_added() -> None:
    classes = {f"p{n}": [n % 2] for n in range(100)}
    drawn = split_subjects(classes, (0.7, 0.1, 0.2), 0, {})
    for section, count in (("training", 35), ("validation", 5), ("test", 10)):
        for kind in (0, 1):
            assert sum(s == section and classes[p] == [kind] for p, s in drawn.items()) == count
    shuffled = dict(reversed(classes.items()))
    assert split_subjects(shuffled, (0.7, 0.1, 0.2), 0, {}) == drawn
    more = split_subjects(classes | {"new": [0]}, (0.7, 0.1, 0.2), 0, {})
    assert sum(more[p] != s for p, s in drawn.items()) <= 2
    fixed = split_subjects(classes, (0.7, 0.1, 0.2), 0, {"p0": "test"})
    assert [list(fixed.values()).count(s) for s in ("training", "validation", "test")] == [87, 12, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,split\na,test\n", "line 2: needs a value in the columns 'subject' and 'split'"),
        ("subject,split\na,test\na,train\n", "line 3: a is in 'test' already"),
        ("subject,split\n", "names no subject"),
    ],
)
def test_a_bad_csv_of_a_split_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_split(str(tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bratz"], "bratz: there is no such command; the commands are brats, msd_brain"),
        (["brats", "--rot", "x"], "--rot: brats has no such option; did you mean --root"),
        (["brats", "--zzz"], "--zzz: brats has no such option; the options are --root, --output"),
        (["brats", "--sequences", "t1", "flair"], "flair: belongs to no option; a list is written without spaces"),
        (["brats", "--root", "12#34"], "--root: '12#34' is read as 12; of a path, write ./12#34"),
        (["brats", "--root", "set#2"], "--root: 'set#2' is read as 'set'; of a path, write ./set#2"),
    ],
)
def test_what_a_command_does_not_take_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_options(arguments)
    check_options(["brats", "--root", "x", "--overwrite", "--split=a.csv"])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path / "data" / "BraTS2021_00000")

    arguments = ["brats", "--root", str(tmp_path / "data"), "--output", str(tmp_path / "d.json")]
    fire.Fire(COMMANDS, [*arguments, "--slices", "1,4", "--sequences", "t2,flair"])
    said = "training: patients 1, images 1; slices: healthy 1, diseased 3, to leave out 2"
    assert said in capsys.readouterr().out
    command = [sys.executable, "-m", "scripts.prepare", *arguments]
    refused = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and refused.stderr.startswith("ERROR: ")


def test_images_with_one_label_are_not_counted_as_slices() -> None:
    """A healthy volume is no slice, where others have a label a slice."""
    one, slices = {"subject": "a", "label": 0}, {"subject": "b", "label": [0, 1, 1, -1]}
    said = [described("test", items) for items in ([one], [slices], [one, slices, {**one, "label": 1}])]
    assert said == [
        "test: patients 1, images 1; images: healthy 1, diseased 0",
        "test: patients 1, images 1; slices: healthy 1, diseased 2, to leave out 1",
        "test: patients 2, images 3; images with one label: healthy 1, diseased 1; "
        "slices: healthy 1, diseased 2, to leave out 1",
    ]


def test_lgg_writes_over_no_other_volume(tmp_path: Path) -> None:
    """Neither another file of that name nor what it made with another pixel size; the reason names the file."""
    write_lgg(tmp_path / "kaggle_3m" / "TCGA_CS_4941_19960909")
    theirs = tmp_path / "nifti" / "TCGA_CS_4941_19960909" / "flair.nii.gz"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"a reader's")
    common: dict[str, Any] = {"root": str(tmp_path), "images": str(tmp_path / "nifti")}
    with pytest.raises(ValueError, match="flair.nii.gz: is there already and is another volume"):
        lgg(output=str(tmp_path / "d.json"), **common)
    assert theirs.read_bytes() == b"a reader's"
    lgg(output=str(tmp_path / "d.json"), overwrite=True, **common)
    before = theirs.read_bytes()
    with pytest.raises(ValueError, match="is another volume"):
        lgg(output=str(tmp_path / "e.json"), pixel=1.0, **common)
    assert theirs.read_bytes() == before


def test_a_volumes_mask_in_a_folder_says_which_slices_are_diseased(tmp_path: Path) -> None:
    marked = np.zeros((8, 8, 4), np.uint8)
    marked[2:4, 2:4, 1] = 1
    for name, array in (
        ("healthy/a", marked + 5),
        ("diseased/b", marked + 5),
        ("diseased/c", marked + 5),
        ("masks/b", marked),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    folder(root=str(tmp_path), output=str(tmp_path / "d.json"))
    assert {i["subject"]: i["label"] for i in items_of(tmp_path / "d.json")} == {"a": 0, "b": [0, 1, 0, 0], "c": 1}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_diseased_volume_whose_mask_marks_nothing_is_left_out(tmp_path: Path, suffix: str) -> None:
    marked = np.zeros((8, 8, 4), np.uint8)
    marked[2, 2, 1] = 1
    for name, array in (
        ("diseased/b", marked + 5),
        ("diseased/c", marked + 5),
        ("healthy/d", marked + 5),
        ("masks/b", 0 * marked),
        ("masks/c", marked),
        ("masks/d", 0 * marked),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / f"{name}{suffix}"))
    folder(root=str(tmp_path), output=str(tmp_path / "d.json"), least_voxels=2)
    labels = {i["subject"]: i["label"] for i in items_of(tmp_path / "d.json")}
    assert {s: set(v) if isinstance(v, list) else v for s, v in labels.items()} == {"c": {0, -1}, "d": 0}
    assert written(tmp_path / "d.json")["left_out"] == {
        f"diseased/b{suffix}": f"is diseased, but its mask masks/b{suffix} marks nothing."
    }


@pytest.mark.parametrize("suffix", [".nii.gz", ".png", ".dcm", "series"])
def test_what_folder_and_mask_say_of_an_image_is_no_contradiction(tmp_path: Path, suffix: str) -> None:
    """Else an evaluation fails on it. A mask on another grid is left out, with the image if that is a diseased volume."""
    volume = (np.arange(96) % 90).astype(np.uint8).reshape(4, 4, 6)
    series = suffix == "series"
    image_end, mask_end = ("" if series else suffix), (".nii.gz" if series else suffix.replace("dcm", "png"))
    for name, marked in {"healthy/a": 0, "healthy/b": 2, "diseased/c": 2, "diseased/d": 0, "diseased/e": -1}.items():
        path, mask = tmp_path / f"{name}{image_end}", tmp_path / "masks" / f"{Path(name).name}{mask_end}"
        if series:
            dicom.save_series(dicom.series(volume, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
        elif suffix == ".nii.gz":
            write_volume(path)
        else:
            write_picture(path)
        if marked < 0:
            write_volume(mask.with_name("e.nii"), marked=[1] * 6)
            nib.save(nib.load(mask.with_name("e.nii")).slicer[1:], mask.with_name("e.nii"))
        elif mask_end == ".nii.gz":
            write_volume(mask, marked=[0, 0, 0, 0, marked, 0])
        else:
            write_picture(mask, marked)
    folder(root=str(tmp_path), output=str(tmp_path / "d.json"))
    by_slice = [0, 0, 0, 0, 1, 0]
    diseased = 1 if suffix in (".png", ".dcm") else by_slice
    kept = {} if diseased == by_slice else {"e": 1}
    assert {i["subject"]: i["label"] for i in items_of(tmp_path / "d.json")} == {"a": 0, "c": diseased, **kept}
    left_out = written(tmp_path / "d.json")["left_out"]
    assert "lies on another grid than" in left_out.pop("masks/e.nii" if kept else f"diseased/e{image_end}")
    assert left_out == {
        f"healthy/b{image_end}": f"is healthy, but its mask masks/b{mask_end} marks 2 voxels.",
        f"diseased/d{image_end}": f"is diseased, but its mask masks/d{mask_end} marks nothing.",
    }


def test_a_mask_that_cannot_be_used_costs_no_image_but_a_diseased_volume(tmp_path: Path) -> None:
    """Masks are for evaluation; only the labels of a volume's slices come from one."""
    for name in ("diseased/a.png", "diseased/b.png", "diseased/c.png", "diseased/d.png", "diseased/e.png"):
        write_picture(tmp_path / name)
    for name in ("masks/a.png", "masks/b.jpg"):
        write_picture(tmp_path / name)
    Image.fromarray(np.ones((10, 8), np.uint8)).save(tmp_path / "masks" / "c.png")
    for name in ("diseased/v", "healthy/h"):
        write_volume(tmp_path / f"{name}.nii.gz")
    for name in ("d.png", "v.nii.gz", "h.nii.gz", "e.png"):
        (tmp_path / "masks" / name).write_bytes(b"x")
    (tmp_path / "diseased" / "e.png").write_bytes(b"no picture, which is not its mask's fault")
    folder(root=str(tmp_path), output=str(tmp_path / "d.json"))
    items = items_of(tmp_path / "d.json")
    assert {i["subject"]: i["label"] for i in items} == {"a": 1, "b": 1, "c": 1, "d": 1, "h": 0}
    assert [i["subject"] for i in items if "mask" in i] == ["a"]
    left_out = written(tmp_path / "d.json")["left_out"]
    assert left_out.keys() == {
        *("diseased/e.png", "diseased/v.nii.gz"),
        *("masks/b.jpg", "masks/c.png", "masks/d.png", "masks/h.nii.gz"),
    }
    assert "JPEG doesn't keep a mask's pixels" in left_out["masks/b.jpg"]
    assert "(8 x 10 x 1 voxels against 10 x 8 x 1)" in left_out["masks/c.png"]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", "series", "channels"])
def test_so_it_does_in_any_format_and_order(tmp_path: Path, suffix: str) -> None:
    """The slices are those of the image's file, whose mask lists them from above."""
    marked = np.zeros((40, 36, 4), np.uint8)
    marked[2:4, 2:4, 1] = 1
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    for name in ("healthy", "diseased", "masks"):
        (tmp_path / name).mkdir()
    if suffix == "series":
        volume = (np.arange(40 * 36 * 4) % 900).astype(np.uint16).reshape(40, 36, 4)
        dicom.save_series(dicom.series(volume, affine), tmp_path / "diseased" / "b")
    elif suffix == "channels":
        nib.save(nib.Nifti1Image(np.ones((40, 36, 4, 2), np.float32), affine), tmp_path / "diseased" / "b.nii")
    else:
        image = SimpleITK.GetImageFromArray(np.arange(4 * 36 * 40, dtype=np.int16).reshape(4, 36, 40))
        image.SetSpacing((2.0, 2.0, 5.0))
        image.SetOrigin((0.0, 0.0, 0.0))
        SimpleITK.WriteImage(image, tmp_path / "diseased" / f"b{suffix}")
    mask = nib.Nifti1Image(marked, affine).as_reoriented(np.array([[0, 1], [1, 1], [2, -1]]))
    name = "b.mgz" if suffix == "channels" else "b.nii.gz"
    image_type = nib.MGHImage if suffix == "channels" else nib.Nifti1Image
    nib.save(image_type(mask.get_fdata(dtype=np.float32), mask.affine), tmp_path / "masks" / name)
    folder(root=str(tmp_path), output=str(tmp_path / "d.json"))
    assert [i["label"] for i in items_of(tmp_path / "d.json")] == [[0, 1, 0, 0]]
    nib.save(image_type(marked[:-1].astype(np.float32), affine), tmp_path / "masks" / name)
    with pytest.raises(ValueError, match="left out: diseased/b.*lies on another grid than"):
        folder(root=str(tmp_path), output=str(tmp_path / "d.json"), overwrite=True)


def test_datalists_become_one(tmp_path: Path) -> None:
    """Each item keeps its split, labels and spacing; paths stay true; a patient in two splits is refused."""
    for name, subject in (("one", "p"), ("two", "q")):
        folder = tmp_path / name
        for image in ("a", "b"):
            write_volume(folder / f"{image}.nii.gz")
        content = {
            "training": [{"image": f"{name}/a.nii.gz", "label": [0, 1, 0, 1, 1, -1], "subject": subject}],
            "test": [{"image": f"{name}/b.nii.gz", "label": 1, "spacing": [1, 2, 3], "groups": {"sex": "F"}}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    output = tmp_path / "deeper" / "both.json"
    merge(root=str(tmp_path), output=str(output), datalists="one.json,two.json")
    assert [os.path.realpath(i["image"]) for i in read_datalist(output, "training")] == [
        os.path.realpath(tmp_path / name / "a.nii.gz") for name in ("one", "two")
    ]
    assert [i["spacing"] for i in read_datalist(output, "test")] == [[1, 2, 3]] * 2
    assert [i["groups"] for i in read_datalist(output, "test")] == [
        {"datalist": "one", "sex": "F"},
        {"datalist": "two", "sex": "F"},
    ]
    assert read_datalist(output, "training")[1]["label"] == [0, 1, 0, 1, 1, -1]
    (tmp_path / "bad.json").write_text(json.dumps({"test": [{"image": "x.nii.gz", "label": 1, "subject": "p"}]}))
    with pytest.raises(ValueError, match="p is published in 'training' and in 'test'"):
        merge(root=str(tmp_path), output=str(output), datalists="one.json,bad.json", same_patients=True, overwrite=True)


def test_two_patients_of_one_name_are_not_merged_into_one(tmp_path: Path) -> None:
    """Whether a name is one person's in two lists is asked, unless it is of TCGA; nobody else gets another name."""
    subjects = {"h1": ("001", "002", "x", "TCGA_CS_4942"), "h2/list": ("001", "002", "y", "TCGA_CS_4942")}
    for name, of_list in subjects.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        items = [{"image": f"{name[:2]}-{n}.png", "label": 0, "subject": s} for n, s in enumerate(of_list)]
        items.append({"image": f"{name[:2]}-no.png", "label": 1})
        (tmp_path / f"{name}.json").write_text(json.dumps({"training": items}))
    output = tmp_path / "m.json"
    options: dict[str, Any] = {"root": str(tmp_path), "output": str(output), "datalists": ["h1.json", "h2/list.json"]}
    with pytest.raises(
        ValueError, match=r"2 names .*: 001 in h1.json and h2/list.json, 002 in .* --same_patients true"
    ):
        merge(**options)
    with pytest.raises(ValueError, match="same_patients must be true or false, got 'maybe'"):
        merge(**options, same_patients="maybe")
    assert not output.exists()

    def merged(same_patients: str) -> list[str]:
        merge(**options, same_patients=same_patients, overwrite=True)
        return [
            os.path.relpath(s, tmp_path) if s.endswith("png") else s for s in (i["subject"] for i in items_in(output))
        ]

    alone = ["x", "y", "h1-no.png", "h2/h2-no.png", *["TCGA_CS_4942"] * 2]
    assert sorted(merged("true")) == sorted([*["001", "002"] * 2, *alone])
    assert sorted(merged("false")) == sorted(["h1/001", "h1/002", "h2/list/001", "h2/list/002", *alone])


def write_lists(folder: Path, **lists: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Datalists of images and subjects, each for another split; the options of `merge`."""
    for section, (name, items) in zip(("training", "test", "validation"), lists.items(), strict=False):
        listed = [{"image": image, "label": 0, "subject": subject} for image, subject in items]
        (folder / f"{name}.json").write_text(json.dumps({section: listed}))
    names = [f"{name}.json" for name in lists]
    return {"root": str(folder), "output": str(folder / "m.json"), "datalists": names, "overwrite": True}


@pytest.mark.parametrize("other", ["TCGA_CS_4941", "tcga-cs-4941", "TCGA-CS-4941-01", "TCGA_CS_4941_19960909"])
def test_a_patient_of_tcga_is_one_however_the_name_is_written(other: str, tmp_path: Path) -> None:
    """Else one is trained on and tested on."""
    options = write_lists(tmp_path, a=[("1.png", "TCGA-CS-4941"), ("2.png", "TCGA-CS-4942")], b=[("3.png", other)])
    with pytest.raises(ValueError, match="TCGA-CS-4941 is published in 'training' and in 'test'"):
        merge(**options)
    (tmp_path / "b.json").write_text((tmp_path / "b.json").read_text().replace("test", "training"))
    merge(**options, same_patients=False)
    assert [i["subject"] for i in items_in(tmp_path / "m.json")] == ["TCGA-CS-4941", "TCGA-CS-4942", "TCGA-CS-4941"]


def test_an_image_in_two_lists_is_one_patients(tmp_path: Path) -> None:
    """Who isn't asked for; a third list may have another one of that name."""
    a, b = [("x.png", "001"), ("y.png", "002")], [("x.png", "001"), ("./y.png", "two")]
    merge(**write_lists(tmp_path, a=a, b=b))
    assert [i["subject"] for i in items_in(tmp_path / "m.json")] == ["001", "002"]
    with pytest.raises(ValueError, match="001 is published in 'training' and in 'test'"):
        merge(**write_lists(tmp_path, a=a, b=[*b, ("z.png", "001")]))
    with pytest.raises(ValueError, match="002 is published in 'training' and in 'test'"):
        merge(**write_lists(tmp_path, a=a, b=[*b, ("z.png", "two")]))
    lists = write_lists(tmp_path, a=a, b=b, c=[("z.png", "001")])
    with pytest.raises(ValueError, match=r"1 names .*: 001 in a.json and c.json\."):
        merge(**lists)
    merge(**lists, same_patients=False)
    assert [i["subject"] for i in items_in(tmp_path / "m.json")] == ["a/001", "002", "c/001"]
