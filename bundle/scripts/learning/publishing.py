"""A training's weights into the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

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
    teacher = json.loads((source.with_name(RUN)).read_text("utf-8"))["settings"].get("teacher")
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
