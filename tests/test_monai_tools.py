"""MONAI's own tools on the bundle, from a folder that is not the bundle's and without it on the path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from small_bundle import write_small_bundle
from training_data import OVERLAYS, write_datalist

CHECK = """
import sys
from monai.bundle import ConfigWorkflow
configs, names, kind, options = sys.argv[1], sys.argv[2].split(","), sys.argv[3], eval(sys.argv[4])
workflow = ConfigWorkflow([f"{configs}/{name}.json" for name in names], workflow_type=kind, logging_file=False)
workflow.initialize()
workflow.bundle_root = configs.removesuffix("/configs")
workflow.parser.update(options)
workflow.initialize()
print("MISSING", workflow.check_properties())
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("monai"))


def python(folder: Path, code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("names", ["inference", "inference,preview", "inference,evaluate,calibrate"])
def test_a_workflow_has_the_properties_that_monai_expects(names: str, bundle: Path, tmp_path: Path) -> None:
    """Set up as MONAI's federated client does it: initialized, told where the bundle is, initialized again."""
    assert "MISSING []" in python(tmp_path, CHECK, str(bundle / "configs"), names, "infer", "{}")


@pytest.mark.parametrize("name", ["train", "train_classifier", "train_student"])
def test_a_training_has_the_properties_that_monai_expects(name: str, bundle: Path, tmp_path: Path) -> None:
    write_datalist(tmp_path)
    options = {
        "datalist": str(tmp_path / "datalist.json"),
        "cache_dir": str(tmp_path / "cache"),
        "run_dir": str(tmp_path / "run"),
    }
    names = ",".join(OVERLAYS[name])
    assert "MISSING []" in python(tmp_path, CHECK, str(bundle / "configs"), names, "train", repr(options))


def test_the_network_is_loaded_by_name(bundle: Path, tmp_path: Path) -> None:
    """`monai.bundle.load` gives the diffusion network with its weights, and takes an override."""
    code = """
import sys
import torch
import monai.bundle
folder = sys.argv[1]
network = monai.bundle.load("bundle", bundle_dir=folder, workflow_type="inference")
weights = torch.load(f"{folder}/bundle/models/model.pt", weights_only=True)
print("SAME", all(torch.equal(weights[name], value) for name, value in network.state_dict().items()))
"""
    assert "SAME True" in python(tmp_path, code, str(bundle.parent))


def test_no_id_that_monai_reads_first_needs_our_code(bundle: Path) -> None:
    """`bundle_root` and `network_def` are resolved before the bundle can be imported."""
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    for name in ("bundle_root", "network_def", "classifier_def", "student_def", "initialize"):
        assert "scripts." not in json.dumps(config[name]), name
