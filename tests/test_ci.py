"""The workflow does what .ci/run does, on every Python that the project allows; no test runs twice, and none is left out."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from conftest import SLOW
from test_locks import PYPROJECT, ROOT

WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
RUN = (ROOT / ".ci" / "run").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def test_the_workflow_runs_it_on_every_python() -> None:
    job = WORKFLOW["jobs"]["ci"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    allowed = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert job["strategy"]["matrix"]["python"] == [f"3.{n}" for n in range(8, 20) if f"3.{n}" in allowed]
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_every_action_is_one_commit() -> None:
    """A tag can be moved to other code, a commit can't."""
    used = re.findall(r"uses: (.*)", (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
    assert len(used) == len(steps) > 0
    assert [use for use in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []


def test_the_zips_are_verified_on_the_oldest_python_of_bundles() -> None:
    """The project runs on another, as it doesn't allow that one."""
    _, setup, run = WORKFLOW["jobs"]["zips"]["steps"]
    oldest = PYPROJECT["tool"]["mypy"]["python_version"]
    assert setup["with"]["python-version"].split() == [oldest, "3.11"]
    assert run["run"] == f"make verify PYTHON=python3.11 ZIP_PYTHON=python{oldest}"
    command = ["make", "--dry-run", *run["run"].split()[1:]]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f'"python{oldest}" -m venv --clear build/metadata-python{oldest}\n' in said
    assert set(re.findall(r"--python (\S+)", said)) == {f"build/metadata-python{oldest}/bin/python"}


def test_only_the_zips_of_this_release_are_verified(tmp_path: Path) -> None:
    """`make bundle` with the release replaced by the writing of one file; an older zip is there."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "old.zip").touch()
    (tmp_path / "python").write_text("#!/bin/sh\ntouch dist/new.zip\n")
    (tmp_path / "python").chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), "bundle", f"BIN={tmp_path}", "READY="]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert [path.name for path in (tmp_path / "dist").iterdir()] == ["new.zip"]


def test_every_test_runs_once() -> None:
    assert re.findall(r"^make (\S+)$", RUN, re.MULTILINE) == [
        "viewers",
        "sbom",
        "test-all",
        "demo",
        "demo-chest",
        "demo-brats",
        "verify",
    ]
    runs = re.findall(r"-m pytest (.*)$", MAKEFILE, re.MULTILINE)
    assert runs == ['-m "not slow" --numprocesses logical --dist loadfile', "-m slow"]
    assert re.search(r"^test-all: test ", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("name", SLOW)
def test_what_is_listed_as_slow_is_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert f"def {test}" in (ROOT / "tests" / file).read_text("utf-8")


def test_the_time_that_tests_take_is_shown() -> None:
    assert "--durations=" in PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]


def test_the_time_that_each_section_takes_is_shown(tmp_path: Path) -> None:
    """With another `make`, which takes two seconds for the demonstration and none for the rest."""
    stub = tmp_path / "make"
    stub.write_text('#!/bin/sh\n[ "$1" != demo ] || sleep 2\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run")], env=environment, capture_output=True, text=True, check=True
    )
    took = dict(re.findall(r"^===== make (\S+) took (\d+) s", said.stdout, re.MULTILINE))
    assert list(took) == re.findall(r"^make (\S+)$", RUN, re.MULTILINE)
    assert int(took["verify"]) < 2 <= int(took["demo"])
