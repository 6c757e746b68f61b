"""A second model, of another organ: pictures of two channels, added by one overlay and one datalist and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from small_bundle import write_small_bundle

OVERLAY: dict[str, Any] = {
    "model": "knee",
    "modalities": ["DX", "CR"],
    "sequences": ["high energy", "low energy"],
    "models_dir#folder": "models/knee",
    "num_channels": 2,
    "spatial_size": [32, 32],
    "polarity": ["hyperintense", "hypointense"],
    "displayable_configs": {"noise_level": 100, "guidance_scale": 1.0, "num_inference_steps": 2, "threshold": 0.1},
    "student": None,
    "foreground": {"_target_": "scripts.images.foregrounds.WholeImaged", "keys": "image"},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {
                "_target_": "scripts.images.loading.LoadVolumed",
                "keys": "image",
                "channels": "@num_channels",
                "modalities": "@modalities",
                "allow_any_image": "@allow_any_image",
            },
            {"_target_": "CopyItemsd", "keys": "image", "names": "input_image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "LPS", "labels": None},
            "@foreground",
            {"_target_": "CopyItemsd", "keys": "foreground", "names": "input_foreground"},
            {"_target_": "scripts.images.percentiles.NormalizePercentilesd", "keys": "image"},
            {
                "_target_": "scripts.images.resizing.ResizeInPlaned",
                "keys": ["image", "foreground"],
                "size": "@spatial_size",
            },
        ],
    },
}
SHAPE = (50, 40)
"""Columns and rows of the pictures."""


def write_pictures(folder: Path, count: int = 12) -> Path:
    """Noise around a middle grey; every second one has a spot, bright in the first channel and dark in the second."""
    draw = np.random.default_rng(0)
    splits: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for n in range(count):
        channels = 120 + 10 * draw.standard_normal((2, *SHAPE))
        spot = np.zeros(SHAPE, bool)
        if n % 2:
            spot[10 + n : 20 + n, 12:24] = True
            channels[0][spot] += 80
            channels[1][spot] -= 80
        paths = []
        for name, values in (*zip(("high", "low"), channels, strict=True), ("spot", spot * 255)):
            paths.append(f"{n}_{name}.png")
            Image.fromarray(np.clip(values.T, 0, 255).astype(np.uint8)).save(folder / paths[-1])
        split = ("training", "training", "training", "training", "validation", "validation", "test", "test")[n % 8]
        item = {"image": paths[:2], "label": n % 2, "subject": f"p{n}", **({"mask": paths[2]} if n % 2 else {})}
        splits[split].append(item)
    path = folder / "datalist.json"
    path.write_text(json.dumps(splits))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_bundle(tmp_path_factory.mktemp("second"))
    (folder / "configs" / "knee.json").write_text(json.dumps(OVERLAY))
    return folder


def parser(bundle: Path, *configs: str, **overrides: Any) -> ConfigParser:
    config = ConfigParser()
    config.read_config([str(bundle / "configs" / f"{name}.json") for name in ("inference", "knee", *configs)])
    config.update({"bundle_root": str(bundle), "device": "cpu", **overrides})
    return config


def write_weights(bundle: Path) -> None:
    (bundle / "models" / "knee").mkdir(exist_ok=True)
    torch.manual_seed(0)
    for name, definition in (("model", "network_def"), ("classifier", "classifier_def")):
        network = parser(bundle).get_parsed_content(definition)
        torch.save(network.state_dict(), bundle / "models" / "knee" / f"{name}.pt")


def test_it_runs(bundle: Path, tmp_path: Path) -> None:
    write_weights(bundle)
    datalist = write_pictures(tmp_path)
    out = tmp_path / "out"
    parser(bundle, datalist=str(datalist), split="test", output_dir=str(out)).get_parsed_content("run")
    summary = json.loads((out / "summary.json").read_text())
    volumes = summary["volumes"] if isinstance(summary, dict) else summary
    assert [v["name"] for v in volumes] == ["p6", "p7"] and all(v["status"] == "ok" for v in volumes)
    mask = nib.load(out / "p7" / "pred.nii.gz")
    assert mask.shape == (*SHAPE, 1)


def test_it_is_calibrated_and_evaluated(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own threshold, its own baselines by the names of its channels, masks as pictures; the overlay's number is shipped."""
    monkeypatch.setattr("scripts.judging.bootstrap.NUM_RESAMPLES", 20)
    write_weights(bundle)
    paths = {"datalist": str(write_pictures(tmp_path, 16)), "cache_dir": str(tmp_path / "cache")}
    parser(bundle, "calibrate", **paths).get_parsed_content("run")
    manifest = json.loads((bundle / "models" / "knee" / "weights.json").read_text())
    assert 0 < manifest["calibration"]["values"]["threshold"] < 4
    parser(bundle, "evaluate", output_dir=str(tmp_path / "out"), **paths).get_parsed_content("run")
    test = json.loads((tmp_path / "out" / "results.json").read_text())["test"]
    assert (test["slices"], test["diseased_slices"], test["lesions_known_by"]) == (4, 2, "masks")
    # in each picture the spot is what is bright in the first channel
    found = test["foreground"]
    assert found["high energy intensity"]["dice_otsu_slice"] > 0.99
    [shipped] = [row for name, row in found.items() if name.endswith("at the bundle's threshold")]
    assert shipped["threshold"] == 0.1
