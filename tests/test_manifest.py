"""The hashes of a released bundle: what was changed, is missing or was added is named, and nothing of it is loaded."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.models.finding import find_models
from scripts import manifest
from scripts.bundle import bundle_root
from scripts.manifest import SUMS, check_manifest, renew, sums, write_manifest
from scripts.weights import replace_weights
from small_bundle import write_small_bundle


@pytest.fixture
def released(tmp_path: Path) -> Path:
    bundle = tmp_path / "a bundle"
    files = {
        name: f"what {name} says"
        for name in ("LICENSE", "configs/inference.json", "models/model.pt", "scripts/__init__.py", "scripts/a/b.py")
    }
    for name, text in files.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(text)
    (bundle / SUMS).write_text(sums({name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}))
    return bundle


def test_the_hashes_are_those_of_sha256sum(released: Path) -> None:
    lines = (released / SUMS).read_text().splitlines()
    assert lines[0] == f"{hashlib.sha256(b'what LICENSE says').hexdigest()}  LICENSE"
    assert [line[66:] for line in lines] == sorted(line[66:] for line in lines) and len(lines) == 5
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "--strict", SUMS], cwd=released, check=True)
    before = (released / SUMS).read_bytes()
    assert write_manifest(released).read_bytes() == before


def test_a_bundle_that_is_worked_on_has_none(tmp_path: Path) -> None:
    assert check_manifest(tmp_path) is None
    assert check_manifest(bundle_root()) is None


def test_an_unchanged_bundle_passes_with_what_a_run_leaves_in_it(released: Path) -> None:
    for name in (
        "cache/x.pt",
        "scripts/__pycache__/a.pyc",
        "output/p1/result.json",
        "models/model-20260101T000000Z.pt",
    ):
        (released / name).parent.mkdir(parents=True, exist_ok=True)
        (released / name).touch()
    assert check_manifest(released) == 5


@pytest.mark.parametrize("name", ["LICENSE", "models/model.pt", "configs/inference.json", "scripts/a/b.py"])
def test_a_changed_or_missing_file_is_named(released: Path, name: str) -> None:
    content = bytearray((released / name).read_bytes())
    content[0] ^= 1
    (released / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"a bundle: is not as it was released: {name} was changed. Unpack"):
        check_manifest(released)
    (released / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        check_manifest(released)


@pytest.mark.parametrize(
    "name",
    [
        *("configs/other.json", "scripts/c.py", "scripts/__init__.pyc"),
        *("torch.py", "nibabel.pyc", "x.pth", ".x.pth"),
        *("monai/__init__.py", "monai/__init__.pyc", "cucim/skimage.py"),
    ],
)
def test_code_that_was_added_is_named(released: Path, name: str) -> None:
    (released / name).parent.mkdir(parents=True, exist_ok=True)
    (released / name).touch()
    with pytest.raises(ValueError, match=f"{name} was added"):
        check_manifest(released)


@pytest.mark.parametrize(
    ("link", "named"), [("einops", "einops/__init__.py"), ("scripts/extra", "scripts/extra/__init__.py")]
)
def test_code_behind_a_link_is_named(released: Path, tmp_path: Path, link: str, named: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").touch()
    (released / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{named} was added. Unpack"):
        check_manifest(released)


def test_folders_of_results_may_be_links_and_links_may_lead_round(released: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "p1").mkdir(parents=True)
    (tmp_path / "disk" / "p1" / "result.json").touch()
    (tmp_path / "disk" / "round").symlink_to(released)
    for name in ("output", "runs"):
        (released / name).symlink_to(tmp_path / "disk")
    assert check_manifest(released) == 5


@pytest.mark.parametrize("content", [b"no hash", b"\xff\xfe"])
def test_damaged_hashes_are_refused(released: Path, content: bytes) -> None:
    (released / SUMS).write_bytes(content)
    with pytest.raises(ValueError, match="SHA256SUMS: is damaged"):
        check_manifest(released)


def test_weights_that_were_trained_here_are_entered(released: Path, tmp_path: Path) -> None:
    """Those that take the place of others, and those of a model that had none."""
    for name in ("models/model.pt", "models/chest/model.pt"):
        (released / name).parent.mkdir(exist_ok=True)
        (tmp_path / "new.pt").write_text(f"better {name}")
        replace_weights(tmp_path / "new.pt", released / name)
    assert check_manifest(released) == 6
    (released / "models/chest/model.pt").write_text("worse")
    with pytest.raises(ValueError, match="models/chest/model.pt was changed"):
        check_manifest(released)


def test_what_is_written_anew_leaves_out_what_runs_change(released: Path) -> None:
    """A file that is listed, one that may be run and weights are entered, results and trainings not."""
    (released / "LICENSE").write_text("another")
    (released / "scripts/a/b.py").unlink()
    new = ("configs/knee.json", "own.py", "models/knee/model.pt")
    for name in (*new, "output/p1/result.json", "runs/a/model.pt", "notes.txt"):
        (released / name).parent.mkdir(parents=True, exist_ok=True)
        (released / name).touch()
    listed = [line[66:] for line in write_manifest(released).read_text().splitlines()]
    assert listed == sorted({"LICENSE", "configs/inference.json", "models/model.pt", "scripts/__init__.py", *new})
    shutil.rmtree(released / "runs")
    (released / "output/p1/result.json").write_text("{}")
    assert check_manifest(released) == 7


def test_of_two_that_are_entered_at_once_none_is_lost(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(text: object) -> str:
        time.sleep(0.02)
        return sums(text)  # type: ignore[arg-type]

    monkeypatch.setattr(manifest, "sums", slowly)
    paths = [released / "models" / f"{n}.pt" for n in range(8)]
    for path in paths:
        path.write_text(path.name)
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(renew, paths))
    assert check_manifest(released) == 5 + len(paths)
    assert not list(released.glob(".*.part"))


def test_the_app_loads_nothing_of_a_changed_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "path_hooks", [*sys.path_hooks])
    bundle = write_small_bundle(tmp_path)
    write_manifest(bundle)
    assert find_models(bundle)
    marker = tmp_path / "ran"
    with (bundle / "scripts" / "manifest.py").open("a") as file:  # also what would do the checking
        file.write(f"\nopen({str(marker)!r}, 'w')\n")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(bundle)])
    with pytest.raises(ValueError, match=r"scripts/manifest\.py was changed"):
        find_models(bundle)
    assert str(bundle) not in sys.path and not marker.exists()


def test_the_command(released: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.manifest", *arguments, str(released)]
        return subprocess.run(command, cwd=bundle_root(), capture_output=True, text=True, check=False)

    assert (done := run("check")).returncode == 0 and "all 5 files are as they were released" in done.stdout
    (released / "configs" / "inference.json").write_text("{}")
    refused = run("check")
    assert refused.returncode == 1 and "configs/inference.json was changed" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run("write").returncode == 0 and run("check").returncode == 0
    (released / SUMS).unlink()
    assert "only a released bundle has one" in run("check").stderr
