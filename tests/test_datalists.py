"""Datalists: what a file may say of its images, and that all else is refused in words."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.learning.datalists import read_datalist


def write(folder: Path, content: Any) -> Path:
    path = folder / "datalist.json"
    path.write_text(json.dumps(content))
    return path


WHOLE = {
    "image": ["t1.nii.gz", "/elsewhere/flair.nii.gz"],
    "label": [0, 1, -1],
    "mask": "seg.nii.gz",
    "foreground": "brain.nii.gz",
    "boxes": [[0, 1.5, 2, 3]],
    "subject": 7,
    "spacing": [1, 1, 5.5],
    "groups": {"sex": "F"},
}


def test_an_item_is_read_whole_and_its_paths_are_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"training": [WHOLE], "test": [{"image": "x.png", "mask": None, "subject": ""}]})
    (tmp_path / "7").touch()  # a file that is called like a patient makes no path of it
    monkeypatch.chdir(tmp_path)
    [item] = read_datalist("datalist.json", "training")
    assert item == WHOLE | {
        "image": [str(tmp_path / "t1.nii.gz"), "/elsewhere/flair.nii.gz"],
        "mask": str(tmp_path / "seg.nii.gz"),
        "foreground": str(tmp_path / "brain.nii.gz"),
        "subject": "7",
    }
    assert read_datalist("datalist.json", "test") == [{"image": str(tmp_path / "x.png")}]


def test_without_a_split_the_items_of_all_are_read(tmp_path: Path) -> None:
    content = {"name": "x", "modality": {"0": "MRI"}, "training": ["a.nii"], "test": ["b.nii"], "demo": ["c.nii"]}
    for form in (content, ["a.nii", "b.nii", {"image": "c.nii"}]):
        items = read_datalist(write(tmp_path, form))
        assert [Path(item["image"]).name for item in items] == ["a.nii", "b.nii", "c.nii"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image": "a.nii"}], "holds no items"),  # a plain list has no splits
        ({"train": [{"image": "a.nii"}]}, "has no 'training'; it has 'train'"),
        ({"training": [], "test": ["a.nii"]}, "no item is in 'training'"),
        ({"training": {"image": "a.nii"}}, "holds no items"),
        ("a.nii", "holds no items"),
    ],
)
def test_a_file_without_the_split_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"datalist\.json: {message}"):
        read_datalist(write(tmp_path, content), "training")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.json: can't be read as a JSON datalist"):
        read_datalist(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([1], r"must be an item such as .*, got \[1\]"),
        ({"label": 1}, "'image' must be a path, or a list of paths, one a channel, got null"),
        ({"image": ["a.nii", 1]}, "'image' must be a path"),
        ({"image": "a.nii", "lable": 1}, "'lable' is no field; did you mean 'label'"),
        ({"image": "a.nii", "age": 1}, "'age' is no field; the fields are image, mask, foreground, label, boxes"),
        ({"image": "a.nii", "brain": "b.nii"}, "'brain' is no field; did you mean 'foreground'"),
        ({"image": "a.nii", "label": 2}, r"'label' must be 0 \(healthy\), 1 \(diseased\) or -1 \(leave out\).*, got 2"),
        ({"image": "a.nii", "label": True}, "'label' must be .*, got true"),
        ({"image": "a.nii", "label": [0, 0.5]}, r"'label' must be .*, got \[0, 0.5\]"),
        ({"image": "a.nii", "label": []}, r"'label' must be .*, got \[\]"),
        ({"image": "a.nii", "label": "seg.nii"}, "'label' must be .*; a mask is given as 'mask'"),
        ({"image": "a.nii", "mask": ["m.nii"]}, "'mask' must be a path"),
        ({"image": "a.nii", "foreground": 1}, "'foreground' must be a path"),
        ({"image": "a.nii", "boxes": [1, 2, 3, 4]}, "'boxes' must be a list of boxes .*, four numbers"),
        ({"image": "a.nii", "boxes": [[1, 2, 3]]}, "'boxes' must be"),
        ({"image": "a.nii", "boxes": [[3, 2, 1, 4]]}, "'boxes' must be .* x0 < x1"),
        ({"image": "a.nii", "spacing": [1, 1, 0]}, "'spacing' must be three voxel sizes in mm above 0"),
        ({"image": "a.nii", "groups": {"age": 7}}, "'groups' must be names without a colon, each with a text, such as"),
        ({"image": "a.nii", "groups": {"age": " "}}, "'groups' must be names"),
        ({"image": "a.nii", "groups": {"age": "a\nb"}}, "'groups' must be names"),
        ({"image": "a.nii", "groups": {"a: b": "c"}}, "'groups' must be names"),
        ({"image": "a.nii", "subject": True}, "'subject' must be a text"),
        ({"image": "good.nii"}, r"has the same image as training\[0\]"),
        ({"image": "sub/../good.nii"}, r"has the same image as training\[0\]"),
    ],
)
def test_a_bad_entry_is_named_with_its_reason(entry: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"training": [{"image": "good.nii", "label": 0}, entry]})
    with pytest.raises(ValueError, match=rf"datalist\.json, training\[1\]: {message}"):
        read_datalist(path, "training")


def test_a_label_is_needed_where_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": [{"image": "a.nii", "label": 0}], "test": ["b.nii"]})
    assert len(read_datalist(path, "training", labelled=True)) == 1
    for split in ("test", None):
        with pytest.raises(ValueError, match=r"test\[0\]: has no 'label'"):
            read_datalist(path, split, labelled=True)


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    items = [{"image": f"{n}.nii", "subject": "p1"} for n in range(3)]
    assert len(read_datalist(write(tmp_path, {"training": items}), "training")) == 3
    path = write(tmp_path, {"training": items[:2], "test": items[2:]})
    with pytest.raises(ValueError, match=r"test\[0\]: subject 'p1' is in 'training' too"):
        read_datalist(path, "training")


def test_a_file_is_of_one_patient_and_in_one_split_by_whatever_link_it_is_named(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x")
    (tmp_path / "latest").symlink_to("p1")
    (tmp_path / "b.png").symlink_to("latest/a.png")
    first = {"image": "p1/a.png", "subject": "p1"}
    for linked in ("latest/a.png", "b.png"):
        path = write(tmp_path, {"training": [first], "test": [{"image": linked, "subject": "latest"}]})
        with pytest.raises(ValueError, match=r"test\[0\]: has the same image as training\[0\] \(.*p1/a.png\)"):
            read_datalist(path, "training")
    shared: dict[str, Any] = {"image": ["b.png", "p2/a.png"]}
    for content, refused in (
        ({"training": [first, shared]}, False),
        ({"training": [first, shared | {"subject": "p1"}]}, False),
        ({"training": [first, shared | {"subject": "p2"}]}, True),
        ({"training": ["p1/a.png"], "test": [shared]}, True),
    ):
        path = write(tmp_path, content)
        if refused:
            with pytest.raises(
                ValueError, match=r"p1/a.png is in training\[0\] too, in another split or of another subject"
            ):
                read_datalist(path)
        else:
            assert len(read_datalist(path)) == 2


def test_a_hundred_thousand_items_take_seconds(tmp_path: Path) -> None:
    items = [{"image": f"images/{n:06d}.png", "label": n % 2, "subject": str(n // 3)} for n in range(100_000)]
    path = write(tmp_path, {"training": items})
    start = time.perf_counter()
    assert len(read_datalist(path, "training", labelled=True)) == 100_000
    assert time.perf_counter() - start < 20
