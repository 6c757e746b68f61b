"""The commands of docs/trust.md sign a bundle with a throw-away key, and tell a changed one."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from test_readme import ROOT, SIGNING, commands

TOOL = ROOT / ".tools" / "bin" / "model_signing"
LINES = [line for line in commands(ROOT / "docs" / "trust.md") if line.startswith(SIGNING)]


def test_all_steps_are_documented() -> None:
    assert [line.split()[0].rpartition("/")[2] for line in LINES] == ["openssl", "openssl", *["model_signing"] * 2]


@pytest.mark.skipif(not TOOL.is_file() or not shutil.which("openssl"), reason="`make sbom` installs the tools")
def test_a_signature_holds_until_a_file_changes(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "scripts").mkdir(parents=True)
    for name in ("LICENSE", "scripts/a.py"):
        (bundle / name).write_text(f"what {name} says")

    def run(line: str) -> int:
        command = [str(ROOT / word) if word.startswith(".tools/") else word for word in shlex.split(line)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False).returncode

    assert [run(line) for line in LINES] == [0, 0, 0, 0]
    verify = LINES[-1]
    (bundle / "scripts" / "b.py").write_text("added")
    assert run(verify) != 0
    (bundle / "scripts" / "b.py").unlink()
    assert run(verify) == 0
    (bundle / "scripts" / "a.py").write_text("changed")
    assert run(verify) != 0
    # and another key is not the signer's
    (bundle / "scripts" / "a.py").write_text("what scripts/a.py says")
    assert run(verify) == 0
    assert [run(line) for line in LINES[:2]] == [0, 0]
    assert run(verify) != 0
