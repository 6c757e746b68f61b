"""The models of the source tree, and which of them can be released."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

SUFFIX = "diffusion_anomaly"
"""MONAI Label reads a meaning into names that end in "detection" or "segmentation"."""


@dataclass(frozen=True)
class Model:
    """A model of a source tree: ``configs/inference.json``, and over it the model's own config.

    Args:
        bundle: the source tree's bundle.
        overlay: the stem of the model's own config; None for the model that ``inference.json`` describes by itself.
    """

    bundle: Path
    overlay: str | None = None

    @property
    def configs(self) -> list[Path]:
        """Its config files, one over the other."""
        return [self.bundle / "configs" / f"{name}.json" for name in ("inference", self.overlay) if name]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its inference config, merged."""
        return dict(ConfigParser.load_config_files(self.configs))

    def parser(self) -> ConfigParser:
        """To take components from; of a copy, as it fills in what its config refers to."""
        return ConfigParser(deepcopy({**self.config, "bundle_root": str(self.bundle)}))

    @property
    def name(self) -> str:
        """What its zip is called, and the folder in it."""
        return f"{self.config['model']}_{SUFFIX}"

    @cached_property
    def weights(self) -> dict[str, Path]:
        """The files of weights that its config reads, by the ids of the networks, such as "student", "foreground#network"."""
        from scripts.weights import loaded_ids  # of the source tree, as what the config declares

        parser = self.parser()
        return {id_: Path(parser.get_parsed_content(f"{id_}#path")) for id_ in loaded_ids(self.config)}

    @property
    def has_student(self) -> bool:
        """Whether there is a network that gives the map by itself."""
        return "student" in self.weights

    @property
    def models_dir(self) -> Path:
        """Where its weights and what was chosen for them lie."""
        return self.weights["network"].parent

    def why_not(self) -> str | None:
        """Why it can't be released, or None if it can."""
        missing = sorted(path.name for path in self.weights.values() if not path.is_file())
        if missing:
            return f"it has no weights: {', '.join(missing)} not in {self.models_dir.relative_to(self.bundle)}"
        try:
            self.parser().get_parsed_content("displayable_configs")
        except RuntimeError as error:
            return str(error.__cause__ or error)
        return None


def models(bundle: Path) -> Iterator[Model]:
    """All models that a source tree declares, with weights or without; see `Model`."""
    yield Model(bundle)
    for path in sorted((bundle / "configs").glob("*.json")):
        if path.stem != "inference" and "model" in json.loads(path.read_text("utf-8")):
            yield Model(bundle, path.stem)
