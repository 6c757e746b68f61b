"""Slices on disk: each volume is preprocessed once, by one process, and read back as it was."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityRanged

from scripts.bundle import bundle_root, cache_dir, declared
from scripts.learning.cache import SliceCache
from scripts.learning.datasets import SliceDataset
from training_data import datalist, forked


def test_slices_are_read_from_disk_with_their_own_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = SliceDataset(datalist(tmp_path), declared("preprocessing"), str(tmp_path / "cache"), 0.5)
    assert "missing.nii.gz: no such file" in caplog.text
    assert "1 of 4 volumes were left out; the next start tries them again" in caplog.text
    assert dataset[0]["image"].shape == (1, 72, 88) and dataset[0]["image"].dtype == torch.float32
    assert float(dataset[0]["image"].min()) == -1.0
    by_subject = {
        s: [x for x, who in zip(dataset.labels, dataset.subjects, strict=True) if who == s] for s in dataset.subjects
    }
    # "plain" rises and "flipped" falls through its file; assessed are the middle slices 1 to 4
    assert by_subject["plain"] == [1, 0, 1, 0]
    assert by_subject["flipped"] == [0, 1, 0, 1]
    assert set(by_subject["oblique"]) == {1}


BROUGHT: list[str] = []
"""The volumes that `noted` saw."""

FAULT: dict[str, Exception] = {}
"""What `noted` raises at which volume."""

WATCH: dict[str, Path] = {}
"""A file to which `noted` adds each volume, for processes other than this one."""


def noted(data: dict[str, Any]) -> dict[str, Any]:
    """The last transform of a preprocessing."""
    name = Path(data["image"].meta["filename_or_obj"]).name.split(".")[0]
    if name in FAULT:
        raise FAULT[name]
    BROUGHT.append(name)
    for path in WATCH.values():
        with path.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(0.3)
    return data


def noting(*transforms: Any) -> Compose:
    return Compose([*declared("preprocessing").transforms, *transforms, noted])


def built(folder: Path, items: list[dict[str, Any]], *transforms: Any, cache: str = "cache") -> SliceDataset:
    BROUGHT.clear()
    return SliceDataset(items, noting(*transforms), str(folder / cache), 0.5)


def test_a_volume_is_preprocessed_once(tmp_path: Path) -> None:
    """Whatever the labels and the other volumes are, and whatever failed; another setting, however deep, is another volume."""
    items = datalist(tmp_path)
    dataset = built(tmp_path, items[1:])
    assert BROUGHT == ["flipped", "oblique"]
    again = built(tmp_path, [item | {"label": 1} for item in items[:3]])
    assert BROUGHT == ["plain"] and set(again.labels) == {1}
    assert torch.equal(again[4]["image"], dataset[0]["image"]) and again.digest != dataset.digest
    assert built(tmp_path, items[1:]).digest == dataset.digest and not BROUGHT
    for top in (1.0, 2.0, 1.0):
        built(tmp_path, items[:1], ScaleIntensityRanged("image", -1, top, -1, 1))
    assert not BROUGHT
    built(tmp_path, items[:1], ScaleIntensityRanged("image", -1, 3.0, -1, 1))
    assert BROUGHT == ["plain"]


def test_a_file_replaced_in_place_is_another_volume(tmp_path: Path) -> None:
    items = datalist(tmp_path)[:2]
    before = built(tmp_path, items)
    darker = nib.load(items[1]["image"])
    data = darker.get_fdata(dtype=np.float32)
    data[data == 170] = 100  # without its lesion
    data *= np.linspace(1, 1.005, len(data), dtype=np.float32)[:, None, None]  # one value alone is no image
    nib.save(nib.Nifti1Image(data, darker.affine), items[1]["image"])
    after = built(tmp_path, items)
    assert BROUGHT == ["flipped"]
    n = before.subjects.index("flipped")
    assert after.labels == before.labels
    assert torch.equal(after[n - 1]["image"], before[n - 1]["image"])
    assert (
        float(before[n + 1]["image"].max()) == pytest.approx(0.7, abs=0.01)
        and float(after[n + 1]["image"].max()) < 0.01
    )
    mask = nib.load(items[0]["foreground"])
    nib.save(nib.Nifti1Image(np.roll(np.asarray(mask.dataobj), 3, axis=0), mask.affine), items[0]["foreground"])
    built(tmp_path, items)
    assert BROUGHT == ["plain"]


def test_a_volume_that_failed_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = datalist(tmp_path)
    built(tmp_path, items)
    (tmp_path / "plain.nii.gz").rename(tmp_path / "moved.nii.gz")
    assert set(built(tmp_path, items).subjects) == {"flipped", "oblique"}
    (tmp_path / "moved.nii.gz").rename(tmp_path / "missing.nii.gz")
    items[3]["foreground"] = items[0]["foreground"]
    assert set(built(tmp_path, items).subjects) == {"flipped", "oblique", "missing"} and BROUGHT == ["missing"]
    assert "plain.nii.gz: no such file" in caplog.text


def test_warnings_are_said_at_every_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once a volume, by its name, whether it is prepared now or was before: of heads that are small and like T1Gd."""
    items = datalist(tmp_path)[:3]
    for prepared in (["plain", "flipped", "oblique"], []):
        caplog.clear()
        built(tmp_path, items)
        assert prepared == BROUGHT
        said = [r.getMessage().split(":", 1) for r in caplog.records]
        for item in items:
            small, like_another = (text for image, text in said if image == item["image"])
            assert small.startswith(" The brain measures ") and "not look like FLAIR but like T1Gd" in like_another


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        torch.OutOfMemoryError("no room"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: no room"),
        OSError(errno.ENOSPC, "no room"),
    ],
)
def test_a_build_without_room_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    items = datalist(tmp_path)[:3]
    monkeypatch.setitem(FAULT, "flipped", error)
    with pytest.raises(
        RuntimeError, match="flipped.nii.gz: stopped here, as memory, disk or open files ran out .*no room"
    ):
        built(tmp_path, items)
    assert BROUGHT == ["plain"]
    monkeypatch.delitem(FAULT, "flipped")
    dataset = built(tmp_path, items)
    assert BROUGHT == ["flipped", "oblique"]
    assert dataset.digest == built(tmp_path, items, cache="other").digest


def lines_of(folder: Path) -> list[str]:
    """Of the index of the only cache in a folder."""
    [path] = folder.glob("slices-*/index.jsonl")
    return path.read_text().splitlines()


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    """Half a line in the index, rows without a line, and lines whose rows are not there."""
    items = datalist(tmp_path)[:3]
    whole = built(tmp_path, items)
    expected = [whole[i]["image"] for i in range(len(whole))]
    [folder] = (tmp_path / "cache").glob("slices-*")
    index, rows = (folder / "index.jsonl").read_bytes(), (folder / "slices.bin").read_bytes()
    for index_size, row_size, again in (
        (len(index) - 5, len(rows), ["oblique"]),
        (len(index), len(rows) - 10, ["oblique"]),
        (index.index(b"\n", index.index(b"\n") + 1) + 1, len(rows), ["flipped", "oblique"]),
        (0, len(rows), ["plain", "flipped", "oblique"]),
        (len(index), 0, ["plain", "flipped", "oblique"]),
    ):
        (folder / "index.jsonl").write_bytes(index[:index_size])
        (folder / "slices.bin").write_bytes(rows[:row_size])
        dataset = built(tmp_path, items)
        assert again == BROUGHT and dataset.digest == whole.digest
        assert (folder / "index.jsonl").read_bytes() == index and (folder / "slices.bin").read_bytes() == rows
        assert all(torch.equal(dataset[i]["image"], image) for i, image in enumerate(expected))


def test_slices_of_another_shape_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = SliceCache(tmp_path)
    with cache.writing():
        cache.append("a", [3, 5], 9, np.ones((2, 1, 4, 4)), np.ones((2, 1, 4, 4), bool))
        with pytest.raises(ValueError, match=r"shape \[1, 4, 5\], and those before it \[1, 4, 4\]"):
            cache.append("b", [0], 1, np.ones((1, 1, 4, 5)), np.ones((1, 1, 4, 5), bool))
        second = cache.append("c", [0], 1, np.full((1, 1, 4, 4), 0.5), np.zeros((1, 1, 4, 4), bool))
    found = SliceCache(tmp_path).entries()
    assert list(found) == ["a", "c"] and found["a"].numbers == (3, 5) and found["c"] == second
    row = cache.read(second.first)
    assert float(row["image"].max()) == 0.5 and not row["foreground"].any()


def test_several_workers_build_the_same_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = datalist(tmp_path)
    alone = built(tmp_path, items)
    state = torch.get_rng_state()
    both = SliceDataset(items, noting(), str(tmp_path / "both"), 0.5, workers=2)
    # the networks are made from the generator of all, so what is cached must not change it
    assert torch.equal(torch.get_rng_state(), state)
    assert both.digest == alone.digest and lines_of(tmp_path / "both") == lines_of(tmp_path / "cache")
    assert caplog.text.count("left out: ") == 2 and "missing.nii.gz: no such file" in caplog.text


def test_two_processes_build_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = datalist(tmp_path)[:3]
    monkeypatch.setitem(WATCH, "log", tmp_path / "log")
    digests = tmp_path / "digests"

    def work() -> None:
        digest = built(tmp_path, items).digest
        with digests.open("a") as file:
            file.write(f"{digest}\n")

    processes = [forked(work) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted((tmp_path / "log").read_text().split()) == ["flipped", "oblique", "plain"]
    monkeypatch.delitem(WATCH, "log")
    assert digests.read_text().split() == 2 * [built(tmp_path, items, cache="other").digest]


def test_a_build_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = datalist(tmp_path)[:3]
    monkeypatch.setitem(WATCH, "log", tmp_path / "log")
    process = forked(lambda: built(tmp_path, items))
    limit = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("*/index.jsonl")) and time.monotonic() < limit:
        time.sleep(0.01)
    process.kill()
    process.join(60)
    monkeypatch.delitem(WATCH, "log")
    assert process.exitcode == -signal.SIGKILL
    done = len(lines_of(tmp_path / "cache")) - 1
    assert 0 <= done < 3
    dataset = built(tmp_path, items)
    assert len(BROUGHT) == 3 - done
    assert dataset.digest == built(tmp_path, items, cache="other").digest


def test_a_cache_that_can_not_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        ValueError, match="cache/slices-.*: this cache can't be written .*; give a folder that can be as --cache_dir"
    ):
        built(tmp_path, datalist(tmp_path)[:1])
    assert cache_dir() == f"{bundle_root()}/cache"
    monkeypatch.setattr(os, "access", lambda path, mode: path != bundle_root())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == str(tmp_path / "diffusion-anomaly-bundle")


def test_a_label_is_needed_for_each_slice(tmp_path: Path) -> None:
    """Of the file: also where those that are missing or too many are of slices that are not trained on."""
    item = datalist(tmp_path)[0]
    assert set(built(tmp_path, [item]).labels) == {0, 1}
    for n in (3, 5, 7):
        with pytest.raises(ValueError, match=f"plain.nii.gz: has 6 slices, but {n} labels"):
            built(tmp_path, [item | {"label": [0, 1, 0, 1, 0, 0, 0][:n]}])


def test_no_labelled_slice_is_an_error(tmp_path: Path) -> None:
    items = [{"image": str(tmp_path / "missing.nii.gz"), "label": 0}]
    with pytest.raises(ValueError, match="no labelled slice"):
        SliceDataset(items, declared("preprocessing"), str(tmp_path), 0.5)
