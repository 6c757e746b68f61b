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


def shared_weights(name: str, root: str = HERE) -> str:
    """The path of weights that several models have in common.

    Args:
        name: of the file.
        root: see `models_dir`.
    """
    return str(Path(models_dir(root), name))


def bundle_version() -> str:
    """The version that ``configs/metadata.json`` states."""
    return str(_metadata()["version"])


def pip_install(*packages: str) -> str:
    """The command that installs some of the extra packages of ``configs/metadata.json``, at its versions."""
    versions = _metadata()["extra_packages_version"]
    return " ".join(["pip install", *(f"{package}=={versions[package]}" for package in packages)])


def _metadata() -> dict[str, Any]:
    return dict(json.loads((Path(bundle_root()) / "configs" / "metadata.json").read_text("utf-8")))


def cache_dir() -> str:
    """The folder for caches: the bundle's own, or the user's where the bundle can't be written."""
    if os.access(bundle_root(), os.W_OK):
        return str(Path(bundle_root()) / "cache")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(base) / "diffusion-anomaly-bundle")


def parsed(*overlays: str, **overrides: Any) -> ConfigParser:
    """``configs/inference.json`` of this bundle with overlays over it and the values of ids replaced, to take components from.

    Args:
        overlays: names of configs in their order, such as "preview" for ``configs/preview.json``.
        overrides: values by id.

    Raises:
        FileNotFoundError: there is no such config.
    """
    parser = ConfigParser()
    parser.read_config([str(Path(bundle_root()) / "configs" / f"{name}.json") for name in ("inference", *overlays)])
    parser.update(overrides)
    return parser


def declared(name: str, *overlays: str, **overrides: Any) -> Any:
    """What the configs declare under `name`, built anew; see `parsed`.

    Raises:
        KeyError: there is no such name.
    """
    return parsed(*overlays, **overrides).get_parsed_content(name)
