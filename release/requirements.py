"""``python -m release.requirements [tools]``: what an environment needs to run a zip, a line a package, as pip takes them.

By default the packages that the zip's metadata states; ``tools`` are those that MONAI's tools want beside them.
"""

from __future__ import annotations

import json
import sys
import tomllib

from .__main__ import ROOT

CORE = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}


def requirements() -> list[str]:
    """Each at the version that the metadata names."""
    metadata = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text("utf-8"))
    packages = {name: metadata[key] for name, key in CORE.items()} | metadata["required_packages_version"]
    return [f"{name}=={version}" for name, version in packages.items()]


def tools() -> list[str]:
    """Each as pyproject.toml pins it: its group ``verify``, and what writes ONNX."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    dev = pyproject["project"]["optional-dependencies"]["dev"]
    return [
        *pyproject["dependency-groups"]["verify"],
        *(pin for pin in dev if pin.startswith(("onnx==", "onnxscript=="))),
    ]


if __name__ == "__main__":
    print("\n".join(tools() if "tools" in sys.argv else requirements()))
