"""Write the locks beside this file anew, the newest that pyproject.toml allows: ``make lock``.

``locked.txt`` has the project and its tests, but for torch. That is in ``cpu.txt``, PyTorch's build without CUDA, where pip
finds it on this machine; and in ``cuda.txt``, the registry's, with all that it needs on a GPU. ``monailabel.txt`` is installed
without its own requirements. ``tools.txt`` has what `make lock`, `make audit` and `make sbom` run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--universal", "--python-version", "3.11"]
FORM = ["--generate-hashes", "--no-annotate", "--no-header"]
PIP = [
    sys.executable,
    "-m",
    "pip",
    "install",
    "--quiet",
    "--dry-run",
    "--ignore-installed",
    "--no-deps",
    "--report",
    "-",
]
FOR = ["--only-binary=:all:", "--platform", "manylinux_2_28_x86_64", "--target", "."]
CUDA = ("cuda-", "nvidia-", "torch==", "triton")


def locked(*options: str) -> list[str]:
    """The packages that uv resolves, each with its hashes, in the lines of a requirements file."""
    text = subprocess.run([*UV, *FORM, *options], cwd=HERE.parent, check=True, capture_output=True, text=True).stdout
    return [package for package in re.split(r"^(?=\w)", text, flags=re.MULTILINE) if package]


def cpu_build(torch: str) -> list[str]:
    """PyTorch without CUDA, with the hashes of the files that pip finds here for each Python; nothing if it finds none."""
    pin, hashes = f"{torch}+cpu", []
    for python in ("3.11", "3.12"):
        found = subprocess.run([*PIP, *FOR, "--python-version", python, pin], check=False, capture_output=True)
        if found.returncode == 0:
            hashes.append(json.loads(found.stdout)["install"][0]["download_info"]["archive_info"]["hashes"]["sha256"])
    return [pin + "".join(f" \\\n    --hash=sha256:{digest}" for digest in hashes) + "\n"] if hashes else []


def main() -> None:
    """Write them."""
    packages = locked("pyproject.toml", "--extra", "app", "--extra", "dev")
    cuda = [package for package in packages if package.startswith(CUDA)]
    locks = {
        "locked": [package for package in packages if package not in cuda],
        "cpu": cpu_build(next(package.split()[0] for package in cuda if package.startswith("torch=="))),
        "cuda": cuda,
        "monailabel": locked("--group", "monailabel", "--no-deps"),
        "tools": locked("--group", "tools"),
    }
    for name, content in locks.items():
        if content:
            (HERE / f"{name}.txt").write_text("# written by make lock\n" + "".join(content), "utf-8")
        else:
            print(
                f"{name}.txt: left as it is; pip finds no such build here. PIP_EXTRA_INDEX_URL names PyTorch's index."
            )


if __name__ == "__main__":
    main()
