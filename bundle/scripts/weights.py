"""The networks' weights: read, identified, replaced, and which belong together."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .device import in_fastest_layout
from .errors import EXHAUSTED
from .files import replacing, write
from .manifest import alone, renew
from .wording import shown

logger = logging.getLogger(__name__)

MANIFEST = "weights.json"
"""Beside the weights: see `read_manifest`."""
NETWORK = "model.pt"
"""The diffusion network's, without which a model gives no results."""


def load_weights(network: torch.nn.Module, path: str, device: torch.device | str = "cpu") -> torch.nn.Module:
    """`network` with the state dict in `path`, ready for inference on `device`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no state dict, or not one of this network. Code in a file is never run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no weights there; train them or give another bundle_root.")
    _load(network, path)
    return for_training(network, device).eval().requires_grad_(False)


def loaded_ids(config: Any, within: str = "") -> Iterator[str]:
    """The ids in a config, as MONAI writes them, of the networks that `load_weights` makes, such as "foreground#network".

    Args:
        config: as `ConfigParser.load_config_files` gives it.
        within: the id of a part of a config, if it is one.
    """
    if isinstance(config, dict) and config.get("_target_") == f"{__name__}.{load_weights.__name__}":
        yield within
    elif isinstance(config, (dict, list)):
        for key, part in config.items() if isinstance(config, dict) else enumerate(config):
            yield from loaded_ids(part, f"{within}#{key}" if within else str(key))


def for_training(
    network: torch.nn.Module, device: torch.device | str, initial_weights: str | None = None
) -> torch.nn.Module:
    """`network` on `device`, in the layout that it is fastest in, as it is initialised or begun with another's weights.

    Args:
        network: changed in place.
        device: where it goes.
        initial_weights: a file with a state dict, also of another network: what has the same name and shape is taken, such as
            the encoder of a diffusion network for a classifier; how much that was is logged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no state dict, or nothing in it fits.
    """
    if initial_weights is not None:
        own, given = network.state_dict(), read_state(initial_weights)
        fitting = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
        if not fitting:
            raise ValueError(
                f"{initial_weights}: none of its {len(given)} weights has a name and shape of this {type(network).__name__}."
            )
        network.load_state_dict(fitting, strict=False)
        logger.info("%s: began with %d of the network's %d weights", initial_weights, len(fitting), len(own))
    return in_fastest_layout(network, device)


def weights_digest(network: torch.nn.Module) -> str:
    """The SHA-256 of a network's weights, 64 hexadecimal digits, whatever file, device and memory layout they lie in."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def digests_of(networks: Mapping[str, torch.nn.Module | None]) -> dict[str, str]:
    """The `weights_digest` of each network by its name in the config; one that is None isn't there."""
    return {name: weights_digest(network) for name, network in networks.items() if network is not None}


def write_tensors(path: Path, content: Any) -> None:
    """Write what `torch.save` writes, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own words, on top of the operating system's
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def not_written(path: Path, error: OSError) -> str:
    """Why a file of the bundle can't be written, and what to do about it."""
    advice = "free some space." if error.errno in EXHAUSTED else "give a copy of the bundle as --bundle_root."
    return f"{path}: can't be written ({error.strerror or error}); {advice}"


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
        renew(target)
        return None
    begin = f"{target.stem}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
    kept, n = target.with_name(f"{begin}{target.suffix}"), 1
    while kept.exists():
        n += 1
        kept = target.with_name(f"{begin}-{n}{target.suffix}")
    with replacing(kept) as part:
        shutil.copy2(target, part)
    try:
        os.replace(source, target)
    except OSError:
        kept.unlink()
        raise
    renew(target)
    return kept.name


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What ``models/weights.json`` says about which weights belong together; empty where there is none.

    ``student``: the digests (see `weights_digest`) of a student, and of the network and classifier that it learned from.
    ``calibration``: the numbers in ``values``, see `calibrated`, the digests of the networks that they were chosen for, and in
    ``settings``, by its name, what each threshold was chosen with.

    Raises:
        ValueError: it isn't JSON.
    """
    try:
        return dict(json.loads(Path(path).read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: can't be read as JSON ({error}).") from error


def in_use(settings: Mapping[str, Any], other_settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both settings as one, without those that are None: a model may have none of what others have."""
    return {k: v for k, v in {**settings, **(other_settings or {})}.items() if v is not None}


def not_together(manifest: str | Path, weights: Mapping[str, str], settings: Mapping[str, Any]) -> list[str]:
    """Warnings, where student, threshold or temperature was made for other networks or settings than those in use.

    Args:
        manifest: see `read_manifest`. Without it nothing is known, and nothing said.
        weights: the digests of the networks in use, by the names of the config: "network", "classifier", "student".
        settings: in use, the ``threshold`` among them. One that isn't the manifest's was chosen by someone, who is not warned.
    """
    content = read_manifest(manifest)
    student, chosen = (dict(content.get(name, {})) for name in ("student", "calibration"))
    values, chosen_with = chosen.pop("values", {}), chosen.pop("settings", {})
    threshold = settings["threshold"]
    warnings = []
    if (
        "student" in weights
        and weights["student"] == student.get("student")
        and not set(weights.values()) <= set(student.values())
    ):
        warnings.append("The student learned from other networks than those in use.")
    of_value = {value: name for name, value in values.items() if name != "temperature"}
    # the preview's threshold is that of the student alone, the other that of a map of all networks
    fewer = bool(weights) and threshold == values.get("threshold") and not chosen.keys() <= weights.keys()
    if threshold in of_value and (fewer or not set(weights.values()) <= set(chosen.values())):
        warnings.append("The threshold was chosen for other networks than those in use.")
    those = chosen_with.get(of_value.get(threshold), {})
    others = [f"{k} {shown(v)}, not {shown(settings[k])}" for k, v in those.items() if settings.get(k, v) != v]
    if others:
        warnings.append(f"The threshold was chosen with {', '.join(others)}.")
    if values.get("temperature", 1) != 1 and weights.get("classifier") != chosen.get("classifier"):
        warnings.append("The temperature was chosen for another classifier than the one in use.")
    return warnings


def calibrated(manifest: str | Path, name: str, default: float | None = None) -> float:
    """A number that was chosen for these weights on validation images, from their manifest.

    Args:
        manifest: see `read_manifest`.
        name: "threshold", of the map; "preview_threshold", of the student alone; "temperature", of the classifier.
        default: where none was chosen.

    Raises:
        ValueError: none was chosen, and there is no default; or it is no number.
    """
    value = read_manifest(manifest).get("calibration", {}).get("values", {}).get(name, default)
    if value is None:
        trained = Path(manifest).with_name(NETWORK).is_file()
        what = "run the config calibrate.json, or give the number as an option" if trained else "train the model first"
        raise ValueError(
            f"{manifest}: holds no {name}{'' if trained else ', and there are no weights beside it'}; {what}."
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{manifest}: its {name} must be a number, got {value!r}.")
    return float(value)


def calibrate(
    manifest: str | Path,
    values: Mapping[str, float],
    weights: Mapping[str, str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> str | None:
    """Write numbers for `calibrated` into a manifest. Others in it stay if they belong to the same weights.

    Args:
        manifest: see `read_manifest`; what it was is kept beside it, see `replace_weights`.
        values: numbers by their names.
        weights: the digests of the networks that they were chosen for, as in `not_together`.
        settings: that each threshold among the values was chosen with, by its name.

    Returns:
        The name of what the manifest was; None where there was none.

    Raises:
        ValueError: it can't be read or written.
    """
    path = Path(manifest)
    part = path.with_suffix(".new")
    try:
        with alone(path):
            content = read_manifest(path)
            before = dict(content.get("calibration", {}))
            others, chosen_with = before.pop("values", {}), before.pop("settings", {})
            same = before == dict(weights) if "threshold" in values else set(weights.values()) <= set(before.values())
            kept = {"values": {**others, **values}, **before} if same else {"values": dict(values), **weights}
            if chosen_with := {**(chosen_with if same else {}), **(settings or {})}:
                kept["settings"] = chosen_with
            write(part, (json.dumps({**content, "calibration": kept}, indent=4) + "\n").encode())
            try:
                return replace_weights(part, path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(not_written(path, error)) from error


def read_state(path: str) -> dict[str, torch.Tensor]:
    """The state dict in a file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PyTorch file of tensors alone. Code in a file is never run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: is not a PyTorch state dict ({type(error).__name__}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path}: is not a PyTorch state dict ({type(state).__name__}).")
    return dict(state)


def _load(network: torch.nn.Module, path: str) -> None:
    state = read_state(path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"{path}: its weights don't fit the {type(network).__name__} that the config declares "
            f"({len(lines) - 1} differences, the first: {lines[min(1, len(lines) - 1)].strip()})."
        ) from error
