"""What Python compiled before is not run: no hash covers it."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path

import pytest

from lib.models.compiling import PREFIX, compile_anew
from lib.models.finding import find_models
from scripts.manifest import SUMS, write_manifest
from small_bundle import write_small_bundle

FORGED = py_compile.PycInvalidationMode.UNCHECKED_HASH
"""Python takes such a file for the code beside it without a look at that one."""


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """What importing goes by, given back afterwards."""
    for name in ("path", "path_hooks"):
        monkeypatch.setattr(sys, name, [*getattr(sys, name)])
    monkeypatch.setattr(sys, "path_importer_cache", {})


@pytest.mark.usefixtures("imports")
@pytest.mark.parametrize(("released", "says"), [(True, "released"), (False, "forged")])
def test_of_a_released_bundle_the_code_itself_runs(
    released: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bundle that is worked on nothing is checked."""
    monkeypatch.setenv(PREFIX, str(tmp_path / "compiled"))
    bundle = write_small_bundle(tmp_path)
    code, forged = bundle / "some_code.py", tmp_path / "forged.py"
    code.write_text("SAYS = 'released'")
    forged.write_text("SAYS = 'forged'")
    write_manifest(bundle)
    py_compile.compile(str(forged), importlib.util.cache_from_source(str(code)), invalidation_mode=FORGED)
    if not released:
        (bundle / SUMS).unlink()
    assert find_models(bundle, "cpu")
    try:
        assert importlib.import_module("some_code").SAYS == says
    finally:
        del sys.modules["some_code"]


@pytest.mark.usefixtures("imports")
def test_what_is_spawned_compiles_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, however many bundles and trainings there are."""
    monkeypatch.setenv(PREFIX, "/elsewhere")
    compile_anew(tmp_path)
    assert os.environ[PREFIX] == "/elsewhere"
    monkeypatch.delenv(PREFIX)
    compile_anew(tmp_path)
    compile_anew(tmp_path)
    command = [sys.executable, "-c", "import sys; print(sys.pycache_prefix)"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert said == os.environ[PREFIX] and os.stat(said).st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("imports")
def test_an_environment_in_the_bundles_folder_stays_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX, str(tmp_path))
    site = tmp_path / "bundle" / ".venv" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    (site / f"compiled{EXTENSION_SUFFIXES[0]}").touch()
    sys.path.insert(0, str(site))
    compile_anew(tmp_path / "bundle")
    found = importlib.util.find_spec("compiled")
    assert found is not None and isinstance(found.loader, ExtensionFileLoader)
