"""Nothing leaves this machine: commands and server run where every address but loopback is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests

from lib.demonstration.label_server import label_server
from machine import free_port
from small_bundle import write_small_bundle
from synthetic import write_head
from test_app import SLICER
from tiny_run import datalist, summary
from training_data import write_datalist

REFUSE = '''"""Imported by every Python that has this folder on its path."""

import os
import sys


def refuse(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = args
    else:
        return
    host = address[0] if isinstance(address, tuple) else None
    host = host.decode() if isinstance(host, bytes) else host
    if host is None or host in ("", "localhost", "::1", "0.0.0.0") or host.startswith("127."):
        return  # this machine, by a name or a path
    with open(os.environ["REFUSED"], "a") as log:
        log.write(f"{event} {host} {sys.argv}\\n")
    raise OSError(f"no network in this test: {host}")


sys.addaudithook(refuse)
'''


class Offline:
    """Runs Python without a network, and remembers what was refused."""

    def __init__(self, folder: Path) -> None:
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(REFUSE)
        self.log = folder / "refused.log"
        self.env = {"PYTHONPATH": str(folder / "hook"), "REFUSED": str(self.log), "OMP_NUM_THREADS": "1"}

    def refused(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        env = {**os.environ, **self.env}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=170, check=False)


@pytest.fixture
def offline(tmp_path: Path) -> Offline:
    return Offline(tmp_path)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import urllib.request; urllib.request.urlopen('http://example.com', timeout=1)",
        "import requests; requests.get('http://example.com', timeout=1)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
    ],
)
def test_another_address_is_refused_there(code: str, offline: Offline, tmp_path: Path) -> None:
    done = offline.run("-c", code, cwd=tmp_path)
    assert done.returncode == 1 and "no network in this test" in done.stderr
    assert offline.refused()


def test_inference_and_evaluation_need_no_network(offline: Offline, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path)
    items: list[dict[str, Any]] = [write_head(tmp_path, name=f"p{n}") for n in range(4)]
    for n, item in enumerate(items):
        image = nib.load(item["image"])
        mask = np.zeros(image.shape, np.uint8)
        mask[18:22, 18:22, 1:-1] = n % 2
        nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / f"mask{n}.nii.gz")
        item |= {"mask": str(tmp_path / f"mask{n}.nii.gz"), "label": n % 2}
    sections = {"validation": items[:2], "test": items[2:]}
    named = {k: json.loads(Path(datalist(tmp_path, v)).read_text()) for k, v in sections.items()}
    (tmp_path / "datalist.json").write_text(json.dumps(named))
    configs = bundle / "configs"
    given = ["--datalist", str(tmp_path / "datalist.json")]
    done = offline.run(
        *("-m", "monai.bundle", "run", "--config_file", str(configs / "inference.json"), *given),
        *("--split", "test", "--output_dir", str(tmp_path / "out")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [volume["status"] for volume in summary(tmp_path / "out").values()] == ["ok", "ok"]
    files = f"['{configs / 'inference.json'}','{configs / 'evaluate.json'}']"
    done = offline.run(
        *("-m", "monai.bundle", "run", "--config_file", files, *given, "--cache_dir", str(tmp_path / "cache")),
        *("--output_dir", str(tmp_path / "evaluation")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "evaluation" / "results.json").read_text())["failed"] == {}
    assert offline.refused() == ""


def test_training_calibration_and_export_need_no_network(offline: Offline, tmp_path: Path) -> None:
    configs = write_small_bundle(tmp_path) / "configs"
    given = ["--datalist", str(write_datalist(tmp_path)), "--cache_dir", str(tmp_path / "cache")]
    short = "--max_images 8 --epoch_images 8 --batch_size 4 --val_interval 1 --compile False".split()
    for overlays, options, written in (
        (["train"], [*given, *short, "--run_dir", str(tmp_path / "run")], tmp_path / "run" / "model.pt"),
        (["evaluate", "calibrate"], given, configs.parent / "models" / "weights.json"),
        (["export"], ["--output_dir", str(tmp_path / "exported")], tmp_path / "exported" / "student.onnx"),
    ):
        files = [str(configs / f"{name}.json") for name in ("inference", *overlays)]
        done = offline.run("-m", "monai.bundle", "run", "--config_file", repr(files), *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        assert written.is_file()
    assert offline.refused() == ""


def test_the_server_starts_and_answers_without_a_network(offline: Offline, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    write_head(studies, name="head")
    (studies / "head_brain.nii.gz").unlink()
    conf = {"bundle": str(write_small_bundle(tmp_path))}
    with label_server(str(studies), tmp_path / "server", free_port(), conf, offline.env) as url:
        params = {"params": json.dumps({**SLICER, "save_label": True})}
        answer = requests.post(f"{url}/infer/lesion_mask?image=head", data=params, timeout=120)
        assert answer.status_code == 200, answer.text
        page = requests.get(f"{url}/ohif/", timeout=10)
        # a browser may ask nobody else either
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert offline.refused() == ""
