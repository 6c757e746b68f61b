"""What takes long is kept on disk as it is made, so that a run that was stopped goes on; and what all records say."""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.bundle import parsed
from scripts.learning.seeding import seed_of
from scripts.weights import write_tensors


def machine(device: torch.device | str = "cpu") -> str:
    """What seconds are of: the GPU, or the processor and the threads that compute."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Those of PyTorch, MONAI and Python."""
    return {"torch": torch.__version__, "monai": monai.__version__, "python": platform.python_version()}


def rounded(node: Any, digits: int) -> Any:
    """A record whose fractions have so many digits behind the point."""
    if isinstance(node, dict):
        return {name: rounded(value, digits) for name, value in node.items()}
    return round(node, digits) if isinstance(node, float) else node


def place(folder: Path, name: str, *state: Any) -> Path:
    """A file for what depends on `state`, with a name to read."""
    digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    return folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{digest}.pt"


def save(path: Path, thing: Any) -> None:
    """Write a file whole or not at all, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, thing)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gave when `path` was written, or gives now."""
    if not path.is_file():
        save(path, make())
    return torch.load(path, weights_only=True, map_location="cpu")


def fit(
    parts: Sequence[Any],
    step: Callable[[torch.Tensor], None],
    slices: int,
    images: int,
    seed: int,
    path: Path,
    size: int = 16,
    seconds: float = 60,
) -> None:
    """Train on batches of random slices until `images` were seen; learning rates fall to 0 as a cosine does.

    What a step draws depends on the seed and the step alone, so one that was stopped goes on as if it had not been.

    Args:
        parts: networks and optimizers, whose state is saved.
        step: takes the indices of a batch.
        slices: how many there are.
        path: of the checkpoint.
        size: of a batch.
        seconds: between two checkpoints.
    """
    optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    done, saved = 0, time.monotonic()
    if path.is_file():
        state = torch.load(path, weights_only=True)
        done = state.pop("done")
        for part, of_part in zip(parts, state["parts"], strict=True):
            part.load_state_dict(of_part)
    while done < images:
        torch.manual_seed(seed_of(seed, done))
        share = float((1 + torch.cos(torch.tensor(torch.pi * done / images))) / 2)
        for optimizer, of_optimizer in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, of_optimizer, strict=True):
                group["lr"] = rate * share
        step(torch.randint(slices, (size,)))
        done += size
        if done >= images or time.monotonic() - saved > seconds:
            save(path, {"done": done, "parts": [part.state_dict() for part in parts]})
            saved = time.monotonic()


def run_training(folder: Path, images: int | None, *overlays: str, **values: Any) -> None:
    """A training of the bundle, or the rest of one that was stopped before.

    Args:
        folder: of its results.
        images: how many it sees, by default as many as its config says.
        overlays: the configs, in order.
        values: of other ids, see `scripts.bundle.parsed`.
    """
    budget = {} if images is None else {"max_images": images, "epoch_images": min(images, 1280)}
    parser = parsed(*overlays, run_dir=str(folder), **budget, **values)
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("checkpoint").open()
    parser.get_parsed_content("train#trainer").run()
    parser.get_parsed_content("checkpoint").close()  # ends this program if it was stopped
