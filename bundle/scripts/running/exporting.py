"""The networks as files that run without this code: TorchScript and ONNX."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..bundle import pip_install

FORMATS = ("ts", "onnx")
OF_ONNX = ("onnx", "onnxscript")
"""What ONNX needs beside torch; the bundle itself needs neither."""


def export(
    networks: Mapping[str, torch.nn.Module | None],
    shape: Sequence[int],
    output_dir: str,
    formats: Sequence[str] = FORMATS,
    noised: Sequence[str] = (),
    num_train_timesteps: int = 1000,
) -> None:
    """Write ``<name>.ts`` and ``<name>.onnx`` of each network, traced in float32 on the CPU, for any number of slices at once.

    The inputs are ``image``, float32 ``(N, C, H, W)``, and for the noised ones ``timesteps``, int64 ``(N,)``; the output is
    ``pred``. Height and width are fixed.

    Args:
        networks: by name, with their weights; None is left out.
        shape: of a slice, ``(C, H, W)``.
        output_dir: made if it is missing.
        formats: "ts", "onnx" or both.
        noised: the names of the networks that take timesteps too.
        num_train_timesteps: T, which the timesteps lie below.

    Raises:
        ValueError: another format, or one whose packages are not installed.
    """
    if not formats or not set(formats) <= set(FORMATS):
        raise ValueError(f"formats must be a list of {' and '.join(map(repr, FORMATS))}, got {formats!r}.")
    missing = [name for name in OF_ONNX if "onnx" in formats and importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {' and '.join(missing)}: {pip_install(*missing)}, or --formats \"['ts']\".")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    for name, network in networks.items():
        if network is None:
            continue
        # two slices, as of one the tracer may take the number for a constant
        inputs = {"image": torch.randn(2, *shape, generator=draw)}
        if name in noised:
            inputs["timesteps"] = torch.randint(num_train_timesteps, (2,), generator=draw)
        alone = copy.deepcopy(network).cpu().float().eval()
        for format_ in formats:
            path = folder / f"{name}.{format_}"
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that sizes become constants, as they are meant to
                (_torchscript if format_ == "ts" else _onnx)(alone, inputs, path)
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _torchscript(network: torch.nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    torch.jit.save(torch.jit.trace(network, tuple(inputs.values())), path)


def _onnx(network: torch.nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    torch.onnx.export(
        network,
        tuple(inputs.values()),
        path,
        dynamo=True,
        input_names=list(inputs),
        output_names=["pred"],
        dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
        external_data=False,
        verbose=False,
    )
