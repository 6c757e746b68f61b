"""``python -m release.requirements``: the packages that a zip's metadata states, a line each, as pip takes them."""

from __future__ import annotations

import json

from .__main__ import ROOT

CORE = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}


def requirements() -> list[str]:
    """Each at the version that the metadata names."""
    metadata = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text("utf-8"))
    packages = {name: metadata[key] for name, key in CORE.items()} | metadata["required_packages_version"]
    return [f"{name}=={version}" for name, version in packages.items()]


if __name__ == "__main__":
    print("\n".join(requirements()))
