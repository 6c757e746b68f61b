"""The code of a released bundle, compiled from the files that its hashes cover.

A run leaves in ``__pycache__`` what Python compiled. No hash covers that, and Python takes it for the code beside it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
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
    """Let this process import nothing from a bundle's folder, and from packages in it, but files of code.

    Processes that it spawns, as beside a GPU, keep what they compile in a folder of their own, and run nothing older.
    """

    def finder(folder: str) -> FileFinder:
        inside = Path(folder).is_relative_to(bundle)
        # no code of the bundle lies where no package can, but an environment may, such as .venv
        if not inside or not all(map(str.isidentifier, Path(folder).relative_to(bundle).parts)):
            raise ImportError(f"{folder}: is left to other finders.")
        return FileFinder(folder, (Uncached, SOURCE_SUFFIXES))

    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.clear()
    if PREFIX not in os.environ:
        os.environ[PREFIX] = tempfile.mkdtemp(prefix="compiled-")
        atexit.register(shutil.rmtree, os.environ[PREFIX], ignore_errors=True)
