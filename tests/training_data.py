"""What the tests of training share: a few heads with labels, the tiny networks, MONAI's command."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.bundle import bundle_root
from synthetic import write_head
from tiny_run import TINY

OVERLAYS = {
    "train": ("inference", "train"),
    "train_classifier": ("inference", "train", "train_classifier"),
    "train_student": ("inference", "train", "train_student"),
}
"""The configs of each training, in order."""

SMALL: dict[str, Any] = {**TINY, "displayable_configs#num_inference_steps": 1, "num_fixed_point_iterations": 0}
"""Networks that train in milliseconds, and a teacher of one step."""


def datalist(folder: Path) -> list[dict[str, Any]]:
    """Two volumes with a label a slice, one with one label for all, one that can't be read."""
    items = [write_head(folder, grid, name=grid) for grid in ("plain", "flipped", "oblique")]
    depth = {"plain": 6, "flipped": 6, "oblique": 7}
    for i in items[:2]:
        i["label"] = [z % 2 for z in range(depth[i["name"]])]
    items[2]["label"] = 1
    items.append({"image": str(folder / "missing.nii.gz"), "label": 0, "name": "missing"})
    return [{k: v for k, v in i.items() if k != "name"} | {"subject": i["name"]} for i in items]


def write_datalist(folder: Path) -> Path:
    """Those that can be read, to train and to validate."""
    items = datalist(folder)[:3]
    path = folder / "datalist.json"
    # validated on copies, as no patient may be on both sides
    copies = []
    for item in items:
        copy = Path(item["image"]).with_name(f"copy_{Path(item['image']).name}")
        copy.write_bytes(Path(item["image"]).read_bytes())
        copies.append(item | {"image": str(copy), "subject": f"copy of {item['subject']}"})
    path.write_text(json.dumps({"training": items, "validation": copies}))
    return path


def files(config: str, bundle: str | Path | None = None, *more: str) -> list[str]:
    """The paths of a training's configs, and of `more` over them."""
    return [str(Path(bundle or bundle_root()) / "configs" / f"{name}.json") for name in (*OVERLAYS[config], *more)]


def options(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Of a small training in `folder`, whose datalist is there."""
    return {
        **SMALL,
        "datalist": str(folder / "datalist.json"),
        "cache_dir": str(folder / "cache"),
        "run_dir": str(folder / "run"),
        **overrides,
    }


def parsed(config: str, folder: Path, **overrides: Any) -> ConfigParser:
    """The configs of a training, as `monai.bundle.run` has them."""
    parser = ConfigParser()
    parser.read_config(files(config))
    parser.update({"bundle_root": bundle_root(), **options(folder, **overrides)})
    return parser


def fill_zeros(network: torch.nn.Module) -> torch.nn.Module:
    """The network, with random weights where MONAI's diffusion networks begin with zeros: in their last layer."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def write_teacher(folder: Path) -> dict[str, str]:
    """Random weights of a teacher's networks in `folder`, as the options that name them."""
    torch.manual_seed(0)
    paths = {}
    for name in ("network", "classifier"):
        network = fill_zeros(parsed("train", folder).get_parsed_content(f"{name}_def"))
        paths[f"{name}#path"] = str(folder / f"{name}.pt")
        torch.save(network.state_dict(), paths[f"{name}#path"])
    return paths


def command(config: str, folder: Path, *more: str, **overrides: Any) -> list[str]:
    """MONAI's command, as a user types it from any directory, with small networks and data, and configs `more` on top."""
    run = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", repr(files(config, None, *more))]
    for key, value in options(folder, **overrides).items():
        run += [f"--{key}", value if isinstance(value, str) else repr(value)]
    return run


def forked(work: Callable[[], Any]) -> Any:
    """Another process that does this; it has no thread but its own."""

    def alone() -> None:
        torch.set_num_threads(1)
        work()

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    return process
