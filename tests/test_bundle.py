"""The bundle as its users run it: MONAI's commands on the real weights and the real sample."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out

from scripts.bundle import bundle_root, declared
from scripts.device import autocast, compilation_pays, fastest_precision
from scripts.images.brain import ExtractBraind
from scripts.images.restoring import LESION, NOT_ASSESSED
from scripts.judging.bootstrap import bootstrap, paired_bootstrap
from scripts.judging.readings import BASELINE, COUNTERFACTUAL, OURS, PAPER
from scripts.method.inferer import CounterfactualInferer
from synthetic import GRIDS, head, write_head
from test_inference import TINY

CONFIGS = Path(bundle_root()) / "configs"
SAMPLE = Path(bundle_root()) / "sample" / "TCGA_FG_6692_flair.nii.gz"
LESION_CENTRE = (53.0, 42.0, 32.0)
"""mm, RAS: the middle of the frontal glioma of the sample, read off in a viewer."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `make demo` runs, from another directory: the output folder and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    run = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "inference.json")]
    both = f"['{CONFIGS / 'inference.json'}','{CONFIGS / 'preview.json'}']"
    cache = ["--input", str(SAMPLE.parent), "--brain_cache", str(folder / "cache")]
    for name, command in (("preview", [*run[:-1], both]), ("out", run)):
        done = subprocess.run(
            [*command, "--output_dir", str(folder / name), *cache], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out", done.stdout


def test_the_preview_finds_what_the_counterfactual_finds(demo: tuple[Path, str]) -> None:
    """One call a slice: in a fraction of the time most of the same voxels, and no counterfactual."""
    preview = demo[0].parent / "preview"
    masks = []
    for folder in (preview, demo[0]):
        masks.append(np.asarray(nib.load(folder / "TCGA_FG_6692_flair" / "pred.nii.gz").dataobj) == LESION)
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.6
    assert not (preview / "TCGA_FG_6692_flair" / "counterfactual.nii.gz").exists()
    [fast], [full] = (json.loads((f / "summary.json").read_text())["volumes"] for f in (preview, demo[0]))
    assert fast["outputs"] == ["anomaly_map.nii.gz", "pred.nii.gz"] and fast["p_diseased"] == full["p_diseased"]


def test_the_tumour_of_the_sample_is_found(demo: tuple[Path, str]) -> None:
    out, printed = demo
    result = out / "TCGA_FG_6692_flair"
    source, pred = nib.load(SAMPLE), nib.load(result / "pred.nii.gz")
    mask = np.asarray(pred.dataobj)
    np.testing.assert_array_equal(pred.affine, source.affine)
    assert pred.shape == source.shape == nib.load(result / "anomaly_map.nii.gz").shape
    found = nib.affines.apply_affine(pred.affine, np.argwhere(mask == LESION))
    distance = np.linalg.norm(found - LESION_CENTRE, axis=1)
    # more than half of what is marked lies within 30 mm of the lesion's middle, and the middle itself is marked
    assert np.mean(distance < 30) > 0.5
    assert distance.min() < 4
    assert (mask == NOT_ASSESSED).any()
    assert "TCGA_FG_6692_flair: p(diseased)" in printed and "networks" in printed and "Not for clinical use" in printed


def test_the_summary_of_the_sample(demo: tuple[Path, str]) -> None:
    [volume] = json.loads((demo[0] / "summary.json").read_text())["volumes"]
    assert volume["status"] == "ok"
    assert volume["p_diseased"] > 0.5
    assert volume["score"] == max(s["score"] for s in volume["slices"] if s["assessed"])
    assert [s["slice"] for s in volume["slices"]] == sorted(s["slice"] for s in volume["slices"])
    assert set(volume["seconds"]) == {"preprocessing", "networks", "postprocessing", "writing"}


def test_the_counterfactual_is_darker_in_the_lesion_and_the_same_outside_of_the_brain(demo: tuple[Path, str]) -> None:
    result = demo[0] / "TCGA_FG_6692_flair"
    source, healthy = (np.asarray(nib.load(p).dataobj, np.float32) for p in (SAMPLE, result / "counterfactual.nii.gz"))
    mask = np.asarray(nib.load(result / "pred.nii.gz").dataobj) == LESION
    assert (source[mask] - healthy[mask]).mean() > 0.1 * np.median(source[mask])
    corner = (slice(0, 20), slice(0, 20))
    np.testing.assert_array_equal(source[corner], healthy[corner])


def test_metadata_describes_the_network() -> None:
    verify_net_in_out(
        "network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        extra_forward_args={"timesteps": torch.tensor([1])},
    )


def write_patients(folder: Path) -> None:
    """A data set as `brain_mr` reads it: two patients a split, the lesion outlined in the lower of its slices."""
    rows = ["patient,z,split,has_tumour,mid_slice"]
    for split in ("val", "test"):
        for patient in ("A", "B"):
            volume = folder / "volumes" / f"{split}{patient}"
            volume.mkdir(parents=True)
            image = nib.load(write_head(volume)["image"])
            truth = np.asarray(image.dataobj) == 170
            truth[:, :, 3:] = False
            # stored in another order of the axes than the image
            seg = nib.Nifti1Image(truth.astype(np.uint8), image.affine).as_reoriented(
                np.array([[1, -1], [2, 1], [0, -1]])
            )
            nib.save(seg, volume / "seg.nii.gz")
            for z in range(6):
                rows.append(f"{split}{patient},{z},{split},{int(truth[:, :, z].any())},{int(1 <= z <= 4)}")
    (folder / "slices.csv").write_text("\n".join(rows) + "\n")


def evaluate(folder: Path, out: Path, **overrides: Any) -> dict[str, Any]:
    """Run evaluate.json with tiny networks, the same in every call; the record."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / "inference.json", CONFIGS / "evaluate.json"])
    parser.update({**TINY, "displayable_configs#noise_level": 100, "dataset_dir": str(folder), **overrides})
    parser.update({"cache_dir": str(folder / "cache"), "output_dir": str(out)})
    torch.manual_seed(0)
    for name in ("network", "classifier", "student"):
        parser[name] = f"@{name}_def"
    parser.get_parsed_content("run")
    return json.loads((out / "results.json").read_text())


@pytest.fixture
def patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)
    for name, function in (("bootstrap", bootstrap), ("paired_bootstrap", paired_bootstrap)):
        monkeypatch.setattr(f"scripts.judging.evaluation.{name}", partial(function, num_resamples=20))
    write_patients(tmp_path)
    return tmp_path


def test_evaluation_by_its_config(patients: Path) -> None:
    """evaluate.json on a small data set of the same layout, with tiny networks and the ellipsoid as brain."""
    out = patients / "out"
    record = evaluate(patients, out)
    files = [
        "cases.png",
        "results.json",
        "test_foreground.csv",
        "test_foreground.md",
        "test_image.csv",
        "test_image.md",
    ]
    assert sorted(p.name for p in out.iterdir()) == [*files, "validation_foreground.csv", "validation_foreground.md"]
    assert record["test"]["patients"] == 2 and record["test"]["slices"] == 8 and record["failed"] == {}
    assert {OURS, COUNTERFACTUAL, PAPER, BASELINE} < set(record["test"]["foreground"])
    # the lesion lies in slices 2 and 3, as large in both, and alone is brighter than its slice's median: all of it is found,
    # and the half in slice 3, which the mask leaves out, is false
    image, brain = head(GRIDS["plain"][0])
    lesion, others = int((image[..., 2] == 170).sum()), int(brain[..., 1:5].sum() - (image[..., 2] == 170).sum())
    for domain, pixels in (("foreground", others), ("image", 64 * 80 * 4 - lesion)):
        baseline = record["test"][domain]["FLAIR minus slice median"]
        assert baseline["dice_threshold"] == baseline["dice_oracle"] == pytest.approx(2 / 3)
        assert baseline["pixel_ap"] == pytest.approx(1 / 2)
        assert baseline["pixel_auroc"] == pytest.approx(1 - lesion / pixels / 2, abs=1e-3)
        assert baseline["healthy_area"] == lesion / 3


def test_an_evaluation_goes_on_after_a_bad_volume_and_where_it_was_stopped(
    patients: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The bad one is named and the status is 1; once it is mended, it alone is computed; other settings compute all anew."""
    seen: list[int] = []
    run = CounterfactualInferer.__call__
    monkeypatch.setattr(CounterfactualInferer, "__call__", lambda *a, **k: seen.append(1) or run(*a, **k))
    bad = patients / "volumes" / "testA" / "flair.nii.gz"
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        evaluate(patients, patients / "out")
    assert stop.value.code == 1 and "FAILED testA: " in caplog.text
    first = json.loads((patients / "out" / "results.json").read_text())
    assert list(first["failed"]) == ["testA"] and "flair.nii.gz: can't be read" in first["failed"]["testA"]
    assert first["test"]["patients"] == 1 and len(seen) == 3
    bad.write_bytes(good)
    second = evaluate(patients, patients / "out")
    assert len(seen) == 4 and second["test"]["patients"] == 2 and second["failed"] == {}
    third = evaluate(patients, patients / "out")
    assert len(seen) == 4 and third == second
    assert evaluate(patients, patients / "new", **{"displayable_configs#guidance_scale": 5.0})["failed"] == {}
    assert len(seen) == 8
    assert sorted(p.suffix for p in (patients / "cache").glob("evaluated-*")) == [".pt"] * 8


def test_an_evaluation_keeps_maps_on_disk(patients: Path) -> None:
    """What was found in a volume is mapped from its file, bit for bit what the networks gave."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / "inference.json", CONFIGS / "evaluate.json"])
    parser.update({**TINY, "dataset_dir": str(patients), "cache_dir": str(patients / "cache"), "student": None})
    for name in ("network", "classifier"):
        parser[name] = f"@{name}_def"
    evaluation = parser.get_parsed_content("evaluation")
    [item, _] = evaluation.datalists["test"]
    fresh, _ = evaluation._evaluated(item)
    kept, _ = evaluation._kept(item)
    assert "evaluated-" in Path("/proc/self/maps").read_text()
    for a, b in zip(fresh, kept, strict=True):
        assert (a.subject, a.slice, a.diseased, a.scores) == (b.subject, b.slice, b.diseased, b.scores)
        for name in ("image", "foreground", "truth", "counterfactual"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert list(a.maps) == list(b.maps)
        for name, values in a.maps.items():
            np.testing.assert_array_equal(values, b.maps[name])
    item["label"] = item["label"][1:]
    with pytest.raises(ValueError, match="flair.nii.gz: has 6 slices, but 5 labels"):
        evaluation._kept(item)


@pytest.mark.parametrize(
    ("can", "precision"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
        ({"neon": True}, "float32"),
    ],
)
def test_bfloat16_only_where_the_processor_multiplies_it(
    can: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert fastest_precision("cpu") == precision == declared("precision", device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "minutes", "compiler", "pays"),
    [("cpu", 20, sys.executable, True), ("cpu", 19, sys.executable, False), ("cpu", 60, "no-such-compiler", False)]
    + [("cuda", 60, sys.executable, False)],
)
def test_a_long_training_is_compiled_where_it_can_be(
    device: str, minutes: float, compiler: str, pays: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("CXX", compiler)
    assert compilation_pays(device, minutes) == pays
    (tmp_path / "Python.h").unlink()
    assert not compilation_pays(device, minutes)


def test_autocast_of_float32_switches_a_callers_off() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), autocast("cpu", "float32"):
        assert (a @ a).dtype == torch.float32
    with autocast("cpu", "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="float8"):
        autocast("cpu", "float8")


def test_networks_are_laid_out_for_convolutions() -> None:
    for name in ("network", "classifier", "student"):
        weights = [p for p in declared(name).parameters() if p.ndim == 4]
        assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
