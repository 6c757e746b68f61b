"""Where the bundle lies, what it declares, and its weights."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sysconfig
from collections.abc import Mapping
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

MANIFEST = "weights.json"
"""Beside the weights: see `read_manifest`."""


def bundle_root() -> str:
    """The folder of this bundle, wherever it was unpacked and whatever the current directory is."""
    return str(Path(__file__).resolve().parent.parent)


def bundle_version() -> str:
    """The version that ``configs/metadata.json`` states."""
    return str(json.loads((Path(bundle_root()) / "configs" / "metadata.json").read_text("utf-8"))["version"])


def cache_dir() -> str:
    """The folder for caches: the bundle's own, or the user's where the bundle can't be written."""
    if os.access(bundle_root(), os.W_OK):
        return str(Path(bundle_root()) / "cache")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(base) / "diffusion-anomaly-bundle")


def declared(name: str, overlay: str | None = None, **overrides: Any) -> Any:
    """What ``configs/inference.json`` declares under `name`, built anew, with the values of other ids replaced.

    `overlay` names a config that goes over it: "preview" for ``configs/preview.json``.

    Networks, schedule and preprocessing are stated there alone; a training or evaluation config that stands by itself
    takes them from it: ``{"_target_": "scripts.bundle.declared", "name": "network_def"}``.

    Raises:
        KeyError: there is no such name.
    """
    parser = ConfigParser()
    names = ["inference", *([overlay] if overlay else [])]
    parser.read_config([str(Path(bundle_root()) / "configs" / f"{n}.json") for n in names])
    parser.update(overrides)
    return parser.get_parsed_content(name)


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fastest_precision(device: torch.device | str) -> str:
    """The precision that the networks run fastest in, "bfloat16" or "float32".

    bfloat16 pays where the hardware multiplies it. Where it does not, as on CPUs without AVX512-BF16, AMX or their Arm
    counterparts, PyTorch converts back and forth at twice the time of float32 and more.
    """
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.cpu.get_capabilities()
        native = any(can.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"


def compilation_pays(device: torch.device | str, minutes: float) -> bool:
    """Whether `torch.compile` makes a training of so many minutes faster, its own minute or two included.

    On a CPU it fuses what lies between the convolutions, if there is what it compiles with: a C++ compiler and the headers of
    Python. Inference gains nothing from it. On GPUs it was not measured.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    return torch.device(device).type == "cpu" and minutes >= 20 and compiler is not None and headers


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """A context in which the networks run in `precision`; "float32" also switches a caller's autocast off.

    Raises:
        ValueError: `precision` is not "float32", "bfloat16" or "float16".
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision must be float32, bfloat16 or float16, got {precision!r}.")
    low = torch.bfloat16 if precision == "float32" else getattr(torch, precision)
    return torch.autocast(torch.device(device).type, low, enabled=precision != "float32")


def load_weights(network: torch.nn.Module, path: str, device: torch.device | str = "cpu") -> torch.nn.Module:
    """`network` with the state dict in `path`, ready for inference on `device`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no state dict, or not one of this network. Code in a file is never run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no weights there; train them or give another bundle_root.")
    return for_training(network, device, path).eval().requires_grad_(False)


def for_training(
    network: torch.nn.Module, device: torch.device | str, initial_weights: str | None = None
) -> torch.nn.Module:
    """`network` on `device`, in the layout that it is fastest in, with the state dict in a file or as it is initialised.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for `load_weights`.
    """
    if initial_weights is not None:
        _load(network, initial_weights)
    # the layout that convolutions are fastest in, on CPUs up to threefold
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stubs lack it


def weights_digest(network: torch.nn.Module) -> str:
    """The SHA-256 of a network's weights, 64 hexadecimal digits, whatever file, device and memory layout they lie in."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def replace_weights(source: Path, target: Path) -> str | None:
    """Move a file of weights to where the bundle reads them, and keep those that were there.

    Args:
        source: on the same file system.
        target: in the bundle's ``models``.

    Returns:
        The name, with the time in it, of the old weights; None where there were none.
    """
    if not target.exists():
        os.replace(source, target)
        return None
    kept = target.with_name(f"{target.stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{target.suffix}")
    part = source.with_name(kept.name + ".part")
    shutil.copy2(target, part)
    os.replace(part, kept)
    try:
        os.replace(source, target)
    except OSError:
        kept.unlink()
        raise
    return kept.name


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What ``models/weights.json`` says about which weights belong together; empty where there is none.

    ``student``: the digests (see `weights_digest`) of a student, and of the network and classifier that it learned from.
    ``threshold``: the digests of those that the thresholds in ``values`` were chosen for.

    Raises:
        ValueError: it isn't JSON.
    """
    try:
        return dict(json.loads(Path(path).read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: can't be read as JSON ({error}).") from error


def not_together(manifest: str | Path, weights: Mapping[str, str], threshold: float) -> list[str]:
    """Warnings, where the student or the threshold was made for other networks than those in use.

    Args:
        manifest: see `read_manifest`. Without it nothing is known, and nothing said.
        weights: the digests of the networks in use, by the names of the config: "network", "classifier", "student".
        threshold: in use. One that isn't the manifest's was chosen by someone, who is not warned.
    """
    content = read_manifest(manifest)
    student, chosen = (dict(content.get(name, {})) for name in ("student", "threshold"))
    values = chosen.pop("values", [])
    warnings = []
    if (
        "student" in weights
        and weights["student"] == student.get("student")
        and not set(weights.values()) <= set(student.values())
    ):
        warnings.append("The student learned from other networks than those in use.")
    if threshold in values and not set(weights.values()) <= set(chosen.values()):
        warnings.append("The threshold was chosen for other networks than those in use.")
    return warnings


def _load(network: torch.nn.Module, path: str) -> None:
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


def check_number(
    name: str, value: Any, lowest: float, highest: float, allowed: str | None = None, whole: bool = False
) -> None:
    """Refuse an option that is no number, NaN, infinite or out of its range.

    Args:
        name: of the option.
        value: what was given.
        lowest: allowed.
        highest: allowed.
        allowed: the range in words; by default these two.
        whole: only whole numbers.

    Raises:
        ValueError: it names the option, what is allowed and what was given.
    """
    allowed = allowed or f"from {lowest:g} to {highest:g}"
    kind: Any = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, {allowed}, got {value!r}.")
    if not lowest <= value <= highest:  # NaN is neither
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")
