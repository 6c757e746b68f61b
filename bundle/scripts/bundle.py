"""Where the bundle lies, what it declares, and its weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser


def bundle_root() -> str:
    """The folder of this bundle, wherever it was unpacked and whatever the current directory is."""
    return str(Path(__file__).resolve().parent.parent)


def declared(name: str, **overrides: Any) -> Any:
    """What ``configs/inference.json`` declares under `name`, built anew, with the values of other ids replaced.

    Networks, schedule and preprocessing are stated there alone; a training or evaluation config that stands by itself
    takes them from it: ``{"_target_": "scripts.bundle.declared", "name": "network_def"}``.

    Raises:
        KeyError: there is no such name.
    """
    parser = ConfigParser()
    parser.read_config(Path(bundle_root()) / "configs" / "inference.json")
    parser.update(overrides)
    return parser.get_parsed_content(name)


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_weights(network: torch.nn.Module, path: str, device: torch.device | str = "cpu") -> torch.nn.Module:
    """`network` with the state dict in `path`, ready for inference on `device`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no state dict, or not one of this network. Code in a file is never run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no weights there; train them or give another bundle_root.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: is not a PyTorch state dict ({type(error).__name__}).") from error
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"{path}: its weights don't fit the {type(network).__name__} that the config declares "
            f"({len(lines) - 1} differences, the first: {lines[min(1, len(lines) - 1)].strip()})."
        ) from error
    return network.to(device).eval().requires_grad_(False)
