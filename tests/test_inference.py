"""Running on files: the right inputs are found, failures are named and lose nothing, outputs are whole."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.bundle import declared
from scripts.errors import message_of
from scripts.images.restoring import NOT_ASSESSED
from scripts.method.inferer import CounterfactualInferer
from scripts.weights import load_weights, weights_digest
from synthetic import write_head
from tiny_run import TINY, datalist, run, summary, visible


def test_a_bundle_without_a_student_reads_the_counterfactual_alone(tmp_path: Path, weights: dict[str, str]) -> None:
    """As one whose networks were trained anew: the same files, and a map that differs from that with a student."""
    item = datalist(tmp_path, [write_head(tmp_path)])
    assert run(weights, input=item, output_dir=str(tmp_path / "alone"), student="$None") == 0
    assert run(weights, input=item, output_dir=str(tmp_path / "both")) == 0
    alone, both = (tmp_path / name / "flair" for name in ("alone", "both"))
    assert {p.name for p in alone.iterdir()} == {p.name for p in both.iterdir()}
    values = [np.asarray(nib.load(f / "anomaly_map.nii.gz").dataobj) for f in (alone, both)]
    assert not np.array_equal(*values, equal_nan=True)
    np.testing.assert_array_equal(*(np.asarray(nib.load(f / "counterfactual.nii.gz").dataobj) for f in (alone, both)))
    used = [summary(f.parent)["flair"]["weights"] for f in (alone, both)]
    assert used[1] == {n: weights_digest(declared(n, **TINY, **weights)) for n in ("network", "classifier", "student")}
    assert used[0] == {name: digest for name, digest in used[1].items() if name != "student"}


def test_one_bad_volume_does_not_stop_the_others(tmp_path: Path, weights: dict[str, str]) -> None:
    good = [write_head(tmp_path, grid, name=grid) for grid in ("plain", "oblique")]
    bad = {"image": str(tmp_path / "nothing.nii.gz"), "name": "bad"}
    out = tmp_path / "out"
    status = run(weights, input=datalist(tmp_path, [good[0], bad, good[1]]), output_dir=str(out))
    assert status == 1
    volumes = summary(out)
    assert {name: v["status"] for name, v in volumes.items()} == {"bad": "failed", "oblique": "ok", "plain": "ok"}
    assert "nothing.nii.gz: no such file" in volumes["bad"]["error"]
    assert visible(out) == ["bad", "oblique", "plain", "summary.csv", "summary.json"]
    assert visible(out / "bad") == ["result.json"]
    for item in good:
        source = nib.load(item["image"])
        for name, dtype in (("anomaly_map", np.float32), ("counterfactual", np.float32), ("pred", np.uint8)):
            result = nib.load(out / item["name"] / f"{name}.nii.gz")
            assert result.shape == source.shape and result.get_data_dtype() == dtype
            np.testing.assert_array_equal(result.affine, source.affine)
            assert result.header["qform_code"] == source.header["qform_code"]
        assert (out / item["name"] / "overview.png").stat().st_size > 10_000
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows if r["slice"] == "volume"] == ["bad", "oblique", "plain"]
    slices = [r for r in rows if r["name"] == "plain" and r["slice"] != "volume"]
    assert [int(r["slice"]) for r in slices] == [s["slice"] for s in volumes["plain"]["slices"]]


def test_foreground_beyond_the_networks_field_is_counted_as_not_assessed(
    tmp_path: Path, weights: dict[str, str]
) -> None:
    """A head of 1.6 times the size: what lies beside the field is 2 in the mask, NaN in the map, and in the summary."""
    item = write_head(tmp_path)
    for path in (item["image"], item["foreground"]):
        volume = nib.load(path)
        nib.save(nib.Nifti1Image(volume.dataobj, np.diag([4.0, 4.0, 5.0, 1.0]), volume.header), path)
    brain = np.asarray(nib.load(item["foreground"]).dataobj) > 0
    assert run(weights, input=datalist(tmp_path, [item]), output_dir=str(tmp_path / "out")) == 0
    mask, a = (
        np.asarray(nib.load(tmp_path / "out" / "flair" / f"{n}.nii.gz").dataobj) for n in ("pred", "anomaly_map")
    )
    np.testing.assert_array_equal(np.isnan(a), mask == NOT_ASSESSED)
    # the field has 173 mm, that is 43 of 64 columns of 4 mm; the brain has 54 in the middle slices
    columns = np.flatnonzero((brain & (mask != NOT_ASSESSED)).any(axis=(1, 2)))
    assert (columns[0], columns[-1]) == (11, 53) and brain[5:11].any()
    assert (mask[:11][brain[:11]] == NOT_ASSESSED).all() and (mask[54:][brain[54:]] == NOT_ASSESSED).all()
    [volume] = json.loads((tmp_path / "out" / "summary.json").read_text())["volumes"]
    assert volume["not_assessed_ml"] == pytest.approx((mask == NOT_ASSESSED).sum() * 4 * 4 * 5 / 1000)


def test_same_input_same_output_bit_for_bit(tmp_path: Path, weights: dict[str, str]) -> None:
    source = datalist(tmp_path, [write_head(tmp_path)])
    for name in ("a", "b"):
        assert run(weights, input=source, output_dir=str(tmp_path / name)) == 0
    for output in ("anomaly_map", "counterfactual", "pred"):
        a, b = (np.asarray(nib.load(tmp_path / n / "flair" / f"{output}.nii.gz").dataobj) for n in ("a", "b"))
        np.testing.assert_array_equal(a, b)


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_picture(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("scripts.running.report.draw_overview", no_picture)
    out = tmp_path / "out"
    assert run(weights, input=datalist(tmp_path, [write_head(tmp_path)]), output_dir=str(out)) == 1
    assert visible(out) == ["flair", "summary.csv", "summary.json"] and visible(out / "flair") == ["result.json"]
    assert "disk full" in summary(out)["flair"]["error"]


@pytest.mark.parametrize("summary_too", [False, True])
def test_a_full_disk_ends_the_run_and_costs_no_result(
    summary_too: bool, tmp_path: Path, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to do, also where no summary can be written any more."""
    out = tmp_path / "out"
    items = [write_head(tmp_path, name=name) for name in "abc"]
    assert run(weights, input=datalist(tmp_path, items[1:2]), output_dir=str(out)) == 0
    original = Path.write_text
    failed = []

    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        if self.name == "result.json" and (out / "a").exists() or failed and summary_too:
            failed.append(self.name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RuntimeError) as error:
        run(weights, input=datalist(tmp_path, items), output_dir=str(out), overwrite=True)
    said = "b: [Errno 28] No space left on device. Make room; the same command, without --overwrite, goes on."
    assert message_of(error.value) == said
    assert len(failed) == 1 + summary_too
    assert visible(out) == ["a", "b", "summary.csv", "summary.json"]
    assert {n: v["status"] for n, v in summary(out).items()} == {"a": "ok", "b": "ok"}


def test_weights_that_do_not_fit(tmp_path: Path, weights: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"network.pt: its weights don't fit the DiffusionModelUNet"):
        load_weights(declared("network_def"), weights["network#path"])
    (tmp_path / "broken.pt").write_bytes(b"PK broken")
    with pytest.raises(ValueError, match=r"broken.pt: is not a PyTorch state dict"):
        load_weights(declared("classifier_def", **TINY), str(tmp_path / "broken.pt"))
    with pytest.raises(FileNotFoundError, match=r"none.pt: no weights there"):
        load_weights(declared("classifier_def", **TINY), str(tmp_path / "none.pt"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("noise_level", 1000, "noise_level must be above 0 and below 1000, got 1000"),
        ("noise_level", 0, "noise_level must be above 0 and below 1000, got 0"),
        ("num_inference_steps", 501, "num_inference_steps must be from 1 to the noise_level, 500, got 501"),
        ("threshold", 0, "threshold must be above 0"),
        ("threshold", 99, "threshold must be above 0 and at most 2, got 99"),
        ("threshold", "0.3", "threshold must be a number, above 0 and at most 2, got '0.3'"),
        ("guidance_scale", 1e30, "guidance_scale must be from 0 to 1000, got 1e+30"),
        ("guidance_scale", float("nan"), "guidance_scale must be from 0 to 1000, got nan"),
    ],
)
def test_options_out_of_range(option: str, value: Any, message: str, tmp_path: Path, weights: dict[str, str]) -> None:
    overrides = {"displayable_configs#noise_level": 500, f"displayable_configs#{option}": value}
    with pytest.raises(RuntimeError) as error:
        run(weights, input=write_head(tmp_path)["image"], output_dir=str(tmp_path / "out"), **overrides)
    assert message in str(error.value.__cause__ or error.value)
    assert not (tmp_path / "out").exists()


def test_a_run_in_which_all_fail_or_one_networks_call_fails(
    tmp_path: Path, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(weights, input=datalist(tmp_path, [{"image": "none.nii"}, {"image": 5}]), output_dir=str(out)) == 1
    volumes = summary(out)
    assert "none.nii: no such file" in volumes["none"]["error"]
    assert (
        volumes["item-1"]["error"].startswith("datalist.json, item 1: 'image' must be a path")
        and not volumes["none"]["warnings"]
    )

    items = [write_head(tmp_path, name=name) for name in "abc"]
    original = CounterfactualInferer.__call__
    calls: list[int] = []

    def out_of_memory(self: CounterfactualInferer, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CounterfactualInferer, "__call__", out_of_memory)
    assert run(weights, input=datalist(tmp_path, items), output_dir=str(tmp_path / "three")) == 1
    assert {n: v["status"] for n, v in summary(tmp_path / "three").items()} == {"a": "ok", "b": "failed", "c": "ok"}
    assert summary(tmp_path / "three")["b"]["error"] == "out of memory"
    assert "Traceback" in capsys.readouterr().err  # a fault of the program's shows where it happened
    assert run(weights, input=datalist(tmp_path, items), output_dir=str(tmp_path / "three")) == 0
    assert "2 done before" in capsys.readouterr().out and summary(tmp_path / "three")["b"]["status"] == "ok"


def test_a_mask_to_look_at_never_makes_a_volume_fail(
    tmp_path: Path, weights: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.nii").write_bytes(b"no mask")
    items = [{**write_head(tmp_path, name=n), "mask": m} for n, m in (("a", "none.nii"), ("b", "broken.nii"))]
    out = tmp_path / "out"
    assert run(weights, input=datalist(tmp_path, items), output_dir=str(out)) == 0
    for volume in summary(out).values():
        assert volume["status"] == "ok"
        assert volume["warnings"][-1] == "The known lesion mask could not be drawn beside the result."
        assert (Path(volume["folder"]) / "overview.png").stat().st_size > 10_000
    assert "  WARNING: The known lesion mask could not be drawn" in capsys.readouterr().out


def test_a_name_of_another_sequence_is_refused_or_warned_of(tmp_path: Path, weights: dict[str, str]) -> None:
    item = write_head(tmp_path, name="sub-01_T1w")
    options = {"input": datalist(tmp_path, [item]), "output_dir": str(tmp_path / "out")}
    assert run(weights, **options) == 1
    assert "is named as T1, the model takes FLAIR" in summary(tmp_path / "out")["sub-01_T1w"]["error"]
    assert run(weights, allow_any_image="true", **options) == 0
    volume = summary(tmp_path / "out")["sub-01_T1w"]
    assert volume["status"] == "ok" and volume["warnings"][0] == "The file is named as T1, the model takes FLAIR."
    assert volume["warnings"][0] in (tmp_path / "out" / "summary.csv").read_text()
