"""The method as one network gives what the inferer gives, also as TorchScript and as ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.utils import convert_to_onnx

from scripts.method.classifiers import CleanAndNoised
from scripts.method.counterfactual import CounterfactualNetwork
from small_bundle import write_small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("counterfactual"), ("FLAIR", "T1"))


def parsed(bundle: Path, iterations: int = 1, exponent: float = 0) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    options = {"bundle_root": str(bundle), "device": "cpu", "precision": "float32", "min_area": 1}
    steps = {"displayable_configs#num_inference_steps": 3, "num_fixed_point_iterations": iterations}
    levels = {"classified_at": [0, 250], "temperature": 0.8, "guidance_exponent": exponent}
    parser.update({**options, **steps, **levels})
    return parser


@pytest.mark.parametrize(("iterations", "exponent"), [(0, 0), (1, 0), (2, 0), (1, 2)])
def test_it_gives_the_inferers_counterparts(iterations: int, exponent: float, bundle: Path) -> None:
    parser = parsed(bundle, iterations, exponent)
    network, inferer = (parser.get_parsed_content(name) for name in ("counterfactual_def", "inferer"))
    assert isinstance(network, CounterfactualNetwork)
    x = torch.rand(3, 2, 72, 88) * 2 - 1
    expected = inferer.slices(x, torch.ones(3, 1, 72, 88, dtype=torch.bool), parser.get_parsed_content("network"))
    with torch.no_grad():
        found = network(x)
        assert not torch.is_grad_enabled() and not found.requires_grad
    torch.testing.assert_close(found, expected["counterfactual"], rtol=0, atol=1e-6)
    network.guidance_scale = 0.0
    assert float((network(x) - found).abs().max()) > 1e-3  # the guidance counts


def test_torchscript_gives_its_numbers_for_any_number_of_slices(bundle: Path, tmp_path: Path) -> None:
    network = parsed(bundle, exponent=2).get_parsed_content("counterfactual_def").eval()
    torch.jit.save(torch.jit.script(network), tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    for number in (1, 3):
        x = torch.rand(number, 2, 72, 88) * 2 - 1
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=1e-5)
            assert not torch.is_grad_enabled()


def test_of_two_classifiers_the_noised_one_guides_and_both_decide(bundle: Path) -> None:
    parser = parsed(bundle, exponent=2)
    noised = parser.get_parsed_content("classifier")
    clean = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 72 * 88, 2))
    network, guidance, inferer = (parser.get_parsed_content(name) for name in ("network", "guidance", "inferer"))
    guidance.classifier = inferer.classifier = CleanAndNoised(clean, noised).eval()
    whole = CounterfactualNetwork(network, guidance, inferer, 2, (72, 88)).eval()
    x = torch.rand(3, 2, 72, 88) * 2 - 1
    expected = inferer.slices(x, torch.ones(3, 1, 72, 88, dtype=torch.bool), network)["counterfactual"]
    with torch.no_grad():
        torch.testing.assert_close(whole(x), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.jit.script(whole)(x), expected, rtol=0, atol=1e-5)
        clean[1].bias += torch.tensor([9.0, -9.0])  # healthy
        assert float((whole(x) - expected).abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_onnx_gives_its_numbers(bundle: Path, tmp_path: Path) -> None:
    """By MONAI's own function, which fixes the number of slices."""
    parser = parsed(bundle, exponent=2)
    parser["displayable_configs#num_inference_steps"] = 2
    network = parser.get_parsed_content("counterfactual_def").eval()
    x = torch.rand(2, 2, 72, 88) * 2 - 1
    convert_to_onnx(network, [x], filename=str(tmp_path / "model.onnx"), use_trace=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    [given] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(given, network(x).numpy(), rtol=0, atol=1e-4)
    network.guidance_scale = 0.0
    assert np.abs(given - network(x).detach().numpy()).max() > 1e-3


def test_its_state_is_the_diffusion_networks(bundle: Path) -> None:
    network = parsed(bundle).get_parsed_content("counterfactual_def")
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert network.state_dict().keys() == weights.keys()
    network.load_state_dict({name: torch.zeros_like(value) for name, value in weights.items()})
    assert not any(value.any() for value in network.network.state_dict().values())
    assert any(value.any() for value in network.classifier.state_dict().values())
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_state_dict({})
