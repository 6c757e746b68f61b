"""docs/deployment.md: the service runs as its unit says, the container's recipe names what is there, Orthanc takes its file."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from monailabel.config import Settings
from monailabel.main import Main
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from lib.demonstration.orthanc import find_orthanc
from lib.demonstration.servers import running
from machine import free_port
from scripts.running.__main__ import SPINS
from synthetic import write_head
from test_readme import TARGETS, blocks

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "apps" / "anomaly_detection"
PAGE = ROOT / "docs" / "deployment.md"
UNIT = APP / "anomaly-detection.service"
DOCKERFILE = APP / "Dockerfile"
INSTALLED = "/opt/anomaly-detection"
VERSION = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text("utf-8"))["version"]


def settings(text: str) -> dict[str, list[str]]:
    """The settings of a unit, each with all its values."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, with their arguments."""
    return re.findall(r"^([A-Z]+) (.*)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)


def environment(pairs: list[str]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in pairs)


def test_the_service_starts_without_rights_and_writes_into_its_folders_alone(tmp_path: Path) -> None:
    """As systemd runs it: its commands, its environment and nothing else; nobody can train, and SIGTERM is a good end."""
    state, cache, studies = (tmp_path / name for name in ("state", "cache", "studies"))
    for folder in (state / "app", cache, studies):
        folder.mkdir(parents=True)
    write_head(studies, name="head")
    text = (
        UNIT.read_text("utf-8").replace("%S/anomaly-detection", str(state)).replace("%C/anomaly-detection", str(cache))
    )
    text = text.replace(f"{INSTALLED}/.venv/bin/python", sys.executable).replace(INSTALLED, str(ROOT))
    port = free_port()
    for old, new in (("http://127.0.0.1:8042/dicom-web", str(studies)), ("--port 8000", f"--port {port}")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    unit = settings(text)
    env = {"PATH": "/usr/bin:/bin", **environment(unit["Environment"])}
    before = written(ROOT / "apps") | written(ROOT / "bundle")
    [prepare], [start] = unit["ExecStartPre"], unit["ExecStart"]
    for _ in range(2):  # at every start
        subprocess.run(shlex.split(prepare), cwd=state, env=env, check=True)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(shlex.split(start), cwd=state, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        info = up(f"{url}/info/", process).json()
        assert info["trainers"] == {} and "lesion_mask" in info["models"] and "not for clinical use" in info["name"]
        assert info["datastore"]["total"] == 2  # the head, and its mask
        assert requests.post(f"{url}/train/classifier", json={}, timeout=60).status_code >= 400
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=int(unit["TimeoutStopSec"][0]))
    assert status == -signal.SIGTERM  # which systemd takes for a good end
    assert (state / "app" / "logs" / "app.log").is_file()
    assert written(ROOT / "apps") | written(ROOT / "bundle") == before


def written(folder: Path) -> set[tuple[str, int]]:
    """All files but compiled ones, with the times at which they were written."""
    return {(str(p), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}


def up(url: str, process: subprocess.Popen[bytes]) -> requests.Response:
    """Its answer, once it is up."""
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        try:
            return requests.get(url, timeout=10)
        except requests.ConnectionError:
            time.sleep(0.3)
    pytest.fail(f"{url} does not answer.")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """No unknown setting, and little is left that an attacker could use."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text("utf-8").replace(f"{INSTALLED}/.venv/bin/python", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0 and unit.name not in verified.stderr, verified.stderr
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_service_and_container_run_the_same() -> None:
    unit, recipe = settings(UNIT.read_text("utf-8")), instructions()
    [entry, command] = (json.loads(value) for name, value in recipe if name in ("ENTRYPOINT", "CMD"))
    [start] = unit["ExecStart"]
    assert entry == ["python", "-m"] and shlex.split(start)[1:] == ["-m", *command]
    parsed = Main().args_parser().parse_args(command[1:])
    assert (parsed.action, parsed.host) == ("start_server", "127.0.0.1")
    theirs = environment([value for instruction, value in recipe if instruction == "ENV"])
    ours = environment(unit["Environment"])
    assert {*ours} - {"HOME"} == {*theirs} - {"PATH"}
    assert {*ours} - {"HOME", "GOMP_SPINCOUNT"} <= Settings.model_fields.keys()
    assert ours["MONAI_LABEL_TASKS_TRAIN"] == theirs["MONAI_LABEL_TASKS_TRAIN"] == "false"
    assert ours["GOMP_SPINCOUNT"] == theirs["GOMP_SPINCOUNT"] == str(SPINS)


@pytest.mark.parametrize("path", [UNIT, DOCKERFILE, PAGE], ids=lambda p: p.name)
def test_what_is_named_of_the_project_is_there(path: Path) -> None:
    """Files under /opt, of this version where a version is named, requirements, and what make makes."""
    text = path.read_text("utf-8")
    for version, name in re.findall(rf"{INSTALLED}(?:-([\d.]+\d))?(?:/([\w./-]+\w))?", text):
        assert version in ("", VERSION)
        assert name.startswith(".venv") or (ROOT / name).exists(), name
    for name in re.findall(r"requirements/[\w.]+", text):
        assert (ROOT / name).is_file(), name
    for target in re.findall(r"(?:`|RUN |sudo |wheels )make (?:-C \S+ )?([^\s`]+)", text):
        assert target in {*TARGETS, ".venv/.ready"}, target


def test_the_page_is_of_this_version() -> None:
    text = PAGE.read_text("utf-8")
    assert set(re.findall(rf"{INSTALLED}-([\d.]+\d)", text)) == {VERSION}
    # by its tag, as a branch moves on
    assert f"git clone --branch v{VERSION} URL {INSTALLED}-{VERSION}\n" in text


def test_the_environment_file_has_the_names_that_the_app_reads() -> None:
    [block] = blocks(PAGE, "ini")
    assert environment(block.splitlines()).keys() <= Settings.model_fields.keys()
    assert set(re.findall(r"MONAI_LABEL_\w+", PAGE.read_text("utf-8"))) <= Settings.model_fields.keys()


@pytest.mark.skipif(not find_orthanc() and os.environ.get("CI") != "true", reason="`make viewers` installs Orthanc")
def test_orthanc_takes_its_file_and_who_may_send_is_named_there(tmp_path: Path) -> None:
    """DICOMweb for who has the password; DICOM from the AE title that is named, to that of this Orthanc."""
    found = find_orthanc()
    assert found is not None
    [block] = blocks(PAGE, "json")
    config = json.loads(block)
    assert config["Plugins"] == ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"]
    places = {
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "Plugins": [str(found[1])],
    }
    http, dicom = free_port(), free_port()
    (tmp_path / "orthanc.json").write_text(json.dumps(config | places | {"HttpPort": http, "DicomPort": dicom}))
    [(user, password)] = config["RegisteredUsers"].items()
    url = f"http://127.0.0.1:{http}/dicom-web/studies"
    login = {"name": user, "password": password}
    command = [str(found[0]), str(tmp_path / "orthanc.json")]
    with running(command, name="Orthanc", ready=url, log=tmp_path / "log", cwd=tmp_path, login=login):
        assert requests.get(url, timeout=10).status_code == 401
        assert requests.get(url, auth=(user, password), timeout=10).json() == []
        known = config["DicomModalities"]["pacs"]["AET"]
        for calling, called, taken in (
            (known, config["DicomAet"], True),
            ("OTHER", config["DicomAet"], False),
            (known, "OTHER", False),
        ):
            client = AE(calling)
            client.add_requested_context(Verification)
            association = client.associate("127.0.0.1", dicom, ae_title=called)
            answered = association.is_established and association.send_c_echo().get("Status") == 0x0000
            association.abort()
            assert answered == taken, (calling, called)
