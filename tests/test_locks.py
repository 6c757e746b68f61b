"""The locks in requirements/ hold what pyproject.toml pins, each with hashes; the citation is of this version.

The ends of its ranges are compared in test_project.py.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
ADVICE = "run make lock"


def versions(name: str) -> dict[str, str]:
    """The locked packages with their versions, of which each has a hash."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    found = {}
    for package in re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", package), package
        key, _, version = package.split()[0].partition("==")
        found[key] = version
    return found


def pins(requirements: list[str]) -> dict[str, str]:
    return dict(r.lower().replace("_", "-").split("==") for r in requirements if "==" in r)


def test_the_locks_hold_the_pins() -> None:
    extras = [requirement for extra in EXTRAS.values() for requirement in extra]
    pinned = pins([*PYPROJECT["project"]["dependencies"], *extras])
    torch = pinned.pop("torch")
    assert pinned.items() <= versions("locked").items(), ADVICE
    assert versions("cuda")["torch"] == torch and versions("cpu") == {"torch": f"{torch}+cpu"}, ADVICE
    assert "torch" not in versions("locked") and not any(name.startswith("nvidia") for name in versions("locked"))


@pytest.mark.parametrize("group", ["monailabel", "tools"])
def test_the_groups_are_locked(group: str) -> None:
    assert pins(PYPROJECT["dependency-groups"][group]).items() <= versions(group).items(), ADVICE


def test_the_citation_has_what_its_schema_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert str(citation["version"]) == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"]
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys() and paper["doi"].startswith("10.")
    for author in [*citation["authors"], *paper["authors"]]:
        assert "name" in author or {"family-names", "given-names"} <= author.keys()
