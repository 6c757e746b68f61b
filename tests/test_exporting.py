"""The exported networks give the same numbers as those in memory, for any number of slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.running.exporting import export
from small_bundle import write_small_bundle

NAMES = {"diffusion": "network", "classifier": "classifier", "student": "student"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.nn.Module]]:
    """Where ``export.json`` wrote the networks of a small bundle, and the networks."""
    bundle, out = write_small_bundle(tmp_path_factory.mktemp("export")), tmp_path_factory.mktemp("exported")
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("inference", "export")])
    parser.update({"bundle_root": str(bundle), "device": "cpu", "output_dir": str(out)})
    parser.get_parsed_content("run")
    return out, {name: parser.get_parsed_content(id_) for name, id_ in NAMES.items()}


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_files_give_the_networks_numbers(name: str, number: int, exported: tuple[Path, Any]) -> None:
    folder, networks = exported
    inputs = {"image": torch.randn(number, 1, 72, 88)}
    if name != "student":
        inputs["timesteps"] = torch.arange(number) * 300
    with torch.no_grad():
        expected = networks[name](*inputs.values())
        torch.testing.assert_close(torch.jit.load(folder / f"{name}.ts")(*inputs.values()), expected, rtol=0, atol=1e-5)
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    [given] = session.run(["pred"], {key: value.numpy() for key, value in inputs.items()})
    np.testing.assert_allclose(given, expected.numpy(), rtol=0, atol=1e-4)


def test_options_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match=r"formats must be a list of 'ts' and 'onnx', got \['pt'\]"):
        export({"a": network}, (1, 8, 8), str(tmp_path), formats=["pt"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ONNX needs onnx and onnxscript: pip install onnx==[\d.]+ onnxscript=="):
        export({"a": network}, (1, 8, 8), str(tmp_path))
    export({"a": network, "none": None}, (1, 8, 8), str(tmp_path), formats=["ts"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.ts"]
