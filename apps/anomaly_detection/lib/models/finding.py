"""The models of a bundle."""

from __future__ import annotations

import sys
from pathlib import Path

from monai.bundle import ConfigParser

from lib.models.declaration import FULL, Declaration
from lib.models.model import Model

REPOSITORY_BUNDLE = Path(__file__).resolve().parents[4] / "bundle"


def find_models(path: str | Path, device: str | None = None) -> list[Model]:
    """The models of a bundle: that of ``configs/inference.json``, and one for each config that sets another ``model``.

    The bundle's folder is put on ``sys.path``: its code is imported as ``scripts``, the name that its configs use.

    Args:
        path: the bundle's folder.
        device: as torch names it; by default a GPU if there is one.

    Raises:
        ValueError: `path` is no bundle.
    """
    path = Path(path).resolve()
    configs = path / "configs"
    if not (configs / f"{FULL}.json").is_file():
        raise ValueError(f"{path}: there is no configs/inference.json, so it is no MONAI bundle.")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    overlays = [
        file.name
        for file in sorted(configs.glob("*.json"))
        if file.stem != FULL and isinstance(ConfigParser.load_config_file(file).get("model"), str)
    ]
    return [Model(Declaration(path, device, overlay)) for overlay in (None, *overlays)]
