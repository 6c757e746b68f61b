"""A training's weights into the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..command import command_config
from ..files import write
from ..manifest import alone, renew
from ..weights import (
    MANIFEST,
    load_weights,
    not_written,
    read_manifest,
    replace_weights,
    weights_digest,
    write_tensors,
)
from .checkpoint import RUN

INFERENCE = ("scheduler", "preprocessing", "network_def", "classifier_def", "student_def")
"""The ids of what a training and inference must have in common."""
OF_A_RUN = ("allow_any_image", "brain_cache", "bundle_root", "cache_dir", "device", "dropout", "precision", "root")
"""Parts of it that may differ: places, how it runs, and what is of training alone."""


def halved(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with its float32 tensors in float16: half the size, each value within 1/2048 of what it was, or 3e-8.

    A tensor with values beyond 65504, which float16 can't hold, stays as it is, and so does one of another type.
    """
    half = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in state.items()}
    return {name: tensor if bool(tensor.isfinite().all()) else state[name] for name, tensor in half.items()}


def publish(run_dir: str, path: str, network: torch.nn.Module) -> None:
    """Bring the weights of a training into the bundle, `halved`; what is there is kept under a name with the time.

    Networks load them into float32. Their digest is that of what is loaded, and so not that of the run's own file.

    Student and threshold belong to networks: ``weights.json`` beside the weights says which. What has a teacher is the student,
    whatever its file is called, and brings what it learned from. For other networks inference warns
    (`weights.not_together`), as this does.

    Inference goes by config files, whatever options a training had. Where it had other settings than the files of this command
    say, that is printed.

    Args:
        run_dir: of the training.
        path: in the bundle's ``models``.
        network: of the definition that the bundle declares; the weights must fit it.

    Raises:
        SystemExit: there are no weights in `run_dir`, or the bundle can't be written.
        ValueError: see `weights.load_weights`.
    """
    source, target = Path(run_dir) / "model.pt", Path(path)
    if not source.is_file():
        raise SystemExit(f"{source}: no weights there; finish the training, or give the --run_dir of another.")
    network = load_weights(network, str(source))
    published = halved(network.state_dict())
    network.load_state_dict(published)
    digest = weights_digest(network)
    record = source.with_name(RUN)
    run = json.loads(record.read_text("utf-8"))
    teacher = run["settings"].get("teacher")
    written = target.with_name(MANIFEST)
    with _writing(target):
        belonging = read_manifest(written)
        kept = _put(published, target)
        if teacher is not None:
            belonging["student"] = {**teacher, "student": digest}
            write(written, (json.dumps(belonging, indent=4) + "\n").encode())
            renew(written)
    print(f"{target}: published." + (f" The old weights are {kept}." if kept else ""))
    if teacher is None and digest not in belonging.get("student", {}).values():
        whose = "belong to other networks" if belonging else "are still to be made"
        print(
            f"The student and the threshold {whose}: run with --student '$None' until there is a student for these, and choose "
            "a threshold with calibrate.json."
        )
    elif teacher is not None and digest not in belonging.get("calibration", {}).values():
        print("The threshold was chosen for another student: choose one anew with calibrate.json.")
    if others := _others(run.get("config") or {}, command_config(INFERENCE, with_options=False) or {}):
        print(
            f"WARNING: {record}: the weights were trained with {'; '.join(others)} as in the config files. Inference goes by "
            "those, and is wrong with these weights: write the values of the training into the config file that has them, or "
            "into one that all commands name last."
        )


def _others(trained: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, which settings of a training are not those of a config."""
    was, is_ = (dict(_leaves({n: c[n] for n in sorted(trained.keys() & now.keys())})) for c in (trained, now))
    ids = [i for i in {**is_, **was} if was.get(i) != is_.get(i) and not {*i.split("#")} & {*OF_A_RUN}]
    pairs = {i: f"{was.get(i)}, not {is_.get(i)}" for i in ids}
    # where it is a component's argument that refers to an option, the option is enough
    options = [pair for i, pair in pairs.items() if "#" not in i]
    return [f"{i} {pair}" for i, pair in pairs.items() if "#" not in i or pair not in options]


def _leaves(value: Any, id_: str = "") -> Iterator[tuple[str, Any]]:
    """The ids in a config of what holds no others, with their values; a list of plain values is one."""
    inside = [*value.items()] if isinstance(value, dict) else [*enumerate(value)] if isinstance(value, list) else []
    if isinstance(value, dict) or any(isinstance(part, (dict, list)) for _, part in inside):
        for key, part in inside:
            yield from _leaves(part, f"{id_}#{key}" if id_ else str(key))
    else:
        yield id_, value


def put(state: Mapping[str, torch.Tensor], target: Path) -> str | None:
    """Write weights to where the bundle reads them; the name of those that were there, see `weights.replace_weights`.

    Raises:
        SystemExit: they can't be written.
    """
    with _writing(target):
        return _put(state, target)


def _put(state: Mapping[str, torch.Tensor], target: Path) -> str | None:
    part = target.with_suffix(".part")
    write_tensors(part, state)
    try:
        return replace_weights(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Write weights and what is said of them, while no other process does."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target.with_name(MANIFEST)):
            yield
    except OSError as error:
        raise SystemExit(not_written(target, error)) from error
