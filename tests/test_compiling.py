"""What Python compiled before is not run: no hash covers it."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from lib.models.compiling import PREFIX, spawned_compile_in
from lib.models.finding import find_models
from scripts.manifest import SUMS, write_manifest
from small_bundle import write_small_bundle

FORGED = py_compile.PycInvalidationMode.UNCHECKED_HASH
"""Python takes such a file for the code beside it without a look at that one."""


@pytest.mark.parametrize(("released", "says"), [(True, "released"), (False, "forged")])
def test_of_a_released_bundle_the_code_itself_runs(
    released: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bundle that is worked on nothing is checked."""
    bundle = write_small_bundle(tmp_path)
    code, forged = bundle / "some_code.py", tmp_path / "forged.py"
    code.write_text("SAYS = 'released'")
    forged.write_text("SAYS = 'forged'")
    write_manifest(bundle)
    py_compile.compile(str(forged), importlib.util.cache_from_source(str(code)), invalidation_mode=FORGED)
    if not released:
        (bundle / SUMS).unlink()
    for name in ("path", "path_hooks"):
        monkeypatch.setattr(sys, name, [*getattr(sys, name)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert find_models(bundle, "cpu")
    try:
        assert importlib.import_module("some_code").SAYS == says
    finally:
        del sys.modules["some_code"]


@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_what_is_spawned_compiles_anew(before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PREFIX, raising=False)
    if before:
        monkeypatch.setenv(PREFIX, before)
    command = [sys.executable, "-c", "import sys; print(sys.pycache_prefix)"]
    with spawned_compile_in(tmp_path / "compiled"):
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(tmp_path / "compiled")
    assert os.environ.get(PREFIX) == before
