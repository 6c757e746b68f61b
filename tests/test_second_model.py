"""A second model, of another organ: pictures of two channels, added by one overlay and one datalist and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from scipy.ndimage import binary_dilation

from small_bundle import write_small_bundle

OVERLAY: dict[str, Any] = {
    "model": "knee",
    "modalities": ["DX", "CR"],
    "sequences": ["high energy", "low energy"],
    "models_dir#folder": "models/knee",
    "num_channels": 2,
    "spatial_size": [32, 32],
    "polarity": ["hyperintense", "hypointense"],
    "displayable_configs#noise_level": 100,
    "displayable_configs#guidance_scale": 1.0,
    "displayable_configs#num_inference_steps": 2,
    "baselines": [],
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


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_pictures(tmp_path_factory.mktemp("pictures")))


@pytest.fixture(scope="module")
def trained(bundle: Path, datalist: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with weights of the second model, which it trained and published by its own configs."""
    folder = tmp_path_factory.mktemp("runs")
    for configs in (("train",), *(("train", f"train_{name}") for name in ("classifier", "student"))):
        options = {
            "datalist": datalist,
            "cache_dir": str(folder / "cache"),
            "run_dir": str(folder / configs[-1]),
            "max_images": 32,
            "epoch_images": 16,
            "batch_size": 4,
        }
        config = parser(bundle, *configs, **options)
        for name in ("initialize", "run", "publish"):
            config.get_parsed_content(name)
    assert {p.name for p in (bundle / "models" / "knee").glob("*.pt")} == {"model.pt", "classifier.pt", "student.pt"}
    return bundle


def test_it_runs_on_its_own_weights(trained: Path, datalist: str, tmp_path: Path) -> None:
    """The full model on the test pictures, and the preview; results on the pictures' own pixels."""
    for configs in ((), ("preview",)):
        out = tmp_path / "-".join(("out", *configs))
        options = {"datalist": datalist, "split": "test", "output_dir": str(out)}
        parser(trained, *configs, **options).get_parsed_content("run")
        volumes = json.loads((out / "summary.json").read_text())["volumes"]
        assert [(v["name"], v["status"]) for v in volumes] == [("p6", "ok"), ("p7", "ok")]
        for v in volumes:
            assert nib.load(out / v["name"] / "pred.nii.gz").shape == (*SHAPE, 1)
            with Image.open(out / v["name"] / "pred.png") as picture:
                assert picture.size == SHAPE
            assert (out / v["name"] / "counterfactual.nii.gz").is_file()
    # the first model's weights are as they were
    assert {p.name for p in (trained / "models").glob("*.pt")} == {"model.pt", "classifier.pt", "student.pt"}


def test_it_is_evaluated_and_calibrated(trained: Path, datalist: str, tmp_path: Path) -> None:
    """One healthy and one diseased picture with a mask, and a threshold of its own from the validation pictures."""
    options = {"datalist": datalist, "cache_dir": str(tmp_path / "cache")}
    parser(trained, "evaluate", output_dir=str(tmp_path / "out"), **options).get_parsed_content("run")
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["failed"] == {} and record["test"]["slices"] == 2 and record["validation"]["slices"] == 2
    table = (tmp_path / "out" / "test_foreground.csv").read_text()
    assert "FLAIR" not in table and "pixel AP" in table.splitlines()[0]
    parser(trained, "evaluate", "calibrate", **options).get_parsed_content("run")
    values = json.loads((trained / "models" / "knee" / "weights.json").read_text())["calibration"]["values"]
    # two pictures are too few to choose a temperature
    assert {"threshold", "preview_threshold"} <= set(values) and all(v > 0 for v in values.values())


def test_maps_are_read_in_a_part_of_what_the_networks_see(trained: Path, datalist: str, tmp_path: Path) -> None:
    """The region of interest is what is bright, by a network that marks it; the counterfactual changes all of the picture."""
    config = parser(trained, "evaluate", datalist=datalist, cache_dir=str(tmp_path), mask_key="roi")
    bright = {"_target_": "torch.nn.PReLU"}
    roi = {
        "_target_": "scripts.images.network_foreground.ByNetworkd",
        "keys": "image",
        "network": bright,
        "size": [32, 32],
        "threshold": 0.6,
        "name": "roi",
    }
    config["preprocessing#transforms"] = [*OVERLAY["preprocessing"]["transforms"], roi]
    config["baselines"] = [{"_target_": "scripts.judging.radiograph_baselines.LowestThird"}]
    item = config.get_parsed_content("evaluation").datalists["test"][1]
    volumes = config.get_parsed_content("volumes")
    (case,), *_ = volumes.found(item)
    assert 0 < case.foreground.mean() < 0.5
    # on the networks' coarser grid the rim is shared
    inside = binary_dilation(case.foreground, iterations=3)
    assert all(not a[~inside].any() and a.any() for a in case.maps.values())
    healthy = case.counterfactual
    assert healthy is not None and np.abs(healthy - case.image)[~inside].max() > 0
    lowest = case.maps["lowest third, a blind guess"]
    assert lowest.max() == 1 and not lowest[:, : np.flatnonzero(case.foreground.any(axis=0))[0]].any()

    out = tmp_path / "out"
    run = parser(trained, datalist=datalist, split="test", output_dir=str(out), mask_key="roi")
    run["preprocessing#transforms"] = [*OVERLAY["preprocessing"]["transforms"], roi]
    run.get_parsed_content("run")
    shown = nib.load(out / "p7" / "anomaly_map.nii.gz").get_fdata()
    assert 0 < (shown > 0).mean() < 0.5
