"""The code of a released bundle, compiled from the files that its hashes cover.

A run leaves in ``__pycache__`` what Python compiled. No hash covers that, and Python takes it for the code beside it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

PREFIX = "PYTHONPYCACHEPREFIX"
"""Where Python keeps what it compiled, in the environment."""


class Uncached(SourceFileLoader):
    """Imports a file of code; what was compiled before is neither read nor written."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def compile_anew(bundle: Path) -> None:
    """Let this process import nothing from a folder, and from those in it, but files of code."""

    def finder(folder: str) -> FileFinder:
        if not Path(folder).is_relative_to(bundle):
            raise ImportError(f"{folder}: is left to other finders.")
        return FileFinder(folder, (Uncached, SOURCE_SUFFIXES))

    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.clear()


@contextmanager
def spawned_compile_in(folder: Path) -> Iterator[None]:
    """Let processes that this one spawns, as beside a GPU, keep what they compile in a folder, and run nothing older."""
    before = os.environ.get(PREFIX)
    os.environ[PREFIX] = str(folder)
    try:
        yield
    finally:
        del os.environ[PREFIX]
        if before is not None:
            os.environ[PREFIX] = before
