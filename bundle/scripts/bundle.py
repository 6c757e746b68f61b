"""Where the bundle lies, what it declares, and its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

HERE = "."
"""As ``bundle_root`` in a config: this bundle. Named so, as MONAI reads the id before it can import anything of ours."""


def bundle_root() -> str:
    """The folder of this bundle, wherever it was unpacked and whatever the current directory is."""
    return str(Path(__file__).resolve().parent.parent)


def models_dir(root: str = HERE, folder: str = "models") -> str:
    """The folder of a model's weights, ``models`` or one within it.

    Args:
        root: `HERE` for this bundle, or the folder of a copy of it.
        folder: relative to that.
    """
    return str(Path(bundle_root() if root == HERE else root, folder))


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
