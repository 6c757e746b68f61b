"""The paper's network as an overlay: its sizes, the range, order and padding of its images, and a training of one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.bundle import bundle_root, declared
from scripts.errors import message_of
from scripts.images.percentiles import NormalizePercentilesd

NARROW: dict[str, Any] = {
    f"{name}_def#{option}": value
    for name in ("network", "classifier")
    for option, value in {
        "channels": [8] * 6,
        "norm_num_groups": 4,
        "num_head_channels": 8,
        "num_res_blocks": 1,
    }.items()
}
"""The paper's networks with all their levels and little in each."""
ORDER = ("t1", "t1ce", "t2", "flair")
LEVELS = {"t1": (51, 369), "t1ce": (130, 617), "t2": (12, 209), "flair": (40, 325)}
"""Of the brain of each sequence: its first percentile, and how far above it the last lies."""
DEPTH, DIM = 6, 5
"""Slices, and the one whose brain is dark all over."""


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in declared(name, "paper").parameters())


def test_the_networks_have_the_sizes_of_the_paper() -> None:
    """113.7 million parameters. MONAI's encoder has another head than the reference's classifier of 5.5 million."""
    assert parameters("network_def") == 113_680_136
    assert parameters("classifier_def") == 5_760_738
    with torch.device("meta"):
        network = declared("network_def", "paper")
        shapes = [(block.resnets[0].out_channels, hasattr(block, "attentions")) for block in network.down_blocks]
        assert network(torch.zeros(1, 4, 256, 256), torch.zeros(1, dtype=torch.long)).shape == (1, 8, 256, 256)
    assert shapes == [(128, False), (128, False), (256, False), (256, False), (512, True), (512, False)]
    heads = {m.num_heads for m in network.modules() if hasattr(m, "num_heads")}
    assert heads == {1} and {m.eps for m in network.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-5}


def write_case(folder: Path) -> tuple[list[str], dict[str, np.ndarray], np.ndarray]:
    """A case as BraTS publishes it, 240 x 240 pixels of 1 mm, stored from right to left, front to back and bottom to top.

    In each sequence one brain voxel in a hundred lies at or below its first level, and one at or above its last.
    """
    x, y = np.meshgrid(np.arange(240), np.arange(240), indexing="ij")
    brain = np.repeat((((x - 117) / 64) ** 2 + ((y - 127) / 84) ** 2 <= 1)[..., None], DEPTH, 2)
    draw, paths, volumes = np.random.default_rng(0), [], {}
    for name in ORDER:
        low, steps = LEVELS[name]
        volume = np.zeros(brain.shape, np.int16)
        n = int(brain[..., :DIM].sum())
        ramp = low + np.round(np.linspace(-0.01, 1.01, n) * steps).astype(np.int16).clip(0, steps)
        ramp[: n // 200], ramp[-n // 200 :] = low - 9, low + steps + 80
        ramp[n // 200 : n // 40], ramp[-n // 40 : -n // 200] = low, low + steps
        bright = brain.copy()
        bright[..., DIM] = False
        volume[bright] = draw.permutation(ramp)
        volume[..., DIM][brain[..., DIM]] = low + 20
        volumes[name] = volume
        paths.append(str(folder / f"BraTS20_Training_001_{name}.nii.gz"))
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        affine[1, 3] = 239
        nib.save(nib.Nifti1Image(volume, affine), paths[-1])
    return paths, volumes, brain


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, np.ndarray], np.ndarray]:
    return write_case(tmp_path_factory.mktemp("case"))


def test_images_are_those_of_the_reference(case: Any) -> None:
    """Its published samples: T1, T1ce, T2, FLAIR, rows from front to back, columns from right to left, 8 zeros all around.

    From 0 to 1 between two percentiles of the whole volume's brain, so that a sequence's values are whole multiples of one
    step, alike in all slices, and both ends are met by about one brain voxel in a hundred.
    """
    paths, volumes, brain = case
    d = declared("preprocessing", "paper", device="cpu")({"image": paths})
    image, inside = d["image"].as_tensor(), d["foreground"].as_tensor()
    assert image.shape == (4, 256, 256, DEPTH) and image.dtype == torch.float32
    for channel, name in zip(image.numpy(), ORDER, strict=True):
        low, steps = LEVELS[name]
        expected = np.clip((volumes[name].astype(float) - low) / steps, 0, 1)
        np.testing.assert_allclose(channel[8:-8, 8:-8], expected.transpose(1, 0, 2), atol=1e-6)
        border = channel.copy()
        border[8:-8, 8:-8] = 0
        assert not border.any() and channel.min() == 0 and channel.max() == 1
        assert channel[..., DIM].max() == pytest.approx(20 / steps)
        for end in (0, 1):
            share = (channel[8:-8, 8:-8] == end)[brain.transpose(1, 0, 2)].mean()
            assert 0.01 < share < 0.03, (name, end)
    np.testing.assert_array_equal(inside[0, 8:-8, 8:-8].numpy(), brain.transpose(1, 0, 2))
    assert int(inside.sum()) == int(brain.sum())


def test_the_lower_end_of_the_scale_is_free() -> None:
    """From 0 on instead of -1; the way back to the input's units is the same."""
    values = torch.arange(101.0).view(1, 101, 1, 1)
    meta = {"filename_or_obj": "x.nii"}
    d = {"image": MetaTensor(values, meta=meta), "foreground": MetaTensor(torch.ones_like(values))}
    image = NormalizePercentilesd("image", 10, 90, darkest=0)(d)["image"]
    torch.testing.assert_close(image.as_tensor(), ((values - 10) / 80).clamp(0, 1))
    assert image.meta["intensity_offset"].tolist() == [10] and image.meta["intensity_scale"].tolist() == [80]
    with pytest.raises(ValueError, match="darkest must be from -1 to 0, got 0.5"):
        NormalizePercentilesd("image", darkest=0.5)


def test_results_come_back_to_the_file(case: Any) -> None:
    """A block that the counterfactual lacks, marked in the voxels of the file that it lies in, by sum|x - x-hat|."""
    paths, volumes, brain = case
    known = {"device": "cpu", "displayable_configs#threshold": 0.3}
    d = declared("preprocessing", "paper", **known)({"image": paths})
    healthy = d["image"].as_tensor().clone()
    block = (slice(60, 70), slice(100, 130), slice(2, 4))  # of the file
    healthy[:, 108:138, 68:78, 2:4] -= 0.1
    d["pred"] = {
        "counterfactual": healthy,
        "probability": torch.ones(DEPTH),
        "assessed": torch.ones(DEPTH, dtype=torch.bool),
    }
    assert brain[block].all()
    out = declared("postprocessing", "paper", **known)(d)
    a, mask = out["anomaly_map"].as_tensor()[0].numpy(), out["pred"].as_tensor()[0].numpy()
    expected = np.zeros(brain.shape, np.uint8)
    expected[block] = 1
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_allclose(a, 0.4 * expected, atol=1e-5)
    changed = volumes["flair"] - out["counterfactual"].as_tensor()[3].numpy()
    np.testing.assert_allclose(changed, 0.1 * LEVELS["flair"][1] * expected, atol=1e-3)


def trainer(folder: Path, paths: list[str], *configs: str, networks: dict[str, Any] = NARROW) -> ConfigParser:
    """The paper's training on one case, with its networks `NARROW` or others."""
    case = {"image": paths, "label": [0, 1, 0, 1, 0, 1]}
    copies = []
    for path in paths:
        copies.append(str(folder / Path(path).name))
        Path(copies[-1]).write_bytes(Path(path).read_bytes())
    content = {"training": [case | {"subject": "a"}], "validation": [case | {"image": copies, "subject": "b"}]}
    (folder / "datalist.json").write_text(json.dumps(content))
    config = ConfigParser()
    files = [Path(bundle_root()) / "configs" / f"{name}.json" for name in ("inference", "paper", *configs)]
    config.read_config([str(file) for file in files])
    config.update(
        {
            **networks,
            "device": "cpu",
            "datalist": str(folder / "datalist.json"),
            "cache_dir": str(folder / "cache"),
            "run_dir": str(folder / "run"),
            "bundle_root": str(folder / "bundle"),
            "batch_size": 2,
            "max_images": 2,
            "epoch_images": 2,
            "val_interval": 1,
        }
    )
    return config


def test_a_step_of_the_papers_training(case: Any, tmp_path: Path) -> None:
    """Noise and variance by the hybrid loss, with the paper's rates; the weights come into the bundle."""
    config = trainer(tmp_path, case[0], "train", "train_paper")
    config.get_parsed_content("initialize")
    optimizer = config.get_parsed_content("optimizer").defaults
    assert (optimizer["lr"], optimizer["weight_decay"], config["ema#momentum"]) == (1e-4, 0, 1e-4)
    before = {name: w.clone() for name, w in config.get_parsed_content("train#network").state_dict().items()}
    config.get_parsed_content("run")
    trained = config.get_parsed_content("train#network").state_dict()
    moved = (trained["out.2.conv.bias"] - before["out.2.conv.bias"]).abs()
    assert moved.shape == (8,) and bool((moved > 0).all())  # the first four are noise, the others v
    state = config.get_parsed_content("train#trainer").state
    assert state.iteration == 1 and np.isfinite(state.output[0]["loss"])
    metrics = config.get_parsed_content("validate#evaluator").state.metrics
    assert metrics["val_loss"] > 0
    config.get_parsed_content("publish")
    assert (tmp_path / "bundle" / "models" / "paper" / "model.pt").is_file()


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().total < 7 * 2**30, reason="it takes 4.3 GiB")
def test_a_step_of_the_whole_network(case: Any, tmp_path: Path) -> None:
    """All 113.7 million weights on one slice of 256 x 256 pixels."""
    config = trainer(tmp_path, case[0], "train", "train_paper", networks={})
    config.update({"batch_size": 1, "max_images": 1, "epoch_images": 1, "val_interval": 100})
    config.get_parsed_content("initialize")
    network = config.get_parsed_content("train#network")
    before = network.out[2].conv.bias.clone()
    config.get_parsed_content("run")
    assert sum(p.numel() for p in network.parameters()) == 113_680_136
    moved = (network.out[2].conv.bias - before).abs()
    assert moved.shape == (8,) and bool((moved > 0).all()) and float(moved.max()) < 2e-4  # the learning rate is 1e-4
    state = config.get_parsed_content("train#trainer").state
    assert state.iteration == 1 and np.isfinite(state.output[0]["loss"])


def test_a_step_of_the_papers_classifier(case: Any, tmp_path: Path) -> None:
    """On images as they are: the bundle's augmentation of scanners takes -1 for no signal, which is 0 here."""
    config = trainer(tmp_path, case[0], "train", "train_classifier", "train_paper_classifier")
    for name in ("initialize", "run", "publish"):
        config.get_parsed_content(name)
    optimizer = config.get_parsed_content("optimizer").defaults
    assert (optimizer["lr"], optimizer["weight_decay"], config["train#augmentation#transforms"]) == (1e-4, 0, [])
    assert (tmp_path / "bundle" / "models" / "paper" / "classifier.pt").is_file()


def test_a_case_runs_from_file_to_mask(case: Any, tmp_path: Path) -> None:
    """By plain DDIM in two steps instead of 500; the mask lies on the case's own voxels."""
    paths, volumes, _ = case
    torch.manual_seed(0)
    models = tmp_path / "models" / "paper"
    models.mkdir(parents=True)
    for name, file in (("network", "model"), ("classifier", "classifier")):
        network = declared(f"{name}_def", "paper", **NARROW)
        torch.save(network.state_dict(), models / f"{file}.pt")
    config = ConfigParser()
    config.read_config([str(Path(bundle_root()) / "configs" / f"{name}.json") for name in ("inference", "paper")])
    settings = {"displayable_configs#num_inference_steps": 2, "displayable_configs#threshold": 0.5}
    (tmp_path / "datalist.json").write_text(json.dumps([{"image": paths, "subject": "case"}]))
    places = {
        n: str(tmp_path / p) for n, p in {"bundle_root": ".", "datalist": "datalist.json", "output_dir": "out"}.items()
    }
    config.update({**NARROW, **settings, **places, "device": "cpu", "inferer#progress": False})
    config.get_parsed_content("run")
    inferer = config.get_parsed_content("inferer")
    assert (inferer.timesteps, inferer.num_fixed_point_iterations, inferer.student) == ([0, 250, 500], 0, None)
    assert (inferer.precision, inferer.guidance.guidance_scale) == ("float32", 100)
    [volume] = json.loads((tmp_path / "out" / "summary.json").read_text())["volumes"]
    assert volume["status"] == "ok" and [s["assessed"] for s in volume["slices"]] == [True] * DEPTH
    mask = nib.load(tmp_path / "out" / volume["name"] / "pred.nii.gz")
    assert mask.shape == volumes["flair"].shape
    np.testing.assert_allclose(mask.affine, nib.load(paths[0]).affine)


def test_it_is_judged_beside_the_brightness_that_shows_a_tumour() -> None:
    """Of its four channels the first is T1, in which a glioma is dark."""
    names = [baseline.name for baseline in declared("baselines", "paper")]
    assert names == ["FLAIR intensity", "T2 intensity", "FLAIR minus slice median, 3x3 median"]


def test_without_a_threshold_of_its_own_it_says_so() -> None:
    """Its weights are to be trained, and the threshold is theirs."""
    with pytest.raises(RuntimeError) as error:
        declared("displayable_configs", "paper")
    assert "models/paper/weights.json: holds no threshold" in (message_of(error.value) or "")
