"""The models of a bundle."""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path

from monai.bundle import ConfigParser

from lib.models.compiling import compile_anew
from lib.models.declaration import FULL, Declaration
from lib.models.model import Model

logger = logging.getLogger(__name__)

REPOSITORY_BUNDLE = Path(__file__).resolve().parents[4] / "bundle"


def find_models(path: str | Path, device: str | None = None) -> list[Model]:
    """The models of a bundle: that of ``configs/inference.json``, and one for each config that sets another ``model``.

    A config that is no JSON, or a model without weights or a threshold, is named in the log and left out.

    The bundle's folder is put on ``sys.path``: its code is imported as ``scripts``, the name that its configs use.

    Args:
        path: the bundle's folder.
        device: as torch names it; by default a GPU if there is one.

    Raises:
        ValueError: `path` is no bundle, or of another version than this app; or not as it was released, see `check`.
    """
    path = Path(path).resolve()
    configs = path / "configs"
    if not (configs / f"{FULL}.json").is_file():
        raise ValueError(f"{path}: there is no configs/inference.json, so it is no MONAI bundle.")
    if check(path):
        compile_anew(path)
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    models = [Model(Declaration(path, device))]
    for file in sorted(configs.glob("*.json")):
        try:
            name = ConfigParser.load_config_file(file).get("model")
            # a released bundle's train.json stands alone, and so names its model too
            if isinstance(name, str) and name != models[0].declared.name:
                model = Model(Declaration(path, device, file.name))
                weights = model.declared.parsed("network#path")
                if Path(weights).is_file():
                    model.declared.options()
                    models.append(model)
                else:  # as a bundle is published before all of its models are trained
                    logger.info("%s is left out: %s: no weights there.", file, weights)
        except Exception as error:  # a config can be wrong in every way
            logger.error("%s is left out: %s", file, error.__cause__ or error)
    return models


def check(path: Path) -> bool:
    """Compare a released bundle with the hashes of its files, before anything of it is loaded.

    Returns:
        whether it has hashes.

    Raises:
        ValueError: a file was changed, is missing or was added.
    """
    # this project's own file, whatever bundle is served: one that was changed can't be asked whether it was
    own = runpy.run_path(str(REPOSITORY_BUNDLE / "scripts" / "manifest.py"))
    files = own["check_manifest"](path)
    if files is not None:
        logger.info("%s: all %d files are as they were released", path, files)
    return files is not None
