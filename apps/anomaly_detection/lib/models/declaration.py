"""What a bundle's configs declare of one of its models."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

logger = logging.getLogger(__name__)

FULL, PREVIEW = "inference", "preview"
"""How a study is run, by the config that says it: in full, or by the student alone."""


def _state_of(path: Path) -> tuple[int, ...]:
    """Of a file that is replaced, not written into; () where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


class Declaration:
    """The configs of one model: ``configs/inference.json``, over it the model's own, over these ``configs/preview.json``.

    Args:
        path: the bundle's folder.
        device: as torch names it; by default a GPU if there is one.
        overlay: the name of the model's own config; None for the model that ``inference.json`` describes by itself.

    Raises:
        ValueError: the configs are of a version that does not say what a model takes.
    """

    def __init__(self, path: str | Path, device: str | None = None, overlay: str | None = None) -> None:
        self.path = Path(path).resolve()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.metadata = json.loads((self.path / "configs" / "metadata.json").read_text("utf-8"))
        files = [self.path / "configs" / name for name in (f"{FULL}.json", *([overlay] if overlay else []))]
        self._options: dict[str, tuple[Any, dict[str, float]]] = {}
        self._configs: dict[str, dict[str, Any]] = {FULL: ConfigParser.load_config_files(files)}
        file = self.path / "configs" / f"{PREVIEW}.json"
        if file.is_file():
            preview = ConfigParser.load_config_files([*files, file])
            # a bundle that was trained anew may have no student yet
            if preview["network"] != "@student" or preview.get("student"):
                self._configs[PREVIEW] = preview
        config = self._configs[FULL]
        missing = [name for name in ("model", "modalities", "sequences", "models_dir") if name not in config]
        if missing:
            raise ValueError(f"{files[-1]}: has no {', '.join(missing)}; it is of another version than this app.")
        self.name = str(config["model"])
        self.modalities: list[str] = config["modalities"]
        self.channels: list[str] = config["sequences"]
        self.reference: str | None = config.get("reference", self.channels[0] if self.channels else None)
        """On the grid of which channel the results lie."""
        self.models_dir = Path(self.parsed("models_dir"))
        if PREVIEW in self._configs:
            try:
                self.options(PREVIEW)
            except (RuntimeError, ValueError) as error:
                logger.warning("%s has no preview: %s", self.name, error.__cause__ or error)
                del self._configs[PREVIEW]

    @property
    def modes(self) -> list[str]:
        """The ways in which this model can run a study."""
        return list(self._configs)

    @property
    def version(self) -> str:
        """Of the bundle."""
        return str(self.metadata["version"])

    @cached_property
    def weights_files(self) -> list[Path]:
        """What its networks' weights are loaded from, the one that finds the brain included, which models share."""
        from scripts.weights import loaded_ids

        return sorted({Path(self.parsed(f"{name}#path")) for name in loaded_ids(self.config())})

    def options(self, mode: str = FULL) -> dict[str, float]:
        """The options that a request may set, with their defaults; a calibration may change these at any time.

        Raises:
            RuntimeError, ValueError: one has no default, as it was not chosen for these weights.
        """
        state = _state_of(self.models_dir / "weights.json")
        # every list of the models asks for them, and to parse them takes some 20 ms
        if mode not in self._options or self._options[mode][0] != state:
            self._options[mode] = state, dict(self.parsed("displayable_configs", mode=mode))
        return dict(self._options[mode][1])

    def config(self, mode: str = FULL) -> dict[str, Any]:
        """What the bundle's files say of a mode."""
        return deepcopy(self._configs[mode])

    def parsed(
        self,
        name: str,
        options: Mapping[str, float] | None = None,
        mode: str = FULL,
        loaded: Mapping[str, Any] | None = None,
    ) -> Any:
        """What the config declares under `name`, with these options, and `loaded` in the place of other ids."""
        known = {"bundle_root": str(self.path), "device": self.device, **(loaded or {})}
        parser = ConfigParser({**self.config(mode), **known})
        parser.update({f"displayable_configs#{k}": v for k, v in (options or {}).items()})
        return parser.get_parsed_content(name)

    def checked_options(self, request: Mapping[str, Any], mode: str = FULL) -> dict[str, float]:
        """The options of a request, each a number of its default's type; those it lacks have their defaults.

        Raises:
            MONAILabelException: INVALID_INPUT, an option is no number.
        """
        options = {}
        for name, default in self.options(mode).items():
            value = request.get(name, default)
            try:
                number = float(value)
                if isinstance(value, bool) or (isinstance(default, int) and number != int(number)):
                    raise ValueError
            except (TypeError, ValueError, OverflowError):
                kind = "a whole number" if isinstance(default, int) else "a number"
                raise MONAILabelException(
                    MONAILabelError.INVALID_INPUT, f"{name} must be {kind}, got {value!r}; its default is {default}."
                ) from None
            options[name] = int(number) if isinstance(default, int) else number
        return options
