"""Nothing is removed that the program did not write, nothing is forgotten, and nothing is computed twice."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

from scripts import files
from scripts.bundle import declared, parsed
from scripts.digests import source_digest
from scripts.errors import message_of
from scripts.running.records import identify
from scripts.running.results import MAX_NAME, Results
from scripts.weights import in_use
from synthetic import write_head
from tiny_run import datalist, run, summary, visible


def tree(folder: Path) -> dict[str, str]:
    """What every file in a folder holds, but not what is hidden."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


def write(results: Results, item: dict[str, Any], text: str = "map", **record: Any) -> dict[str, Any]:
    """One volume's results as the report writes them."""
    folder = results.new_folder()
    (folder / "pred.nii.gz").write_text(text)
    return results.place(item, folder, {"status": "ok", "slices": [], **record})


def an_item(folder: Path, name: str = "flair", content: str | None = None) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.nii.gz"
    path.write_text(content or str(path))
    return {"image": str(path), "name": name}


def run_on(out: Path, *items: dict[str, Any], **options: Any) -> list[str]:
    """Write results of items by a run of its own; return the names of their folders."""
    results = Results(str(out), options.pop("recipe", "recipe"), **options)
    items = tuple(dict(item) for item in items)
    results.prepare(items)
    for item in items:
        if not results.done(item):
            write(results, item)
    results.close()
    return [item["name"] for item in items]


def test_the_patients_own_folder_is_not_replaced(tmp_path: Path, weights: dict[str, str]) -> None:
    """The README's datalist with the data's own folder as output: refused before anything is computed."""
    (tmp_path / "a").mkdir()
    item = {**write_head(tmp_path / "a"), "name": "a"}
    (tmp_path / "a" / "notes.txt").write_text("call the family")
    path = datalist(tmp_path, [item])
    before = tree(tmp_path)
    with pytest.raises(RuntimeError) as error:
        run(weights, input=path, output_dir=str(tmp_path))
    lines = (message_of(error.value) or "").splitlines()
    assert len(lines) == 2 and f"{tmp_path / 'a'}: holds flair.nii.gz, flair_brain.nii.gz, notes.txt" in lines[1]
    assert "move it away, or give another --output_dir" in lines[1]
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "kind",
    [
        "file",
        "link",
        "locked",
        "foreign",
        "corrected",
        "added",
        "input",
        "mask",
        "summary",
        "csv",
        "begun csv",
        "noted csv",
    ],
)
def test_what_is_in_the_way_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    item = an_item(tmp_path / "in")
    if kind in ("locked", "corrected", "added", "input", "mask", "noted csv"):
        run_on(out, item)
    if kind == "file":
        out.mkdir()
        (out / "flair").touch()
    elif kind == "link":
        out.mkdir()
        (tmp_path / "elsewhere").mkdir()
        (out / "flair").symlink_to(tmp_path / "elsewhere")
    elif kind == "foreign":
        (out / "flair").mkdir(parents=True)
        (out / "flair" / "result.json").write_text('{"status": "ok", "files": {}}')
    elif kind == "locked":
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != out / "flair")
    elif kind == "corrected":
        (out / "flair" / "pred.nii.gz").write_text("a reader's")
    elif kind == "added":
        (out / "flair" / "notes.txt").touch()
    elif kind == "input":
        item = {"image": str(out / "flair" / "pred.nii.gz"), "name": "flair", **{"foreground": item["image"]}}
    elif kind == "mask":
        link = tmp_path / "link.nii.gz"
        link.symlink_to(out / "flair" / "pred.nii.gz")
        item["mask"] = str(link)
    elif kind == "summary":
        out.mkdir()
        (out / "summary.json").write_text('{"volumes": []}')
    elif kind == "csv":
        out.mkdir()
        (out / "summary.csv").write_text("patient,diagnosis\n")
    elif kind == "begun csv":  # a copy of one of ours, in which a reader wrote
        run_on(tmp_path / "elsewhere", item)
        out.mkdir()
        shutil.copy(tmp_path / "elsewhere" / "summary.csv", out)
    elif kind == "noted csv":
        with (out / "summary.csv").open("a") as file:
            file.write("flair,seen by a radiologist\n")
    before = tree(out)
    others = [an_item(tmp_path / "in", f"other-{n}") for n in range(2)]
    results = Results(str(out), "another recipe")
    if kind == "input":  # the name was another input's before, and is again
        item["image"], item["mask"] = item["foreground"], item["image"]
    with pytest.raises(ValueError, match="nothing was computed") as error:
        results.prepare([others[0], item, others[1]])
    assert len(str(error.value).splitlines()) == 2
    assert tree(out) == before


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match=r"out: is a file; give another --output_dir"):
        run_on(tmp_path / "out", an_item(tmp_path / "in"))
    with pytest.raises(ValueError, match=r"must be a path, got 20241125; of a number, write \./20241125"):
        Results(20241125, "recipe")  # type: ignore[arg-type]  # what fire makes of such a name


def test_what_a_reader_added_is_no_hindrance_where_nothing_is_written(tmp_path: Path) -> None:
    item = an_item(tmp_path / "in")
    run_on(tmp_path / "out", item)
    (tmp_path / "out" / "flair" / "notes.txt").write_text("seen")
    before = tree(tmp_path / "out" / "flair")
    run_on(tmp_path / "out", item, an_item(tmp_path / "in", "new"))
    assert tree(tmp_path / "out" / "flair") == before
    with pytest.raises(ValueError, match=r"holds notes.txt, which is not as it was written"):
        run_on(tmp_path / "out", item, overwrite=True)


def test_what_came_while_it_was_computed_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    item = an_item(tmp_path / "in")
    run_on(out, item)
    results = Results(str(out), "another recipe")
    results.prepare([item])
    (out / "flair" / "pred.nii.gz").write_text("a reader's, saved meanwhile")
    assert write(results, item)["name"] == "flair-2"
    results.close()
    assert (out / "flair" / "pred.nii.gz").read_text() == "a reader's, saved meanwhile"
    assert list(summary(out)) == ["flair", "flair-2"]


def test_another_input_of_that_name_takes_another_name(tmp_path: Path) -> None:
    """A shell loop over */flair.nii.gz into one output folder, twice, the second time in another order."""
    items = {patient: an_item(tmp_path / patient) for patient in ("patientA", "patientB", "patientC")}
    expected = {"patientA": "flair", "patientB": "patientB-flair", "patientC": "patientC-flair"}
    for order in (sorted(items), sorted(items, reverse=True)):
        for patient in order:
            assert run_on(tmp_path / "out", items[patient]) == [expected[patient]]
    volumes = summary(tmp_path / "out")
    assert {name: v["image"] for name, v in volumes.items()} == {expected[p]: i["image"] for p, i in items.items()}


def test_names_in_one_run_are_told_apart(tmp_path: Path) -> None:
    items = [an_item(tmp_path / "a"), an_item(tmp_path / "b"), {**an_item(tmp_path / "c"), "name": "FLAIR"}]
    assert run_on(tmp_path / "out", *items) == ["flair", "b-flair", "c-FLAIR"]
    deep = {**an_item(tmp_path / "x" / "a"), "name": "a-flair"}
    other = {**an_item(tmp_path / "y" / "a"), "name": "a-flair"}
    assert run_on(tmp_path / "out", deep, other) == ["a-flair", "y-a-flair"]


def test_data_that_were_moved_keep_their_name(tmp_path: Path) -> None:
    item = an_item(tmp_path / "before", content="same")
    run_on(tmp_path / "out", item)
    shutil.move(tmp_path / "before", tmp_path / "after")
    moved = {"image": str(tmp_path / "after" / "flair.nii.gz"), "name": "flair"}
    results = Results(str(tmp_path / "out"), "recipe")
    results.prepare([moved])
    assert moved["name"] == "flair" and results.done(moved)
    results.close()


@pytest.mark.parametrize("first", ["flair", "p1-flair", "sub-01"])
def test_an_image_is_run_once_by_whatever_name_it_is_given(
    first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself, by its folder or by a datalist. A copy of it is another image, and so is what takes its place."""
    item, out = an_item(tmp_path / "data" / "p1", content="of the patient"), tmp_path / "out"
    run_on(out, {**item, "name": first})
    written = (out / first / "pred.nii.gz").stat().st_mtime_ns
    names = ["flair", "p1-flair", "sub-01"]
    for name in names:
        assert run_on(out, {**item, "name": name}) == [first]
        said = f"Named otherwise, as the image has results of that name already: {name} to {first}."
        assert (said in capsys.readouterr().out) == (name != first)
    assert list(summary(out)) == [first] and (out / first / "pred.nii.gz").stat().st_mtime_ns == written
    copy = {**an_item(tmp_path / "data" / "p2", content="of the patient"), "name": "p2-flair"}
    assert run_on(out, copy, {**item, "name": "p1-flair"}) == ["p2-flair", first]
    an_item(tmp_path / "data" / "p1", content="of another")
    assert run_on(out, {**item, "name": "new"}, overwrite=True) == ["new"]
    assert sorted(summary(out)) == sorted([first, "new", "p2-flair"])
    assert (out / first / "pred.nii.gz").stat().st_mtime_ns == written


def test_images_are_read_beforehand_only_where_there_are_results_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand on a network's disk would else be read before anything is computed."""
    read: list[str] = []
    monkeypatch.setattr("scripts.running.results.source_digest", lambda path: read.append(path) or source_digest(path))
    items = [an_item(tmp_path / name, name) for name in ("a", "b")]
    for expected in (set(), {items[0]["image"]}):
        read.clear()
        results = Results(str(tmp_path / "out"), "recipe")
        results.prepare([{**item, "name": f"sub-{item['name']}"} for item in items])
        results.close()
        assert {*read} == expected
        run_on(tmp_path / "out", items[0])


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("../../escape", "escape"),
        ("/etc/passwd", "etc-passwd"),
        ("a\\b", "a-b"),
        (".hidden", "hidden"),
        ("..", "volume"),
        ("summary.json", "volume-summary.json"),
        ("Summary.CSV", "volume-Summary.CSV"),
        ("line\nbreak:", "line_break_"),
        ("Größe", "Größe"),
    ],
)
def test_a_name_is_one_visible_folder(name: str, folder: str, tmp_path: Path) -> None:
    assert run_on(tmp_path / "out", {**an_item(tmp_path / "in"), "name": name}) == [folder]
    assert visible(tmp_path / "out") == sorted([folder, "summary.csv", "summary.json"])


def test_a_name_that_is_no_text_is_a_folder_too(tmp_path: Path) -> None:
    """As of files from systems that don't write UTF-8."""
    item = an_item(tmp_path / "in", os.fsdecode("Größe".encode("latin-1")), "content")
    assert run_on(tmp_path / "out", item) == ["Gr__e"] and run_on(tmp_path / "out", item) == ["Gr__e"]
    record = {"status": "failed", "error": item["image"]}
    results = Results(str(tmp_path / "out"), "another recipe")
    results.prepare([item])
    results.place(item, results.new_folder(), record)
    results.close()
    assert "in/Gr" in (tmp_path / "out" / "summary.csv").read_text("utf-8")
    assert summary(tmp_path / "out")["Gr__e"]["image"] == item["image"]


def test_long_names_are_cut_and_stay_apart(tmp_path: Path) -> None:
    items = [{**an_item(tmp_path / "in", str(n)), "name": "ä" * 150 + str(n)} for n in range(2)]
    first, second = run_on(tmp_path / "out", *items)
    assert first != second and max(len(first.encode()), len(second.encode())) <= MAX_NAME
    assert run_on(tmp_path / "out", *items) == [first, second]


def test_a_second_run_keeps_the_lines_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("b", "a"):
        run_on(out, an_item(tmp_path / "in", name))
    assert list(summary(out)) == ["a", "b"]
    rows = (out / "summary.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:]] == [["a", "volume", "ok"], ["b", "volume", "ok"]]


@pytest.mark.parametrize("left", ["nothing", "summary.json", "no summary.csv", "no folder"])
def test_a_summary_without_notes_is_written_anew(left: str, tmp_path: Path) -> None:
    """Also where a run was killed between its two files, at the first time or later, and where a reader removed one."""
    out = tmp_path / "out"
    items = [an_item(tmp_path / "in", name) for name in "abc"]
    record = {"score": 0.1 + 0.2, "error": 'in\udce4, "quoted"', "warnings": ["One.", "Two,\nü."]}
    results = Results(str(out), "recipe")
    results.prepare(items[:1])
    write(results, items[0], **record, slices=[{"slice": 3, "assessed": False, "score": None, "p_diseased": 1e-9}])
    results.close()
    first = (out / "summary.json").read_text()
    run_on(out, items[1])
    if left == "nothing":
        (out / "summary.json").unlink()
    elif left == "summary.json":
        (out / "summary.json").write_text(first)
    elif left == "no summary.csv":
        (out / "summary.csv").unlink()
    elif left == "no folder":
        shutil.rmtree(out / "a")
    names = ["b", "c"] if left == "no folder" else ["a", "b", "c"]
    run_on(out, items[2])
    assert list(summary(out)) == names
    with (out / "summary.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file) if row["slice"] == "volume"] == names


def test_notes_that_came_while_it_was_computed_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    items = [an_item(tmp_path / "in", name) for name in "abc"]
    run_on(out, items[0])
    results = Results(str(out), "recipe")
    results.prepare(items[1:])
    noted = (out / "summary.csv").read_text() + "a,seen\n"
    (out / "summary.csv").write_text(noted)
    results.interval = 0
    for item in items[1:]:
        write(results, item)
    results.close()
    assert (out / "summary.csv").read_text() == noted and list(summary(out)) == ["a", "b", "c"]
    assert "summary.csv: was changed meanwhile and stays as it is" in capsys.readouterr().out


AT_ONCE = """
import sys, time
from pathlib import Path
from scripts.errors import message_of
from scripts.running.results import Results
out, source, who = sys.argv[1:]
items = [{"image": f"{source}/{who}-{n}.nii.gz", "name": f"{who}-{n}"} for n in range(20)]
items.append({"image": f"{source}/{who}.nii.gz", "name": "both"})
results = Results(out, "recipe")
results.prepare(items)
Path(source, who).touch()
while len(list(Path(source).iterdir())) < 2:
    time.sleep(0.01)
for item in items:
    results._next = 0.0  # a summary with every volume
    folder = results.new_folder()
    (folder / "pred.nii.gz").write_text(who)
    results.place(item, folder, {"status": "ok"})
results.close()
"""


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    bundle = Path(__file__).resolve().parent.parent / "bundle"
    runs = [
        subprocess.Popen([sys.executable, "-c", AT_ONCE, tmp_path / "out", tmp_path / "in", who], cwd=bundle)
        for who in ("one", "two")
    ]
    assert [r.wait(timeout=120) for r in runs] == [0, 0]
    volumes = summary(tmp_path / "out")
    assert len(volumes) == 42
    texts = [(Path(v["folder"]) / "pred.nii.gz").read_text() for v in volumes.values()]
    assert sorted(texts) == ["one"] * 21 + ["two"] * 21
    visible(tmp_path / "out")


def test_what_was_done_is_skipped_until_something_it_depends_on_changes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    item = an_item(tmp_path / "in")
    brain = tmp_path / "in" / "brain.nii.gz"
    brain.write_text("foreground")
    item["foreground"] = str(brain)
    run_on(out, item)

    def done(recipe: str = "recipe", overwrite: bool = False, **changed: Any) -> bool:
        return Results(str(out), recipe, overwrite).done({**item, **changed})

    assert done()
    assert not done(overwrite=True)
    assert not done("other settings, weights or version")
    assert not done(spacing=[1, 1, 1])
    brain.write_text("another brain")
    assert not done()
    brain.write_text("foreground")
    assert done()
    Path(item["image"]).write_text("another image in its place")
    assert not done()
    Path(item["image"]).write_text(item["image"])
    assert done()
    (out / "flair" / "pred.nii.gz").unlink()
    assert not done()


def test_a_failed_volume_has_no_older_results_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    item = an_item(tmp_path / "in")
    run_on(out, item)
    results = Results(str(out), "recipe", overwrite=True)
    results.prepare([item])
    results.place(item, results.new_folder(), {"status": "failed", "error": "no brain"})
    results.close()
    assert visible(out / "flair") == ["result.json"]
    assert summary(out)["flair"]["status"] == "failed"
    assert not Results(str(out), "recipe").done(item)


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ours, living, theirs = (out / f".run-{n}.part" for n in ("killed", "living", "theirs"))
    for folder in (ours, living, theirs):
        (folder / "volume").mkdir(parents=True)
        (folder / "lock").touch()
    (theirs / "thesis.txt").touch()
    old_version = out / ".flair.part"
    old_version.mkdir()
    with FileLock(living / "lock"):
        run_on(out, an_item(tmp_path / "in"))
        left = {p.name for p in out.iterdir() if p.name.startswith(".")}
    assert left - {".summary.lock"} == {living.name, theirs.name, old_version.name}


def test_results_moved_aside_by_a_killed_run_come_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    item = an_item(tmp_path / "in")
    run_on(out, item)
    left = out / ".run-killed.part"
    left.mkdir()
    (left / "lock").touch()
    (out / "flair").rename(left / "old")
    run_on(out, an_item(tmp_path / "in", "other"))
    assert list(summary(out)) == ["flair", "other"] and Results(str(out), "recipe").done(item)
    # and where there are newer ones, a reader's file in the older ones is kept
    shutil.copytree(out / "flair", left / "old")
    (left / "lock").touch()
    (left / "old" / "notes.txt").touch()
    run_on(out, item)
    assert (left / "old" / "notes.txt").exists()


def test_results_moved_aside_by_ctrl_c_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    item = an_item(tmp_path / "in")
    run_on(out, item)
    results = Results(str(out), "another recipe")
    results.prepare([item])
    original = os.replace

    def stopped(source: Path, target: Path) -> None:
        if Path(source).name == "volume":
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(results, item)
    assert not (out / "flair").exists()
    results.close()
    assert visible(out) == ["flair", "summary.csv", "summary.json"] and list(summary(out)) == ["flair"]
    assert Results(str(out), "recipe").done(item)


def test_the_summary_is_not_rewritten_for_every_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    original = Results.compose
    monkeypatch.setattr(Results, "compose", lambda self: (composed.append(1), original(self)))
    run_on(tmp_path / "out", *[an_item(tmp_path / "in", str(n)) for n in range(30)])
    assert len(composed) == 2  # with the first volume, and at the end
    monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
    run_on(tmp_path / "out", *[an_item(tmp_path / "in", f"new-{n}") for n in range(3)])
    assert len(composed) == 6


def test_one_patient_after_the_other_at_one_path_or_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts copy or link each patient's image to one place, or change into each patient's folder."""
    out = tmp_path / "out"
    for n, patient in enumerate("ABC"):
        assert run_on(out, an_item(tmp_path / "scratch", content=patient)) == [
            ("flair", "scratch-flair")[n] if n < 2 else f"{tmp_path.name}-scratch-flair"
        ]
    assert run_on(out, an_item(tmp_path / "scratch", content="A")) == ["flair"]
    for patient in ("D", "E"):
        an_item(tmp_path / patient, "x", content=patient)
        monkeypatch.chdir(tmp_path / patient)
        run_on(out, {"image": "x.nii.gz", "name": "x"})
    volumes = summary(out)
    assert len(volumes) == 5 and volumes["x"]["image"] == str(tmp_path / "D" / "x.nii.gz")
    assert volumes["E-x"]["image"] == str(tmp_path / "E" / "x.nii.gz")


def test_the_new_content_of_a_path_replaces_the_old_when_that_is_asked_for(tmp_path: Path) -> None:
    run_on(tmp_path / "out", an_item(tmp_path / "in", content="first"))
    assert run_on(tmp_path / "out", an_item(tmp_path / "in", content="second"), overwrite=True) == ["flair"]
    assert list(summary(tmp_path / "out")) == ["flair"]
    identify(item := an_item(tmp_path / "in", content="second"))
    assert summary(tmp_path / "out")["flair"]["image_sha256"] == item["image_sha256"]


def test_a_disk_that_was_away_costs_no_result(tmp_path: Path) -> None:
    """A failure has a folder of its own beside the result, until the image is back."""
    out = tmp_path / "out"
    item = an_item(tmp_path / "in")
    run_on(out, item)
    (tmp_path / "in").rename(tmp_path / "away")
    results = Results(str(out), "recipe")
    results.prepare([gone := dict(item)])
    assert not results.done(gone)
    results.place(gone, results.new_folder(), {"status": "failed", "error": "no such file"})
    results.close()
    assert {name: v["status"] for name, v in summary(out).items()} == {"flair": "ok", "in-flair": "failed"}
    (tmp_path / "away").rename(tmp_path / "in")
    assert run_on(out, item) == ["flair"] and list(summary(out)) == ["flair"]


def test_an_input_is_told_by_its_content(tmp_path: Path) -> None:
    items = [an_item(tmp_path / folder, content=text) for folder, text in (("a", "x"), ("b", "x"), ("c", "y"))]
    items.append({**items[0], "mask": items[0]["image"]})
    items += [{"image": str(tmp_path / folder / "none.nii"), "name": "none"} for folder in ("a", "b")]
    for item in items:
        identify(item)
    digests = [item["input_digest"] for item in items]
    assert digests[0] == digests[1] and len(set(digests)) == 5
    assert items[0]["image_sha256"] == items[3]["image_sha256"] == [hashlib.sha256(b"x").hexdigest()]


@pytest.mark.parametrize("option", ["batch_size", "num_workers"])
def test_no_batch_holds_two_volumes(option: str, tmp_path: Path, weights: dict[str, str]) -> None:
    """The results of one would stand under the other's name."""
    items = [write_head(tmp_path, name=name) for name in ("a", "b")]
    with pytest.raises(RuntimeError) as error:
        run(weights, input=datalist(tmp_path, items), output_dir=str(tmp_path / "out"), **{f"dataloader#{option}": 2})
    assert (message_of(error.value) or "").startswith("dataloader#batch_size must be 1 and num_workers 0")
    assert not (tmp_path / "out").exists()


def test_a_rerun_computes_only_what_is_new_and_a_reader_keeps_his_mask(
    tmp_path: Path,
    weights: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole way, with networks."""
    out = tmp_path / "out"
    items = [write_head(tmp_path, name=name) for name in ("a", "b")]
    assert run(weights, input=datalist(tmp_path, items[:1]), output_dir=str(out)) == 0
    first = tree(out / "a")
    record = json.loads((out / "a" / "result.json").read_text())
    assert set(record["files"]) == {"anomaly_map.nii.gz", "counterfactual.nii.gz", "overview.png", "pred.nii.gz"}
    assert {name: digest for name, digest in first.items() if name != "result.json"} == record["files"]
    assert record["settings"]["num_inference_steps"] == 2 and set(record["versions"]) == {"bundle", "monai", "torch"}
    read = ("temperature", "polarity", "median_size", "pixel_size", "highest_intensity")
    others = ("num_fixed_point_iterations", "guidance_exponent", *read)
    assert [record["settings"][name] for name in others] == [parsed().get_parsed_content(name) for name in others]
    of_preview = in_use({}, parsed("preview").get_parsed_content("report#other_settings"))
    assert set(of_preview) == set(read)
    assert not {"pixel_size", "highest_intensity"} & in_use({}, declared("report#other_settings", "chest")).keys()
    capsys.readouterr()
    assert run(weights, input=datalist(tmp_path, items), output_dir=str(out)) == 0
    assert "1 done before, skipped; --overwrite true runs them again" in capsys.readouterr().out
    assert tree(out / "a") == first and list(summary(out)) == ["a", "b"]
    # everything done; then an option that no list of settings names
    assert run(weights, input=datalist(tmp_path, items), output_dir=str(out)) == 0
    assert "2 done before" in capsys.readouterr().out
    assert run(weights, input=datalist(tmp_path, items[:1]), output_dir=str(out), median_size=5) == 0
    assert "done before" not in capsys.readouterr().out
    # the numbers in use are now known to be of other networks: a warning that the results have not
    manifest = tmp_path / "weights.json"
    manifest.write_text(json.dumps({"calibration": {"values": {"threshold": 0.2}, "network": "0", "classifier": "0"}}))
    assert run(weights, input=datalist(tmp_path, items[:1]), output_dir=str(out), manifest=str(manifest)) == 0
    assert "done before" not in capsys.readouterr().out
    # a reader corrects a mask
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), out / "a" / "pred.nii.gz")
    corrected = tree(out)
    with pytest.raises(RuntimeError) as error:
        run(weights, input=datalist(tmp_path, items), output_dir=str(out), overwrite="true")
    assert "a: holds pred.nii.gz, which is not as it was written" in str(error.value.__cause__)
    assert tree(out) == corrected


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "map.nii.gz"
    files.write(path, b"old")
    with pytest.raises(OSError, match="full"), files.replacing(path) as partial:
        partial.write_bytes(b"ne")
        assert partial.parent == tmp_path and partial.name.endswith("map.nii.gz") and path.read_bytes() == b"old"
        raise OSError("the disk is full")
    assert [p.name for p in tmp_path.iterdir()] == ["map.nii.gz"] and path.read_bytes() == b"old"
    with files.replacing(path) as partial:
        partial.write_bytes(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["map.nii.gz"] and path.read_bytes() == b"new"
