"""Which volumes are run: found wherever they lie, and nothing that is no image of the model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dicom
from scripts.images.loading import LoadVolumed
from scripts.running.inputs import find_inputs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(path: Path, **options: Any) -> list[str]:
    return [item["name"] for item in find_inputs(str(path), **options)]


def write_datalist(folder: Path, content: Any, encoding: str = "utf-8") -> Path:
    path = folder / "d.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding)
    return path


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a/flair.nii.gz", "b/FLAIR.NII.GZ", "c/deep/x.nii", "c/notes.txt")
    assert find_inputs(str(tmp_path / "c" / "deep" / "x.nii")) == [
        {"image": str(tmp_path / "c" / "deep" / "x.nii"), "name": "x"}
    ]
    assert names(tmp_path) == ["a-flair", "b-FLAIR", "c-deep-x"]


def test_no_input_is_said() -> None:
    """None is none yet, as for MONAI's tools that build what a config declares; the run asks for one."""
    assert find_inputs(None) == []
    with pytest.raises(ValueError, match=r"got 20241125; of a path, write \./20241125"):
        find_inputs(20241125)  # type: ignore[arg-type]  # what fire makes of such a name
    with pytest.raises(ValueError, match=r"datalist, got no value\.$"):
        find_inputs(True)  # type: ignore[arg-type]  # of an option without a value
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder"):
        find_inputs("nowhere")


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a shell's variable that isn't set."""
    touch(tmp_path, "flair.nii.gz")
    dicom.save_series(dicom.series(np.ones((40, 36, 3), np.uint16), np.eye(4)), tmp_path / "series")
    monkeypatch.chdir(tmp_path)
    assert len(find_inputs(".")) == 2
    with pytest.raises(ValueError, match=r"got an empty text, as of a variable that isn't set\.$"):
        find_inputs("")
    monkeypatch.chdir(tmp_path / "series")
    with pytest.raises(ValueError, match="an empty path: no such file"):
        LoadVolumed("image")({"image": ""})


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "archive" / "sub-01", "flair.nii.gz")
    study = tmp_path / "study"
    touch(study / "sub-02", "flair.nii.gz")
    (study / "sub-01").symlink_to(tmp_path / "archive" / "sub-01")
    (study / "sub-02" / "loop").symlink_to(study)
    (study / "again").symlink_to(study / "sub-02")
    (study / "itself").symlink_to(study / "itself")
    assert names(study) == ["sub-01-flair", "sub-02-flair"]


def test_what_is_no_image_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a/flair.nii.gz", "a/._flair.nii.gz", ".git/annex/objects/x.nii.gz", ".hidden.nii")
    touch(tmp_path, "a/sub-01_T1w.nii.gz", "a/b-seg.nii.gz", "a/BraTS-GLI-1-000-t1c.nii.gz", "a/scan.npy")
    result = tmp_path / "earlier" / "flair"
    touch(result, "result.json", "unnamed.nii.gz")
    (result / "result.json").write_text('{"made_by": "diffusion-anomaly-bundle", "files": {}}')
    # a file of that name that is not ours hides nothing
    touch(tmp_path / "theirs", "result.json", "x.nii")
    assert names(tmp_path) == ["a-flair", "theirs-x"]
    said = capsys.readouterr().out
    assert "2 volumes found" in said
    for reason in ("3 hidden", "1 named as T1 (a/sub-01_T1w.nii.gz)", "1 named as mask", "1 named as T1Gd"):
        assert reason in said
    assert "1 of our own results (earlier/flair)" in said and "a/scan.npy" in said


def test_a_series_is_one_volume_and_others_of_its_study_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, volume = tmp_path / "study", np.ones((4, 5, 3), np.uint16)

    def series(name: str, description: str, **attributes: Any) -> None:
        made = dicom.series(volume, np.eye(4), **{"SeriesDescription": description, **attributes})
        dicom.save_series(made, study / name)

    series("p1/1", "t2_tirm_tra_dark-fluid")
    series("p1/2", "t1_mprage_sag")
    series("p1/3", "", ProtocolName="T2w")
    series("p1/4", "head", Modality="CT")
    series("p2/flair", "")
    touch(study, "p3/flair.nrrd", "p3/x.PNG")
    assert find_inputs(str(study)) == [
        {"image": str(study / "p1" / "1"), "name": "p1-1"},
        {"image": str(study / "p2" / "flair"), "name": "p2-flair"},
        {"image": str(study / "p3" / "flair.nrrd"), "name": "p3-flair"},
    ]
    said = capsys.readouterr().out
    for reason in ("1 named as T1 (p1/2)", "1 named as T2 (p1/3)", "1 of modality CT (p1/4)"):
        assert reason in said
    assert "1 of a format that the model does not take (p3/x.PNG)" in said
    # given directly, it is a volume, or said to be another
    assert find_inputs(str(study / "p2" / "flair")) == [{"image": str(study / "p2" / "flair"), "name": "flair"}]
    [item] = find_inputs(str(study / "p1" / "2"))
    assert "named as T1, the model takes FLAIR" in item["error"]
    # images beside loose files of a series
    touch(study / "p2" / "flair", "y.nii")
    assert names(study / "p2" / "flair") == ["flair", "y"]


def test_a_model_of_pictures_takes_each_picture_and_each_dicom_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "a/view1_frontal.jpg", "a/view1_mask.png", "b/x.tif", "b/pd.nii.gz", "b/notes.txt", "b/.x.png")
    dicom.save(dicom.image(np.ones((4, 4), np.uint8)), tmp_path / "c" / "1.2.3")
    dicom.save(dicom.image(np.ones((4, 4), np.uint8)), tmp_path / "c" / "x.dcm")
    for name, modality in (
        ("small", "dx"),
        ("several", ["OT", "CR"]),
        ("unsaid", ""),
        ("mammogram", "MG"),
        ("sr", "SR"),
    ):
        dicom.save(dicom.image(np.ones((4, 4), np.uint8), Modality=modality), tmp_path / "d" / f"{name}.dcm")
    found = names(tmp_path, modalities=["CR", "DX"], sequences=["radiograph"])
    assert found == ["a-view1_frontal", "b-pd", "b-x", "c-1.2.3", "c-x", "d-several", "d-small", "d-unsaid"]
    said = capsys.readouterr().out
    assert "8 images found in" in said and "1 named as mask (a/view1_mask.png)" in said
    for modality, name in (("MG", "mammogram"), ("SR", "sr")):
        assert f"1 of modality {modality}, which --allow_any_image true takes (d/{name}.dcm)" in said
    found += ["d-mammogram", "d-sr"]
    assert sorted(names(tmp_path, modalities=["CR", "DX"], sequences=["radiograph"], allow_any_image=True)) == sorted(
        found
    )
    assert "of modality" not in capsys.readouterr().out
    assert names(tmp_path / "d" / "mammogram.dcm", modalities=["DX"]) == [
        "mammogram"
    ]  # the loader says why it can't be
    assert names(tmp_path / "c", modalities=["DX"]) == ["1.2.3", "x"]


def test_a_folder_without_images_says_what_was_left_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no image in this folder\. The model takes NIfTI"):
        find_inputs(str(tmp_path))
    touch(tmp_path, "T2w.nii.gz")
    with pytest.raises(ValueError, match=r"1 named as T2 \(T2w.nii.gz\)"):
        find_inputs(str(tmp_path))


def test_a_named_file_of_another_sequence_fails_or_is_warned_of(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01_T2w.nii.gz", "x.nii")
    path = tmp_path / "sub-01_T2w.nii.gz"
    [item] = find_inputs(str(path), allow_any_image="false")
    assert "named as T2, the model takes FLAIR" in item["error"] and "--allow_any_image true" in item["error"]
    [item] = find_inputs(str(path), allow_any_image="true")
    assert item["warnings"] == ["The file is named as T2, the model takes FLAIR."] and "error" not in item
    assert "error" not in find_inputs(str(path), sequences=["T2"])[0]
    with pytest.raises(ValueError, match="allow_any_image must be true or false, got 'maybe'"):
        find_inputs(str(path), allow_any_image="maybe")


def test_each_channel_has_its_sequence(tmp_path: Path) -> None:
    def errors(*files: str) -> list[bool]:
        path = write_datalist(tmp_path, [{"image": list(files)}])
        return ["error" in item for item in find_inputs(str(path), sequences=["T1", "FLAIR"])]

    assert errors("a_T1w.nii.gz", "a_FLAIR.nii.gz") == [False]
    assert errors("a_FLAIR.nii.gz", "a_T1w.nii.gz") == [True]
    assert errors("x.nii", "y.nii") == [False]


def test_paths_of_a_datalist_are_relative_to_it(tmp_path: Path) -> None:
    path = write_datalist(
        tmp_path, [{"image": ["a/flair.nii.gz", "b/flair.nii"], "subject": "x", "foreground": "m.nii"}]
    )
    [item] = find_inputs(str(path))
    assert item["image"] == [str(tmp_path / "a" / "flair.nii.gz"), str(tmp_path / "b" / "flair.nii")]
    assert item["foreground"] == str(tmp_path / "m.nii") and item["name"] == "x"
    assert names(write_datalist(tmp_path, [{"image": "a/flair.nii.gz"}, "b.nii"])) == ["a/flair", "b"]


def test_a_datalist_with_splits_gives_the_images_of_all(tmp_path: Path) -> None:
    content = {"name": "ours", "training": [{"image": "a.nii", "label": [0, 1]}], "test": ["b.nii", {"label": 0}]}
    items = find_inputs(str(write_datalist(tmp_path, content)))
    assert [item["name"] for item in items] == ["a", "b", "item-2"]
    assert items[2]["error"].startswith("d.json, test[1]: 'image' must be")
    path = str(write_datalist(tmp_path, content))
    assert [item["name"] for item in find_inputs(None, datalist=path, split="training")] == ["a"]
    with pytest.raises(ValueError, match="has no 'validation'"):
        find_inputs(path, split="validation")
    with pytest.raises(ValueError, match="give --input or --datalist, not both"):
        find_inputs(path, datalist=path)
    with pytest.raises(
        ValueError, match="--datalist must be a .json file, got .*; images and folders are given as --input"
    ):
        find_inputs(None, datalist=str(tmp_path))
    with pytest.raises(ValueError, match="--split test is a part of a datalist, and .* is none"):
        find_inputs(str(tmp_path), split="test")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_encodings_of_windows_are_no_fault(encoding: str, tmp_path: Path) -> None:
    assert names(write_datalist(tmp_path, '[{"image": "Größe.nii", "subject": ""}]', encoding)) == ["Größe"]


@pytest.mark.parametrize("content", ["{", "[]", '{"image": 1}', '{"training": []}', "[" * 100000])
def test_a_malformed_datalist_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="d.json"):
        find_inputs(str(write_datalist(tmp_path, content)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"subject": "bad"}, "'image' must be a path, or a list of paths, one a channel, got null"),
        ({"image": 5}, "'image' must be a path, or a list of paths, one a channel, got 5"),
        ({"image": []}, "'image' must be"),
        ({"image": "a\0.nii"}, "'image' must be"),
        ({"image": "a.nii", "foreground": "\ud800"}, "'foreground' must be a path"),
        ({"image": "a.nii", "mask": ["m.nii"]}, r"'mask' must be a path, got \[\"m.nii\"\]"),
        ({"image": "a.nii", "spacing": [1]}, "'spacing' must be three voxel sizes in mm above 0"),
        ({"image": "a.nii", "spacing": [1, 1, float("nan")]}, "'spacing' must be three voxel sizes"),
        ({"image": "a.nii", "spacing": ["1", "1", "1"]}, "'spacing' must be three voxel sizes"),
        ({"image": "a.nii", "forground": "b.nii"}, "'forground' is no field; did you mean 'foreground'"),
        ({"image": "a.nii", "subject": ["x"]}, "'subject' must be a text"),
    ],
)
def test_a_bad_item_is_one_failure(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_datalist(tmp_path, [{"image": "good.nii", "label": 1}, entry])
    good, bad = find_inputs(str(path))
    assert "error" not in good and bad["error"].startswith("d.json, item 1: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(bad["error"])
    assert bad["name"] == ("bad" if entry.get("subject") == "bad" else "item-1")


FOUR = ["T1", "T1Gd", "T2", "FLAIR"]


def test_the_sequences_of_a_study_are_one_item(tmp_path: Path) -> None:
    """By what their names have in common, in one folder or in a folder each; a file that says nothing may hold all."""
    touch(tmp_path, *(f"BraTS20_{n}/BraTS20_{n}_{s}.nii.gz" for n in (1, 2) for s in ("flair", "t1", "t1ce", "t2")))
    touch(
        tmp_path,
        *(f"{s}/p3.nii.gz" for s in ("FLAIR", "T1w", "T1Gd", "T2w")),
        "all.nii.gz",
        "BraTS20_1/BraTS20_1_seg.nii.gz",
    )
    found = {item["name"]: item for item in find_inputs(str(tmp_path), sequences=FOUR)}
    assert set(found) == {"BraTS20_1-BraTS20_1", "BraTS20_2-BraTS20_2", "p3", "all"}
    folder = tmp_path / "BraTS20_2"
    assert found["BraTS20_2-BraTS20_2"] == {
        "image": [str(folder / f"BraTS20_2_{s}.nii.gz") for s in ("t1", "t1ce", "t2", "flair")],
        "name": "BraTS20_2-BraTS20_2",
    }
    assert found["p3"]["image"][3] == str(tmp_path / "FLAIR" / "p3.nii.gz")
    assert found["all"]["image"] == str(tmp_path / "all.nii.gz")
    [item] = find_inputs(str(folder), sequences=FOUR)
    assert (item["name"], len(item["image"])) == ("BraTS20_2", 4)
    touch(tmp_path / "plain", "flair.nii", "t1.nii", "t1gd.nii", "t2.nii")
    [item] = find_inputs(str(tmp_path / "plain"), sequences=FOUR)
    assert (item["name"], len(item["image"])) == ("plain", 4)


def test_no_study_has_images_of_two_patients(tmp_path: Path) -> None:
    """Their ids are attached to the sequences; the first one's T2 is missing."""
    names = [f"{s}{k:03d}.nii.gz" for k in (1, 2) for s in ("t1w", "t1ce", "t2w", "flair")]
    touch(tmp_path, *(name for name in names if name != "t2w001.nii.gz"))
    one, two = find_inputs(str(tmp_path), sequences=FOUR)
    assert one["name"] == "001" and "T2 is missing" in one["error"]
    assert two == {"image": [str(tmp_path / name) for name in names[4:]], "name": "002"}


def test_a_native_t1_is_not_taken_for_one_with_contrast(tmp_path: Path) -> None:
    touch(tmp_path, *(f"p1_{s}.nii.gz" for s in ("FLAIR", "T1_PRE_GD", "T1_post", "T1_pre_post", "T2_TSE")))
    [item] = find_inputs(str(tmp_path), sequences=FOUR)
    assert item["image"] == [str(tmp_path / f"p1_{s}.nii.gz") for s in ("T1_PRE_GD", "T1_post", "T2_TSE", "FLAIR")]
    assert item["name"] == "p1" and "warnings" not in item


def test_a_sequence_that_is_missing_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "p1_flair.nii.gz", "p1_t1.nii.gz", "p1_t1gd.nii.gz", "p2_flair.nii.gz")
    one, two = find_inputs(str(tmp_path), sequences=FOUR)
    assert one["error"] == (
        "p1: the model takes T1, T1Gd, T2, FLAIR of one study; T2 is missing. Found: FLAIR (p1_flair.nii.gz), "
        "T1 (p1_t1.nii.gz), T1Gd (p1_t1gd.nii.gz)."
    )
    assert "T1, T1Gd, T2 are missing" in two["error"]


def test_of_two_candidates_the_first_that_is_not_sagittal_or_coronal_is_taken(tmp_path: Path) -> None:
    study, volume = tmp_path / "study", np.ones((4, 5, 3), np.uint16)
    uids = iter(range(1, 99))

    def series(folder: str, description: str, number: int, **attributes: Any) -> None:
        uid = f"1.2.{next(uids)}"
        made = dicom.series(
            volume, np.eye(4), SeriesDescription=description, SeriesNumber=number, StudyInstanceUID="1.2"
        )
        for image in made:
            image.SeriesInstanceUID = uid
            for name, value in attributes.items():
                setattr(image, name, value)
        dicom.save_series(made, study / folder)

    series("a", "SAG T1", 1)
    series("b", "T2 AX", 7)
    series("c", "T2 AX", 3)
    series("d", "T1 AX", 2)
    series("e", "T1 AX POST", 9)
    series("f", "FLAIR", 4)
    series("other/g", "FLAIR", 1, StudyInstanceUID="1.3")
    one, two = find_inputs(str(study), sequences=FOUR)
    assert one == {
        "image": [str(study / name) for name in ("d", "e", "c", "f")],
        "name": "study",
        "warnings": [
            "Of 2 T1 images of this study, d (T1 AX, series 2) was taken and not a (SAG T1, series 1).",
            "Of 2 T2 images of this study, c (T2 AX, series 3) was taken and not b (T2 AX, series 7).",
        ],
    }
    assert "T1, T1Gd, T2 are missing" in two["error"] and two["name"] == "other-g"
