"""The gradient as plain operators is that of autograd, of whatever convolutions a classifier has."""

from __future__ import annotations

import pytest
import torch

from scripts.method.guidance import ClassifierGuidance
from scripts.method.written_gradient import written_gradient


class Classifier(torch.nn.Module):
    """Of the layers given, with the timestep beside the features."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*layers)
        self.last = torch.nn.Linear(7, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(x).mean(dim=(2, 3))
        logits: torch.Tensor = self.last(torch.cat([features, t[:, None] / 1000], 1))
        return logits


STRIDED = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1)
LAYERS = {
    "what a stride leaves over": (torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.SiLU(), STRIDED),
    "a stride that fits": (torch.nn.Conv2d(2, 6, (3, 2), stride=(2, 3), bias=False), torch.nn.GroupNorm(3, 6)),
    "dilated groups": (torch.nn.Conv2d(2, 6, 3, dilation=2, groups=2), torch.nn.ReLU6()),
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_it_is_autograds(layers: tuple[torch.nn.Module, ...]) -> None:
    torch.manual_seed(0)
    classifier = Classifier(*layers).eval()
    x, t = torch.randn(3, 2, 10, 13), torch.tensor([1, 300, 999])
    guidance = ClassifierGuidance(classifier, torch.linspace(0.9999, 0.01, 1000), 10.0, target_class=1)
    expected = guidance.gradient(x, t)
    assert expected.abs().max() > 1e-4
    with torch.no_grad():
        torch.testing.assert_close(written_gradient(classifier, 1, x, t), expected, rtol=1e-5, atol=1e-7)
    assert all(weight.requires_grad for weight in classifier.parameters())


def test_what_it_can_not_write_is_refused() -> None:
    classifier = Classifier(torch.nn.ConvTranspose2d(2, 6, 3))
    with pytest.raises(NotImplementedError, match="gradients of the input of plain convolutions"):
        written_gradient(classifier, 0, torch.zeros(1, 2, 10, 13), torch.tensor([5]))
    assert all(weight.requires_grad for weight in classifier.parameters())
