"""``python -m release.requirements [tools]``: what an environment needs to run a zip, a line a package, as pip takes them.

By default the packages that the zip's metadata requires; ``tools`` are its extra ones, and those that MONAI's tools want.
"""

from __future__ import annotations

import json
import sys
import tomllib
from typing import Any

from .__main__ import ROOT

CORE = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}


def requirements() -> list[str]:
    """Each at the version that the metadata names."""
    metadata = _metadata()
    return _pinned({name: metadata[key] for name, key in CORE.items()} | metadata["required_packages_version"])


def tools() -> list[str]:
    """The extra ones likewise, and the group ``verify`` of pyproject.toml."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return [*_pinned(_metadata()["extra_packages_version"]), *pyproject["dependency-groups"]["verify"]]


def _metadata() -> dict[str, Any]:
    return dict(json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text("utf-8")))


def _pinned(packages: dict[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in packages.items()]


if __name__ == "__main__":
    print("\n".join(tools() if "tools" in sys.argv else requirements()))
