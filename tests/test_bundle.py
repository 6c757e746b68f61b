"""The bundle as its users run it: MONAI's commands on the real weights and the real sample."""

from __future__ import annotations

import copy
import json
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import verify_net_in_out

from scripts.bundle import bundle_root, declared
from scripts.device import autocast, compilation_pays, fastest_precision, in_fastest_layout
from scripts.images.restoring import LESION, NOT_ASSESSED

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
    """One call a slice: in a fraction of the time most of the same voxels, and a counterpart that heals as much of them."""
    preview = demo[0].parent / "preview"
    masks = []
    for folder in (preview, demo[0]):
        masks.append(np.asarray(nib.load(folder / "TCGA_FG_6692_flair" / "pred.nii.gz").dataobj) == LESION)
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.6
    image = nib.load(SAMPLE).get_fdata()
    lesion = masks[0] & masks[1]
    changes = [
        np.median((image - nib.load(f / "TCGA_FG_6692_flair" / "counterfactual.nii.gz").get_fdata())[lesion])
        for f in (preview, demo[0])
    ]
    assert changes[0] == pytest.approx(changes[1], rel=0.35) and changes[0] > 0.1 * np.median(image[lesion])
    [fast], [full] = (json.loads((f / "summary.json").read_text())["volumes"] for f in (preview, demo[0]))
    assert fast["outputs"] == full["outputs"] and fast["p_diseased"] == full["p_diseased"]


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
    assert not (mask == NOT_ASSESSED).any()  # every slice with 5 cm² of brain and more, and it has no other
    assert "TCGA_FG_6692_flair: p(diseased)" in printed and "networks" in printed and "Not for clinical use" in printed


def test_four_series_of_the_sample_give_what_flair_gives(demo: tuple[Path, str]) -> None:
    """What `make demo-brats` runs: they lie on three grids, are registered without a doubt, and the result lies on FLAIR's."""
    out = demo[0].parent / "brats"
    files = f"['{CONFIGS / 'inference.json'}','{CONFIGS / 'brats.json'}']"
    options = ["--input", str(SAMPLE.parent), "--output_dir", str(out), "--brain_cache", str(out.parent / "cache")]
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *options], cwd=out.parent, check=True
    )
    [volume] = json.loads((out / "summary.json").read_text())["volumes"]
    assert volume["status"] == "ok" and volume["warnings"] == [] and volume["p_diseased"] > 0.9
    four, flair = (
        nib.load(out / "TCGA_FG_6692" / "pred.nii.gz"),
        nib.load(demo[0] / "TCGA_FG_6692_flair" / "pred.nii.gz"),
    )
    np.testing.assert_array_equal(four.affine, nib.load(SAMPLE).affine)
    masks = [np.asarray(mask.dataobj) == LESION for mask in (four, flair)]
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.8


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
    ("device", "images", "compiler", "pays"),
    [("cpu", 50_000, sys.executable, True), ("cpu", 49_999, sys.executable, False)]
    + [("cpu", 90_000, "no-such-compiler", False), ("cuda", 90_000, sys.executable, False)],
)
def test_a_long_training_is_compiled_where_it_can_be(
    device: str, images: int, compiler: str, pays: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("CXX", compiler)
    assert compilation_pays(device, images) == pays
    (tmp_path / "Python.h").unlink()
    assert not compilation_pays(device, images)


def test_autocast_of_float32_switches_a_callers_off() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), autocast("cpu", "float32"):
        assert (a @ a).dtype == torch.float32
    with autocast("cpu", "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="float8"):
        autocast("cpu", "float8")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_networks_use_freed_memory_again() -> None:
    """In a process of its own, calls of the diffusion network after the first take less than half as many new pages."""
    code = (
        "import resource, sys, torch; from scripts.bundle import declared; from scripts.device import keep_freed_memory\n"
        "if sys.argv[1:]: keep_freed_memory()\n"
        "network, x, t = declared('network_def').eval(), torch.zeros(8, 1, 72, 88), torch.zeros(8, dtype=torch.long)\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.set_grad_enabled(False); network(x, t); before = faults()\n"
        "for _ in range(4): network(x, t)\n"
        "print(faults() - before)"
    )
    faults = [
        int(subprocess.run([sys.executable, "-c", code, *a], capture_output=True, check=True, cwd=bundle_root()).stdout)
        for a in ([], ["kept"])
    ]
    assert 2 * faults[1] < faults[0], faults


def test_group_norms_are_fast_in_the_networks_layout() -> None:
    """They compute what PyTorch's compute, gradients included, and leave the layout as they found it."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU())
    laid_out = in_fastest_layout(copy.deepcopy(plain), "cpu")
    assert isinstance(laid_out[1], torch.nn.GroupNorm) and type(laid_out[1]) is not torch.nn.GroupNorm
    assert list(laid_out.state_dict()) == list(plain.state_dict())
    x = torch.randn(3, 2, 6, 7)
    outputs, gradients = [], []
    for network, layout in ((plain, torch.contiguous_format), (laid_out, torch.channels_last)):
        given = x.clone(memory_format=layout).requires_grad_(True)
        y = network(given)
        assert y.is_contiguous(memory_format=layout)
        outputs.append(y)
        gradients.append(torch.autograd.grad(y.square().sum(), [given, *network.parameters()]))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


def test_networks_are_laid_out_for_convolutions() -> None:
    for name in ("network", "classifier", "student"):
        weights = [p for p in declared(name).parameters() if p.ndim == 4]
        assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
