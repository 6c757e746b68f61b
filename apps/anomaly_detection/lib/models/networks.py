"""A model's networks: loaded once, and again when their files have changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lib.models.abandoning import proceed
from lib.models.declaration import FULL, Declaration

logger = logging.getLogger(__name__)


class Networks:
    """What of a model is loaded, by mode: its networks, and its preprocessing, which may hold one too.

    MONAI Label's own `BundleInferTask` serves the bundle too, but imports its scripts and loads its classifier and the brain
    extraction anew in every request.
    """

    def __init__(self, declared: Declaration) -> None:
        self._declared = declared
        self._loaded: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, dict[str, str]] = {}
        self._other_settings: dict[str, dict[str, Any]] = {}
        self._changed: tuple[int, ...] = ()
        self._files: list[str | None] = []

    def __getitem__(self, mode: str) -> dict[str, Any]:
        """What is loaded for a mode, by its id in the config."""
        return self._loaded[mode]

    @property
    def weights(self) -> list[str | None]:
        """The SHA-256 of each weights file and the manifest: two runs with the same ones, options and version are the same."""
        return list(self._files)

    def load(self) -> bool:
        """Load the networks, unless they are loaded and their files have not changed; whether that was done."""
        from scripts.digests import digest_of
        from scripts.weights import digests_of

        declared = self._declared
        # and the manifest, which holds the temperature
        files = [path for path in (*declared.weights_files, declared.models_dir / "weights.json") if path.is_file()]
        changed = tuple(path.stat().st_mtime_ns for path in files)
        if self._loaded and changed == self._changed:
            return False
        logger.info("loading the networks of %s on %s", declared.models_dir, declared.device)
        self._loaded, self._changed = {}, ()
        names = [n for n in ("classifier", "student", "preprocessing") if n in declared.config()]
        shared: dict[str, Any] = {name: declared.parsed(name) for name in names}
        for transform in shared["preprocessing"].transforms:
            if hasattr(transform, "load"):
                transform.load()
        loaded = {mode: dict(shared) for mode in declared.modes}
        for mode, parts in loaded.items():
            parts["network"] = declared.parsed("network", mode=mode, loaded=parts)
            networks = {name: parts.get(name) for name in ("network", "classifier", "student")}
            self._digests[mode] = digests_of(networks)
            self._other_settings[mode] = dict(declared.parsed("report#other_settings", mode=mode))
            for warning in self.not_together(mode, declared.options(mode)):
                logger.warning("%s: %s", declared.models_dir, warning)
            # a batch of slices is what can't be interrupted
            parts["network"].register_forward_pre_hook(lambda *_: proceed())
        self._files = [digest_of(path) for path in files]
        self._loaded, self._changed = loaded, changed
        return True

    def parsed(self, name: str, options: Mapping[str, float], mode: str = FULL) -> Any:
        """What the config declares under `name`, with these options and the networks that are loaded."""
        return self._declared.parsed(name, options, mode, self._loaded[mode])

    def not_together(self, mode: str, options: Mapping[str, float]) -> list[str]:
        """Warnings where weights, options or temperature don't belong together; see the bundle's `not_together`."""
        from scripts.weights import MANIFEST, in_use, not_together

        settings = in_use(options, self._other_settings[mode])
        return not_together(self._declared.models_dir / MANIFEST, self._digests[mode], settings)
