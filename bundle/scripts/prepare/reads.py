"""What was read of a data set so far, kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..digests import json_digest
from ..sources import state


class Reads:
    """What takes time to read, kept in a file, so that a command that was stopped, or has other options, reads no case twice.

    A line a case; the file may be deleted.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
            try:
                self._known.update([json.loads(line)])
            except (ValueError, TypeError):  # the last line of a run that was killed
                continue

    def once(self, files: Iterable[Path], settings: Any, read: Callable[[], Any], again: bool = False) -> Any:
        """What `read` gives (JSON), read anew only if a file's size or time of change, or the settings, are others.

        Args:
            files: that are read, with those that they name, or folders of them.
            settings: all else that it depends on, and what is read.
            read: raises what the files deserve; nothing is kept then.
            again: read anew all the same.

        Raises:
            OSError: a file is missing.
            RuntimeError: the disk is full or the like, which is not the files' fault.
        """
        states = [(os.path.abspath(f), *state(str(f))) for f in files]
        key = json_digest([states, settings])
        if again or key not in self._known:
            self._known[key] = read()
            self._keep(json.dumps([key, self._known[key]]))
        return self._known[key]

    def _keep(self, line: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" + line)
        except OSError as error:
            raise RuntimeError(f"{self.path}: can't be written.") from error
