"""The app's server between a browser that shows other pages, and a DICOM server that hangs, refuses or is not there."""

from __future__ import annotations

import base64
import contextvars
import http.client
import io
import json
import os
import re
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pydicom
import pytest
import requests
import torch
import uvicorn
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.utils.sessions import Sessions
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

import serve
from lib.demonstration.label_server import label_server
from lib.demonstration.mr_series import series_from_nifti
from lib.demonstration.servers import ServeError, running, watch
from lib.http.answers import without_paths
from lib.http.fields import json_object
from lib.http.guard import Guard
from lib.http.ohif import PICTURES
from lib.http.processes import SERVER
from lib.http.proxy import resource
from lib.models.abandoning import Abandoned, abandoned
from lib.models.declaration import FULL
from lib.models.fetching import fetch_bundle
from lib.models.finding import find_models
from machine import free_port
from main import AnomalyDetection
from scripts.errors import out_of_memory
from small_bundle import write_small_bundle
from synthetic import GRIDS, write_head

LOGIN = {"MONAI_LABEL_DICOMWEB_USERNAME": "reader", "MONAI_LABEL_DICOMWEB_PASSWORD": "a secret of the archive"}
TIMEOUT = 3
SLOW, HUNGRY = 3, 4
"""Uploads with so many slices take two seconds to prepare, or more memory than there is."""
TRAPS = f"""
import pathlib, time
from monai.transforms import MapTransform
import bright_brain

class Brightd(bright_brain.Brightd):
    def __call__(self, data):
        slices = data["image"].shape[-1]
        if slices == {SLOW}:
            with (pathlib.Path(__file__).parent / "slow").open("a") as file:
                file.write("x")
            time.sleep(2)
        if slices == {HUNGRY}:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: "
                               "you tried to allocate 7000000000000000 bytes. Error code 12 (Cannot allocate memory)")
        return super().__call__(data)
"""


@dataclass
class Archive:
    """A DICOM server with one series that keeps what it is asked, and hangs or refuses when it is told to."""

    files: list[Path]
    port: int = 0
    hang: threading.Event = field(default_factory=threading.Event)
    hang_store: threading.Event = field(default_factory=threading.Event)
    refuse_store: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.instances = [pydicom.dcmread(f) for f in self.files]
        self.series = str(self.instances[0].SeriesInstanceUID)
        self.study = str(self.instances[0].StudyInstanceUID)

    def found(self, path: str) -> bytes | None:
        """The answer to a search or a request for metadata."""
        query = parse_qs(urlsplit(path).query)
        path = urlsplit(path).path
        if not path.startswith("/dicom-web/"):
            return None
        if path.endswith(("/instances", "/metadata")):
            return json.dumps([i.to_json_dict() | {"7FE00010": {"vr": "OW"}} for i in self.instances]).encode()
        if query.get("Modality", ["MR"]) != ["MR"] or query.get("SeriesInstanceUID", [self.series]) != [self.series]:
            return b"[]"
        row = pydicom.Dataset()
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription", "PatientID"):
            setattr(row, name, self.instances[0].get(name))
        row.NumberOfSeriesRelatedInstances, row.NumberOfStudyRelatedInstances = len(self.files), len(self.files)
        return json.dumps([row.to_json_dict()]).encode()

    def multipart(self, files: list[Path]) -> tuple[bytes, str]:
        parts = [b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + f.read_bytes() + b"\r\n" for f in files]
        return b"".join(parts) + b"--edge--\r\n", 'multipart/related; type="application/dicom"; boundary=edge'


def handler(archive: Archive) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, content: bytes, kind: str, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            with suppress(OSError):  # who asked has gone
                self.wfile.write(content)

        def wait(self, event: threading.Event) -> None:
            while event.is_set():
                time.sleep(0.05)

        def do_GET(self) -> None:
            archive.asked.append(("GET", self.path, {k.lower(): v for k, v in self.headers.items()}, b""))
            self.wait(archive.hang)
            path = urlsplit(self.path).path
            if path.endswith("/rendered"):
                self.reply(200, b"\x89PNG", "image/png", Set_Cookie="session=of-the-archive", ETag='"7"')
            elif path.endswith("/thumbnail"):
                self.reply(401, b"who are you", "text/plain", WWW_Authenticate="Basic")
            elif re.search(r"/series/[0-9.]+(/instances/[0-9.]+)?$", path):
                files = archive.files
                if "/instances/" in path:
                    files = [f for f, i in zip(files, archive.instances, strict=True) if i.SOPInstanceUID in path]
                self.reply(200, *archive.multipart(files))
            elif (content := archive.found(self.path)) is not None:
                self.reply(200, content, "application/dicom+json")
            else:
                self.reply(404, b"", "text/plain")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            archive.asked.append(("POST", self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.wait(archive.hang_store)
            if archive.refuse_store.is_set():
                self.reply(409, b'{"00081198": {"vr": "SQ"}}', "application/dicom+json")
                return
            stored = pydicom.dcmread(io.BytesIO(body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]), force=True)
            taken, answer = pydicom.Dataset(), pydicom.Dataset()
            taken.ReferencedSOPClassUID = stored.get("SOPClassUID", "1.2.3")
            taken.ReferencedSOPInstanceUID = stored.get("SOPInstanceUID", "1.2.3")
            answer.ReferencedSOPSequence = [taken]
            self.reply(200, answer.to_json().encode(), "application/dicom+json")

    return Handler


@dataclass
class Server:
    """The label server in front of the archive."""

    url: str
    folder: Path
    archive: Archive

    def call(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        return requests.request(method, self.url + path, timeout=60, **kwargs)

    def raw(self, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """A request whose path no client tidies up."""
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(self.url).port or 0, timeout=60)
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()

    def upload(self, slices: int = 6, **params: Any) -> requests.Response:
        return self.call("POST", "/infer/lesion_mask?output=json", data=params_of(params), files=volume(self, slices))

    def temporary(self) -> set[str]:
        """What lies in the server's folder for temporary files."""
        return {p.name for p in (self.folder / "tmp").iterdir() if p.name.startswith("tmp")}

    def keeps_no_more_than(self, before: set[str]) -> bool:
        """Whether nothing else is there, soon: what belongs to an answer, or to one before, goes just after it was sent."""
        end = time.monotonic() + 5
        while not self.temporary() <= before and time.monotonic() < end:
            time.sleep(0.05)
        return self.temporary() <= before

    def said(self) -> str:
        """The server's log."""
        return (self.folder / "server.log").read_text()


def params_of(params: dict[str, Any]) -> dict[str, str]:
    return {"params": json.dumps(params)}


def volume(server: Server, slices: int) -> dict[str, tuple[str, bytes]]:
    path = server.folder / f"{slices}.nii.gz"
    if not path.exists():
        import nibabel as nib

        image = nib.load(write_head(server.folder, "plain", f"whole{slices}")["image"])
        nib.save(image.slicer[:, :, :slices], path)
    return {"file": (path.name, path.read_bytes())}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("a folder of the server")
    (folder / "tmp").mkdir()
    head = write_head(folder, "plain", "head")["image"]
    files = series_from_nifti(
        head, folder / "series", series_description="FLAIR", patient_id="P", patient_name="A^Patient"
    )
    archive = Archive(files)
    bundle = write_small_bundle(folder)
    (bundle / "bright.py").rename(bundle / "bright_brain.py")
    (bundle / "bright.py").write_text(TRAPS)
    env = {**LOGIN, "TMPDIR": str(folder / "tmp")}
    conf = {"bundle": str(bundle), "dicomweb_timeout": str(TIMEOUT)}
    conf |= {"allowed_hosts": "labels.example", "allowed_origins": "https://viewer.example/, https://other.example"}
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(archive)) as site:
        site.daemon_threads = True
        threading.Thread(target=site.serve_forever, daemon=True).start()
        archive.port = site.server_port
        dicomweb = f"http://127.0.0.1:{archive.port}/dicom-web"
        with label_server(dicomweb, folder, free_port(), conf, env) as url:
            yield Server(url, folder, archive)
        site.shutdown()


PASSED = {
    ("GET", "qido/studies"): "studies",
    ("GET", "studies/"): "studies",
    ("GET", "qido/series"): "series",
    ("GET", "qido/instances"): "instances",
    ("GET", "qido/studies/1.2/series"): "studies/1.2/series",
    ("GET", "qido/studies/1.2/series/3.4/instances"): "studies/1.2/series/3.4/instances",
    ("GET", "qido/studies/1.2/series/3.4/metadata"): "studies/1.2/series/3.4/metadata",
    ("GET", "wado/studies/1.2"): "studies/1.2",
    ("GET", "wado/studies/1.2/series/3.4/instances/5.6"): "studies/1.2/series/3.4/instances/5.6",
    ("GET", "wado/studies/1.2/series/3.4/instances/5.6/frames/1,2"): (
        "studies/1.2/series/3.4/instances/5.6/frames/1,2"
    ),
    ("GET", "wado/studies/1.2/series/3.4/instances/5.6/frames/1/rendered"): (
        "studies/1.2/series/3.4/instances/5.6/frames/1/rendered"
    ),
    ("GET", "wado/studies/1.2/thumbnail"): "studies/1.2/thumbnail",
    ("GET", "wado/studies/1.2/series/3.4/instances/5.6/bulk/7fe00010"): (
        "studies/1.2/series/3.4/instances/5.6/bulk/7fe00010"
    ),
    ("POST", "stow/studies"): "studies",
    ("POST", "wado/studies/1.2"): "studies/1.2",
}
STOPPED = [
    ("GET", ""),
    ("GET", "patients"),
    ("GET", "wado/studies/1.2/../../../tools/shutdown"),
    ("GET", "wado/../system"),
    ("GET", "wado/%2e%2e/system"),
    ("GET", "wado/..%2fsystem"),
    ("GET", "wado/..\\system"),
    ("GET", "studies/1.2/series/3.4/instances/5.6/file"),
    ("GET", "studies/a.b"),
    ("GET", "studies/1..2"),
    ("GET", "studies/.1"),
    ("GET", "studies/1.2\n"),
    ("GET", "studies/" + "1" * 65),
    ("GET", "http://other.example/studies"),
    ("GET", "studies?x"),
    ("POST", "tools/shutdown"),
    ("POST", "qido/series"),
    ("POST", "studies/1.2/series"),
    ("DELETE", "studies/1.2/series"),
]


def test_only_dicomweb_requests_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for (method, path), target in PASSED.items():
        assert resource(method, path) == target
    for method, path in STOPPED:
        assert resource(method, path) is None, path
    prefixes = {"QIDO": "q", "WADO": "w/rs", "STOW": "s"}
    for name, prefix in prefixes.items():
        monkeypatch.setattr(f"lib.http.proxy.settings.MONAI_LABEL_{name}_PREFIX", prefix)
    assert resource("GET", "qido/studies/1.2/series") == "q/studies/1.2/series"
    assert resource("GET", "qido/studies/1.2/metadata") == "w/rs/studies/1.2/metadata"
    assert resource("POST", "wado/studies") == "s/studies"


@pytest.mark.parametrize(
    "path",
    [
        "/proxy/dicom/..%2f..%2ftools/shutdown",
        "/proxy/dicom/wado/..%2f..%2fpatients",
        "/proxy/dicom/wado/%2e%2e/%2e%2e/patients",
        "/proxy/dicom/wado/%2e%2e%2f%2e%2e%2fpatients",
        "/proxy/dicom/wado/%252e%252e%252fpatients",
        "/proxy/dicom/wado/..%5cpatients",
        "/proxy/dicom/wado/../../patients",
        "/proxy/dicom/qido/patients",
        "/proxy/dicom/tools/shutdown",
        "/ohif/%2e%2e",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
def test_no_other_path_reaches_the_archive(server: Server, method: str, path: str) -> None:
    before = len(server.archive.asked)
    status, content = server.raw(method, path)
    assert 400 <= status < 500 and b"secret" not in content
    assert len(server.archive.asked) == before


def test_the_proxy_passes_the_query_and_keeps_the_password(server: Server) -> None:
    query = "PatientName=A%5EB*&includefield=00081030%2C00080060&includefield=all&limit=5&ModalitiesInStudy=MR%5CSEG&x=a+b%20c"
    headers = {"Accept": "application/dicom+json", "Cookie": "c=1", "Authorization": "Bearer of-this-server"}
    answer = server.call("GET", f"/proxy/dicom/qido/studies?{query}", headers=headers)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/dicom+json"
    method, path, sent, _ = server.archive.asked[-1]
    assert (method, path) == ("GET", f"/dicom-web/studies?{query}")
    assert sent["accept"] == "application/dicom+json" and "cookie" not in sent
    assert base64.b64decode(sent["authorization"].split()[1]).decode() == ":".join(LOGIN.values())
    assert answer.json()[0]["0020000D"]["Value"] == [server.archive.study]

    instance = f"studies/{server.archive.study}/series/{server.archive.series}/instances/1.2.3"
    answer = server.call("GET", f"/proxy/dicom/wado/{instance}/rendered?quality=90")
    assert (answer.content, answer.headers["content-type"]) == (b"\x89PNG", "image/png")
    assert server.archive.asked[-1][1] == f"/dicom-web/{instance}/rendered?quality=90"
    assert answer.headers["etag"] == '"7"' and "set-cookie" not in answer.headers
    # what the archive asks of this server is no business of the browser
    answer = server.call("GET", f"/proxy/dicom/wado/{instance}/thumbnail")
    assert answer.status_code == 502 and "does not let this server in" in answer.text
    assert "www-authenticate" not in answer.headers

    body = b"--edge\r\nContent-Type: application/dicom\r\n\r\nDICM\r\n--edge--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=edge'
    answer = server.call("POST", "/proxy/dicom/stow/studies", data=body, headers={"Content-Type": kind})
    assert answer.status_code == 200
    method, path, sent, content = server.archive.asked[-1]
    assert (method, path, sent["content-type"], content) == ("POST", "/dicom-web/studies", kind, body)
    assert LOGIN["MONAI_LABEL_DICOMWEB_PASSWORD"] not in server.said()


@pytest.mark.parametrize(
    ("line", "headers", "body"),
    [
        ("GET /proxy/dicom/studies?a=b#c", b"", b""),
        ("GET /proxy/dicom/studies", b"Accept: \xfc\r\n", b""),
        ("GET /proxy/dicom/studies", b"Content-Length: 5\r\n", b"hello"),
        (
            "POST /proxy/dicom/studies",
            b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            b"2\r\n\r\n\r\n0\r\n\r\n",
        ),
    ],
)
def test_requests_that_no_viewer_sends(server: Server, line: str, headers: bytes, body: bytes) -> None:
    port = urlsplit(server.url).port or 0
    head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(head + headers + b"\r\n" + body)
        status = int(connection.recv(100).split()[1])
    assert status == (502 if line.startswith("POST") else 200)
    if "#" in line:
        assert server.archive.asked[-1][1] == "/dicom-web/studies?a=b%23c"


def guarded(**options: Any) -> TestClient:
    methods = ["GET", "POST", "PUT", "DELETE"]
    hello = Route("/{path:path}", lambda request: PlainTextResponse("hello"), methods=methods)
    return TestClient(Guard(Starlette(routes=[hello]), max_bytes=100, **options), client=("127.0.0.1", 1))


@pytest.mark.parametrize(
    ("started_for", "host", "status"),
    [
        (None, "localhost:8000", 200),
        (None, "127.0.0.1:8000", 200),
        (None, "127.1.2.3", 200),
        (None, "[::1]:8000", 200),
        (None, "LOCALHOST", 200),
        (None, "labels.example:8000", 200),
        (None, "evil.example:8000", 400),
        (None, "localhost.evil.example", 400),
        (None, "127.0.0.1.evil.example", 400),
        (None, "10.0.0.1", 400),
        (None, "", 400),
        (None, "[", 400),
        ("10.0.0.1", "10.0.0.1:8000", 200),
        ("10.0.0.1", "10.0.0.2", 400),
        ("10.0.0.1", "localhost", 200),
        ("server.example", "server.example", 200),
        ("0.0.0.0", "10.0.0.2:8000", 200),
        ("0.0.0.0", f"{socket.gethostname()}:8000", 200),
        ("0.0.0.0", "evil.example", 400),
    ],
)
def test_hosts(started_for: str | None, host: str, status: int) -> None:
    client = guarded(host=started_for, allowed_hosts=["labels.example"])
    assert client.get("/info/", headers={"Host": host}).status_code == status


FOREIGN = {"Origin": "https://evil.example"}
NAVIGATION = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        # 3D Slicer, curl
        ("POST", "/infer/lesion_mask", {}, 200),
        # OHIF, also behind a proxy that speaks TLS
        ("POST", "/infer/lesion_mask", {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ("POST", "/infer/lesion_mask", {"Origin": "https://localhost:8000"}, 200),
        ("GET", "/info/", {"Sec-Fetch-Site": "none"}, 200),
        ("POST", "/infer/lesion_mask", {"Origin": "https://viewer.example"}, 200),
        ("POST", "/infer/lesion_mask", FOREIGN, 403),
        ("GET", "/info/", FOREIGN, 403),
        ("DELETE", "/datastore/image", FOREIGN, 403),
        ("POST", "/infer/lesion_mask", {"Origin": "null"}, 403),
        ("POST", "/infer/lesion_mask", {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, 403),
        ("POST", "/infer/lesion_mask", {"Origin": "https://viewer.example.evil.example"}, 403),
        # without an Origin: pictures, scripts, frames; a link may open the viewer
        ("GET", "/datastore/dataset", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("GET", "/proxy/dicom/wado/studies/1.2/thumbnail", {"Sec-Fetch-Site": "same-site"}, 403),
        ("GET", "/ohif/viewer", NAVIGATION, 200),
        ("GET", "/ohif/viewer", {**NAVIGATION, "Sec-Fetch-Dest": "iframe"}, 403),
        ("GET", "/datastore/dataset", NAVIGATION, 403),
        ("GET", "/ohif/../datastore/dataset", NAVIGATION, 403),
        ("POST", "/ohif/viewer", NAVIGATION, 403),
    ],
)
def test_pages_of_other_sites(method: str, path: str, headers: dict[str, str], status: int) -> None:
    client = guarded(host=None, origins=["https://viewer.example"])
    assert client.request(method, path, headers={"Host": "localhost:8000", **headers}).status_code == status


def test_cross_origin_headers_are_for_configured_origins_alone(server: Server) -> None:
    for origin, status, allowed in (
        ("https://viewer.example", 200, "https://viewer.example"),
        ("https://evil.example", 403, None),
        (server.url, 200, None),
    ):
        answer = server.call("GET", "/ohif/", headers={"Origin": origin})
        assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (status, allowed)
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = server.call("OPTIONS", "/infer/lesion_mask", headers=preflight)
    assert answer.status_code >= 400 and "access-control-allow-origin" not in answer.headers
    assert server.raw("GET", "/info/", {"Host": "evil.example"})[0] == 400
    assert server.raw("GET", "/ohif/", {"Host": "labels.example"})[0] == 200
    assert server.raw("POST", "/reload")[0] in (404, 405)


def test_ohif_loads_its_configuration_and_what_shows_pictures(server: Server) -> None:
    answer = server.call("GET", "/ohif/app-config.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.text.startswith("window.config = {") and PICTURES.read_text("utf-8") in answer.text
    assert 'src="/ohif/app-config.js"' in server.call("GET", "/ohif/viewer").text


def test_error_texts_hold_no_paths_nor_passwords() -> None:
    for text, said in {
        "/srv/data/p.nii.gz: can't be read": "p.nii.gz: can't be read",
        "[Errno 28] No space left: '/tmp/a b/tmp1.nrrd'": "[Errno 28] No space left: 'tmp1.nrrd'",
        "Log File /srv/app/logs/app.log NOT Found": "Log File app.log NOT Found",
        "(/a/b/c.dcm)": "(c.dcm)",
        "There is no series 9.9 on http://h:1/dicom-web/x": "There is no series 9.9 on http://h:1/dicom-web/x",
        "http://me:secret@h/dicom-web": "http://h/dicom-web",
        "label tag '../..' is not allowed": "label tag '../..' is not allowed",
        "1/2/3 and text/plain/x": "1/2/3 and text/plain/x",
    }.items():
        assert without_paths(text) == said


PARAMS = ["null", "5", "[1]", '"text"', "{no json"]


@pytest.mark.parametrize("params", PARAMS)
def test_params_that_are_no_object(server: Server, params: str) -> None:
    before = server.temporary()
    series = {"image": server.archive.series}
    label = {"label": ("label.nii.gz", b"x")}
    for answer in (
        server.call("POST", "/infer/lesion_mask", data={"params": params}, files=volume(server, 6)),
        server.call("POST", "/infer/lesion_mask", params={**series, "output": "dicom_seg"}, data={"params": params}),
        server.call("PUT", "/datastore/label", params=series, data={"params": params}, files=label),
        server.call("PUT", "/datastore/image/info", params=series, data={"info": params}),
    ):
        assert answer.status_code == 400, answer.text
        assert re.search("(params|info) (must be a JSON object|is not JSON)", answer.json()["detail"])
    assert server.call("POST", "/activelearning/random", data=params).status_code in (400, 404, 422) or params == "null"
    assert server.keeps_no_more_than(before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"note": "\\ud83d"}', "holds a text that is no Unicode"),
        ('{"\\ud83d": 1}', "holds a text that is no Unicode"),
        ('{"note": ' + "[" * 60 + "]" * 60 + "}", "nested more than 50 deep"),
        ('{"note": ' + '{"a":' * 60 + "1" + "}" * 61, "nested more than 50 deep"),
        ("[" * 100_000, "is not JSON"),
        ('{"note": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"note": 1e400}', "holds a number that is not finite"),
    ],
)
def test_json_that_not_every_program_reads(text: str, message: str) -> None:
    with pytest.raises(MONAILabelException, match=message) as refusal:
        json_object(text, "info")
    assert refusal.value.error == MONAILabelError.INVALID_INPUT
    assert json_object('{"note": "\\ud83d\\ude00", "at": [[[1]]]}', "info") == {"note": "\U0001f600", "at": [[[1]]]}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/activelearning/nobody", {}, "There is no strategy 'nobody'; there are most_anomalous_first, random"),
        ("/activelearning/random", {"client_id": "\ud83d"}, "holds a text that is no Unicode"),
        ("/activelearning/random", {"strategy": ["x"]}, "There is no strategy ['x']; there are"),
        ("/scoring/", {"dice": "abc"}, "dice must be an object of options, got 'abc'"),
        ("/scoring/dice", {"model": [1]}, "model must be a name, got [1]"),
        ("/scoring/nobody", {}, "There is no method 'nobody'; there are dice"),
        ("/train/nobody", {}, "There is no model 'nobody'; there are classifier, diffusion"),
        ("/train/classifier", {"model": "nobody"}, "There is no model 'nobody'; there are classifier, diffusion"),
        ("/train/", {"classifier": 5}, "classifier must be an object of options, got 5"),
        ("/train/classifier", {"max_minutes": "x"}, "max_minutes must be a number above 0, got 'x'"),
        ("/train/", {"diffusion": {"val_split": 2}}, "val_split must be a number above 0 and below 1, got 2"),
        ("/batch/infer/lesion_mask", {"max_batch_size": "x"}, "max_batch_size must be a whole number, got 'x'"),
        ("/batch/infer/lesion_mask", {"max_workers": None}, "max_workers must be a whole number, got None"),
        ("/batch/infer/lesion_mask", {"device": 5}, "device must be a name, got 5"),
        ("/batch/infer/lesion_mask", {"overwrite": "yes"}, "overwrite must be true or false, got 'yes'"),
        ("/batch/infer/nobody", {}, "There is no model 'nobody'; there are lesion_mask"),
        ("/infer/nobody?image=1.2", None, "There is no model 'nobody'; there are lesion_mask"),
        ("/infer/lesion_mask", None, "There is nothing to run on"),
    ],
)
def test_names_of_what_does_not_exist(server: Server, path: str, body: Any, message: str) -> None:
    answer = server.call("POST", path, json=body)
    assert answer.status_code == 400 and message in answer.json()["detail"]
    assert server.call("GET", "/train/").status_code == 404  # no task was begun


def test_what_is_not_there_is_not_found(server: Server) -> None:
    series = server.archive.series
    for method, path in (
        ("GET", "/ohif/assets"),
        ("GET", "/datastore/image/info?image=9.9"),
        ("GET", "/datastore/label/info?label=9.9&tag=final"),
        ("GET", f"/datastore/label/info?label={series}&tag=nobody"),
        ("DELETE", f"/datastore/label?id={series}&tag=nobody"),
    ):
        assert server.call(method, path).status_code == 404, path
    assert server.call("GET", f"/datastore/image/info?image={series}").status_code == 200
    assert server.call("GET", f"/logs/?lines={10**19}&text=true").status_code == 200


def test_out_of_memory_is_the_servers_fault(server: Server) -> None:
    before = server.temporary()
    answer = server.upload(HUNGRY)
    assert answer.status_code == 503
    assert "memory of this server's cpu was not enough" in answer.json()["detail"]
    assert "start the server on a machine with more memory" in answer.json()["detail"]
    assert "DefaultCPUAllocator" in server.said()
    assert server.keeps_no_more_than(before)
    assert server.upload().status_code == 200


def test_what_is_a_lack_of_memory() -> None:
    for error, lacks in (
        (MemoryError(), True),
        (np.exceptions.AxisError("axis 3"), False),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("size mismatch"), False),
    ):
        wrapped = RuntimeError("applying transform")
        wrapped.__cause__ = error
        assert out_of_memory(error) is out_of_memory(wrapped) is lacks


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/scoring/dice", '{"bundle_path": "FOLDER"}', "bundle_path is not allowed"),
        ("/scoring/", '{"dice": {"bundle_path": "FOLDER"}}', "bundle_path is not allowed"),
        ("/train/classifier", '{"bundle_path": "FOLDER"}', "bundle_path is not allowed"),
        ("/batch/infer/lesion_mask", '{"bundle_path": "FOLDER"}', "bundle_path is not allowed"),
        ("/train/", '{"classifier": {"bundle_path": "FOLDER"}}', "bundle_path is not allowed"),
        ("/train/classifier", '{"gpus": 1}', "gpus must be"),
        ("/train/classifier", '{"gpus": "0\\u0000"}', "gpus must be"),
        ("/scoring/dice", '{"y": 1e400}', "not finite"),
        ("/scoring/dice", '{"y": "' + "x" * 200_000 + '"}', "at most 100000 characters"),
        ("/scoring/dice", "1e400", "valid dictionary"),
    ],
)
def test_a_task_runs_no_code_that_a_client_sent(server: Server, path: str, body: str, message: str) -> None:
    """MONAI Label would start Python with the folder that `bundle_path` names among those that it imports from."""
    content = b"open(__file__ + '.ran', 'w')"
    files = [("files", (name, content)) for name in ("sitecustomize.py", "usercustomize.py")]
    session = server.call("PUT", "/session/", files=files).json()
    folder = next((server.folder / "sessions" / session["session_id"]).glob("tmp*"))
    kind = {"Content-Type": "application/json"}
    answer = server.call("POST", path, data=body.replace("FOLDER", str(folder)), headers=kind)
    assert answer.status_code in (400, 422) and message in answer.text and len(answer.text) < 1000
    assert server.call("GET", "/scoring/").status_code == 404  # no task was begun
    assert server.call("GET", "/train/").status_code in (200, 404)
    assert not list(folder.glob("*.ran"))


@pytest.mark.parametrize("broken", [None, "", "[]", '{"expiry": 5}'])
def test_uploads_go_after_their_time_also_after_a_restart(broken: str | None, tmp_path: Path) -> None:
    store = tmp_path / "sessions"

    def upload(age: float) -> Path:
        (tmp_path / "x.nii.gz").write_bytes(b"of a patient")
        name, _ = Sessions(str(store)).add_session(str(tmp_path / "x.nii.gz"))
        meta = store / name / "meta.info"
        known = json.loads(meta.read_text())
        meta.write_text(json.dumps(known | {"last_access_ts": known["last_access_ts"] - age}))
        return store / name

    def cut_off(age: float) -> Path:
        folder = store / f"0-{age}"
        folder.mkdir(parents=True)
        (folder / "x.nii.gz").write_bytes(b"half")
        if broken is not None:
            (folder / "meta.info").write_text(broken)
        os.utime(folder, (time.time() - age,) * 2)
        return folder

    app = object.__new__(AnomalyDetection)
    app._sessions = None
    app.cleanup_sessions()
    app._sessions = Sessions(str(store))
    app.cleanup_sessions()  # nothing is there yet
    old, new = [cut_off(4000), upload(4000)], [cut_off(3000), upload(3000)]
    app.cleanup_sessions()
    assert [p.exists() for p in old + new] == [False, False, True, True]


def test_a_session_tells_no_paths(server: Server) -> None:
    before = server.temporary()
    for name in ("x" * 300 + ".nii.gz", ".hidden.nii.gz", "meta.info", "Meta.Info"):
        answer = server.call("PUT", "/session/", files={"files": (name, b"x")})
        assert answer.status_code == 400 and "file " in answer.json()["detail"].lower()
    for path, part in (("/datastore/label?image=1.2&tag=x", "label"), ("/datastore/image?image=x", "file")):
        answer = server.call("PUT", path, files={part: ("x." + "a" * 250, b"x")})
        assert answer.status_code == 400 and "file name" in answer.json()["detail"]
    made = server.call("PUT", "/session/", files={"files": ("a.nii.gz", volume(server, 6)["file"][1])}).json()
    got = server.call("GET", f"/session/{made['session_id']}")
    assert got.json()["image"] == made["session_info"]["image"] == "a.nii.gz"
    assert str(server.folder) not in got.text + json.dumps(made)
    assert server.call("POST", f"/infer/lesion_mask?session_id={made['session_id']}").status_code == 200
    assert server.call("DELETE", f"/session/{made['session_id']}").json()["path"] == made["session_id"]
    assert server.keeps_no_more_than(before)


NO_VOXELS = {
    "x.mha": b"ObjectType = Image\nNDims = 3\nDimSize = 40 40 2\nElementType = MET_UCHAR\nElementDataFile = FILE\n",
    "x.mhd": b"NDims = 3\nDimSize = 40 40 2\nElementType = MET_UCHAR\nElementDataFile: FILE\n",
    "x.nrrd": b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 40 40 2\nencoding: raw\ndata file: FILE\n\n",
}


@pytest.mark.parametrize("name", NO_VOXELS)
def test_an_upload_reads_no_other_file(server: Server, name: str) -> None:
    secret = server.folder / "secret"
    secret.write_bytes(b"\1" * 3200)
    content = NO_VOXELS[name].replace(b"FILE", os.fsencode(secret))
    before = server.temporary()
    series = server.archive.series
    for answer in (
        server.call("POST", "/infer/lesion_mask", files={"file": (name, content)}),
        server.call("PUT", f"/datastore/label?image={series}&tag=x", files={"label": (name, content)}),
    ):
        assert answer.status_code == 400 and "its header names another file" in answer.text
    answer = server.call("PUT", "/datastore/image?image=x", files={"file": (name, content)})
    assert answer.status_code == 400 and "its header names another file" in answer.text
    answer = server.call("PUT", "/datastore/image?image=x", files={"file": ("x.nii.gz", b"x")})
    assert answer.status_code == 400 and "store the image on that server" in answer.text
    for files in ([(name, content)], [("a.nii.gz", b"x"), (name, content)], [(name, content), ("a.nii.gz", b"x")]):
        answer = server.call("PUT", "/session/", files=[("files", file) for file in files])
        assert answer.status_code == 400 and "its header names another file" in answer.text
    assert server.keeps_no_more_than(before)


@pytest.mark.parametrize(
    ("names", "twice"),
    [
        (["A/IM0.dcm", "A/IM1.dcm", "B/IM0.dcm", "B/IM1.dcm"], "IM0.dcm"),
        (["IM0.dcm", "im0.DCM"], "im0.DCM"),
        (["A/sent0.dcm", "B/sent1.dcm"], None),
    ],
)
def test_an_upload_keeps_every_file(server: Server, names: list[str], twice: str | None) -> None:
    """MONAI Label would keep the last file of each name, and half a series may be a volume too."""
    before = server.temporary()
    parts = [("files", (name, name.encode())) for name in names]
    answer = server.call("PUT", "/session/", files=parts)
    if twice:
        assert answer.status_code == 400 and f"More than one file has the name {twice}." in answer.text
        assert server.keeps_no_more_than(before)
        return
    session = answer.json()["session_id"]
    kept = {p.name: p.read_bytes() for p in server.folder.rglob("sent*.dcm")}
    assert kept == {Path(name).name: name.encode() for name in names}
    assert server.call("DELETE", f"/session/{session}").status_code == 200
    assert server.keeps_no_more_than(before)


def test_a_client_names_no_file_of_the_server(server: Server) -> None:
    other = server.folder / "tmp" / "tmpother.nii.gz"
    other.write_bytes(volume(server, 6)["file"][1])
    answer = server.call("POST", "/infer/lesion_mask?image=1.2", data=params_of({"image": str(other)}))
    assert answer.status_code == 400 and "a name without slashes" in answer.text
    for images in ([str(other)], ["1.2", None], [1]):
        answer = server.call("POST", "/batch/infer/lesion_mask?run_sync=true", json={"images": images})
        assert answer.status_code == 400 and "a name without slashes" in answer.text
    for images in ("everything", None, {"a": 1}):
        answer = server.call("POST", "/batch/infer/lesion_mask", json={"images": images})
        assert answer.status_code == 400
        assert "images must be all, labeled, unlabeled or a list of ids" in answer.text
    assert server.call("GET", "/batch/infer").status_code == 404  # no task was begun
    other.unlink()
    answer = server.call("HEAD", f"/datastore/image?image={server.archive.series}&check_sum=FOO:1")
    assert answer.status_code == 400


def test_what_the_server_began_ends_with_it() -> None:
    sleep = "import time; time.sleep(60)"
    script = f"""
import sys; sys.path.insert(0, {str(Path(serve.__file__).parent)!r})
from lib.http.processes import end_with_server
end_with_server(); print("up", flush=True); {sleep}
"""
    with subprocess.Popen([sys.executable, "-c", sleep]) as parent:
        env = {**os.environ, SERVER: str(parent.pid)}
        with subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE) as child:
            try:
                assert child.stdout is not None and b"up" in child.stdout.read(3) and child.poll() is None
                parent.kill()
                parent.wait()
                assert child.wait(10) == 1
            finally:
                parent.kill()
                child.kill()


@contextmanager
def during(event: threading.Event) -> Iterator[None]:
    event.set()
    try:
        yield
    finally:
        event.clear()


def test_an_archive_that_hangs_does_not_stop_the_others(server: Server) -> None:
    series = server.archive.series
    waiting = [
        ("GET", "/info/"),
        ("GET", "/datastore/?output=all"),
        ("POST", "/activelearning/most_anomalous_first"),
        ("POST", "/train/classifier"),
        ("GET", "/datastore/image?image=1.2.3.4"),
        ("POST", "/infer/lesion_mask?image=1.2.3.4"),
        ("GET", f"/proxy/dicom/wado/studies/{server.archive.study}/series/{series}/metadata"),
    ]
    with during(server.archive.hang), ThreadPoolExecutor(len(waiting)) as pool:
        asked = len(server.archive.asked)
        start = time.perf_counter()
        answers = [pool.submit(server.call, *request) for request in waiting]
        while len(server.archive.asked) < asked + len(waiting) - 1:
            time.sleep(0.05)
            assert time.perf_counter() - start < 10
        begin = time.perf_counter()
        assert server.call("GET", "/ohif/").status_code == 200
        assert server.upload().status_code == 200
        free = time.perf_counter() - begin
        assert not any(answer.done() for answer in answers[:1] + answers[-1:])
        results = {request: answer.result() for request, answer in zip(waiting, answers, strict=True)}
        took = time.perf_counter() - start
    assert free < TIMEOUT and took < 10 * TIMEOUT  # some ask several times
    for request, answer in results.items():
        assert answer.status_code in (200, 503, 504), (request, answer.text)
    assert results[waiting[2]].status_code == results[waiting[5]].status_code == 503
    assert "Is it running?" in results[waiting[5]].json()["detail"]
    assert results[waiting[6]].status_code == 504 and "DICOM server doesn't answer" in results[waiting[6]].text
    server.call("DELETE", "/train/")


def test_an_archive_that_hangs_while_storing_does_not_hold_the_networks(server: Server) -> None:
    before = server.temporary()
    stored = f"/infer/lesion_mask?image={server.archive.series}&output=json"
    with during(server.archive.hang_store), ThreadPoolExecutor(1) as pool:
        asked = len(server.archive.asked)
        run = pool.submit(server.call, "POST", stored, data=params_of({"save_label": True}))
        while not any(method == "POST" for method, *_ in server.archive.asked[asked:]):
            time.sleep(0.05)
            assert not run.done(), run.result().text
        begin = time.perf_counter()
        assert server.upload().status_code == 200
        assert time.perf_counter() - begin < TIMEOUT and not run.done()
        assert run.result().status_code == 503
    assert server.keeps_no_more_than(before)


def test_a_segmentation_is_of_the_image_that_was_run_on(server: Server) -> None:
    series, path = server.archive.series, "/infer/lesion_mask?output=dicom_seg"
    answer = server.call("POST", f"{path}&image=9.9", data=params_of({"image": series}))
    assert answer.status_code == 200 and f'filename="{series}.dcm"' in answer.headers["Content-Disposition"]
    found = pydicom.dcmread(io.BytesIO(answer.content))
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == series
    for asked in (f"&image={series}", ""):
        refused = server.call("POST", path + asked, files=volume(server, 6))
        assert refused.status_code == 400 and "dicom_seg needs the id of a series" in refused.json()["detail"]


def test_what_fails_leaves_no_mask_behind(server: Server) -> None:
    before = server.temporary()
    series = server.archive.series
    mask = np.zeros(GRIDS["plain"][0], np.uint8).tobytes()
    with during(server.archive.refuse_store):
        for answer in (
            server.call(
                "POST", f"/infer/lesion_mask?image={series}", data=params_of({"save_label": True, "threshold": 0.04})
            ),
            server.call("PUT", f"/datastore/label?image={series}", files={"label": ("label.bin", mask)}),
            server.call("PUT", f"/datastore/label?image={series}&tag=x", files={"label": ("label.nii.gz", b"no")}),
            server.call("PUT", "/datastore/label?image=9.9", files={"label": ("label.nii.gz", mask)}),
            server.call("POST", "/infer/lesion_mask?output=dicom_seg", files=volume(server, 6)),
            server.call("POST", "/infer/lesion_mask?image=9.9", files={"label": ("label.nii.gz", mask)}),
        ):
            assert answer.status_code == 200 or str(server.folder) not in answer.text
    assert server.keeps_no_more_than(before)


def test_the_archive_of_the_studies_is_removed_once_it_is_sent(server: Server) -> None:
    before = server.temporary()
    assert server.call("GET", f"/datastore/image?image={server.archive.series}").status_code == 200
    mask = np.zeros(GRIDS["plain"][0], np.uint8).tobytes()
    answer = server.call("PUT", f"/datastore/label?image={server.archive.series}", files={"label": ("label.bin", mask)})
    assert answer.status_code == 200, answer.text
    answer = server.call("GET", "/datastore/dataset")
    assert answer.status_code == 200 and zipfile.is_zipfile(io.BytesIO(answer.content))
    assert server.keeps_no_more_than(before)


def abandoned_upload(server: Server, slices: int, params: bytes = b"{}") -> http.client.HTTPConnection:
    """A request whose connection the caller closes."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port or 0)
    content = volume(server, slices)["file"][1]
    body = b'--e\r\nContent-Disposition: form-data; name="params"\r\n\r\n' + params + b"\r\n"
    body += (
        b'--e\r\nContent-Disposition: form-data; name="file"; filename="f.nii.gz"\r\n\r\n' + content + b"\r\n--e--\r\n"
    )
    connection.request("POST", "/infer/lesion_mask", body, {"Content-Type": "multipart/form-data; boundary=e"})
    return connection


def test_what_nobody_waits_for_is_not_computed(server: Server) -> None:
    before, said = server.temporary(), server.said().count("the client has gone")
    runs = server.folder / "bundle" / "slow"
    # one runs, three wait behind it
    first = abandoned_upload(server, SLOW)
    while not runs.exists():
        time.sleep(0.05)
    queued = [abandoned_upload(server, SLOW) for _ in range(3)]
    time.sleep(0.3)
    for connection in queued:
        connection.close()
    assert first.getresponse().status == 200
    assert server.upload().status_code == 200
    assert runs.read_text() == "x"
    # and one that runs ends between two batches of slices
    many = abandoned_upload(server, 6, b'{"num_inference_steps": 900, "noise_level": 999}')
    time.sleep(0.5)
    many.close()
    begin = time.perf_counter()
    assert server.upload().status_code == 200
    assert time.perf_counter() - begin < 3
    assert server.keeps_no_more_than(before)
    assert server.said().count("the client has gone") == said + 4


def test_a_run_ends_at_the_next_batch_or_with_the_memory(tmp_path: Path) -> None:
    bundle = find_models(write_small_bundle(tmp_path), "cpu")[0]
    image = write_head(tmp_path)["image"]
    bundle.load()
    network, calls = bundle.networks[FULL]["network"], []
    counts = network.register_forward_hook(lambda *_: calls.append(1))

    def run() -> None:
        abandoned.set(lambda: len(calls) >= 2)
        with pytest.raises(Abandoned):
            bundle([image], bundle.declared.options())

    contextvars.copy_context().run(run)
    assert len(calls) == 2
    counts.remove()

    def fails(*_: Any) -> None:
        raise MemoryError

    hook = network.register_forward_pre_hook(fails)
    assert bundle._inputs
    with pytest.raises(MONAILabelException) as lack:
        bundle([image], bundle.declared.options())
    assert lack.value.error == MONAILabelError.SERVER_ERROR and not bundle._inputs
    hook.remove()
    assert bundle([image], bundle.declared.options())["pred"].shape == (1, *GRIDS["plain"][0])


@pytest.mark.parametrize("harm", ["../evil.py", "/tmp/evil.py", "..\\evil.py", "link", "large"])
def test_a_fetched_bundle_writes_nowhere_else(tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "b.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("bundle/configs/inference.json", "{}")
        if harm == "large":
            monkeypatch.setattr("lib.models.fetching.MAX_BUNDLE_BYTES", 1)
        elif harm == "link":
            link = zipfile.ZipInfo("bundle/scripts")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(link, "/etc")
        else:
            file.writestr(zipfile.ZipInfo(harm), "evil")
    digest = sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="nothing of it was used"):
        fetch_bundle(archive.as_uri(), digest, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir()) and not list(tmp_path.rglob("evil*"))


def test_a_bundle_is_not_unpacked_before_its_hash_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(*_: Any, **__: Any) -> None:
        raise AssertionError("it was unpacked")

    monkeypatch.setattr("lib.models.fetching.extractall", unpack)
    archive = tmp_path / "b.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("bundle/configs/inference.json", "{}")
    with pytest.raises(ValueError, match="its SHA-256 is not 0000"):
        fetch_bundle(archive.as_uri(), "0" * 64, tmp_path / "kept")


def test_a_server_that_ends_by_itself_is_said(tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-c",
        f"import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')",
    ]
    options: dict[str, Any] = {"name": "Archive", "ready": f"http://127.0.0.1:{port}/", "log": tmp_path / "log"}
    with (
        pytest.raises(ServeError, match=r"(?s)Archive ended with status -9.*GET / HTTP"),
        running(command, cwd=tmp_path, **options) as process,
    ):
        process.kill()
        watch()
    # in the command, which ends with it
    script = f"""
import sys; sys.path.insert(0, {str(Path(serve.__file__).parent)!r})
from contextlib import contextmanager
import serve
from lib.demonstration.servers import running
serve.find_orthanc = lambda: None
@contextmanager
def fake(studies, folder, port, conf):
    with running({command!r}, name="MONAI Label", ready="http://127.0.0.1:{port}/", log=folder / "log", cwd=folder) as p:
        print("pid", p.pid, flush=True)
        yield "http://127.0.0.1:{port}"
serve.label_server = fake
serve.serve({str(tmp_path / "out")!r}, {port})
"""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as served:
        assert served.stdout is not None and served.stderr is not None
        said = ""
        while "Ctrl-C" not in said:
            line = served.stdout.readline()
            assert line, served.stderr.read()
            said += line
        os.kill(int(said.split()[1]), signal.SIGKILL)
        try:
            assert served.wait(20) == 1
        finally:
            served.kill()
        assert "MONAI Label ended with status -9" in served.stderr.read()


@contextmanager
def authenticating_proxy(target: str, user: str, password: str) -> Iterator[str]:
    """What nginx does with ``auth_basic`` and ``proxy_set_header Host $http_host``."""
    client = httpx.AsyncClient(base_url=target, timeout=60)

    async def forward(request: Request) -> Response:
        given = base64.b64decode(request.headers.get("authorization", "").partition(" ")[2]).decode()
        if not secrets.compare_digest(given, f"{user}:{password}"):
            return Response("who are you?", 401, {"WWW-Authenticate": 'Basic realm="anomaly detection"'})
        url = httpx.URL(request.url.path, query=request.scope["query_string"])
        headers = [(k, v) for k, v in request.headers.raw if k != b"authorization"]
        answer = await client.request(request.method, url, headers=headers, content=await request.body())
        kept = {k: v for k, v in answer.headers.items() if k in ("content-type", "etag")}
        return Response(answer.content, answer.status_code, kept)

    methods = ["GET", "POST", "PUT", "DELETE", "HEAD"]
    app = Starlette(routes=[Route("/{path:path}", forward, methods=methods)])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_ohif_behind_a_proxy_that_asks_for_a_password(server: Server) -> None:
    """OHIF can't send the token of MONAI Label's own authentication; a browser sends a password to the proxy by itself."""
    pages = ["/ohif/", "/ohif/app-config.js", "/info/", "/proxy/dicom/qido/studies?limit=1"]
    with authenticating_proxy(server.url, "reader", "pass:word") as url:
        # as the browser, which calls the site by its name
        headers = {"Host": "labels.example", "Origin": "https://labels.example", "Sec-Fetch-Site": "same-origin"}
        for page in pages:
            assert requests.get(url + page, headers=headers, timeout=60).status_code == 401
            answer = requests.get(url + page, headers=headers, auth=("reader", "pass:word"), timeout=60)
            assert answer.status_code == 200, answer.text
        run: dict[str, Any] = {"headers": headers, "files": volume(server, 6), "timeout": 60}
        assert requests.post(f"{url}/infer/lesion_mask", **run).status_code == 401
        answer = requests.post(f"{url}/infer/lesion_mask?output=json", auth=("reader", "pass:word"), **run)
        assert answer.status_code == 200 and answer.json()["label_names"] == {"lesion": 1, "not assessed": 2}
        # a page of another site makes the browser send that password as well
        run["headers"] = {**headers, "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        answer = requests.post(f"{url}/infer/lesion_mask", auth=("reader", "pass:word"), **run)
        assert answer.status_code == 403
    assert server.archive.asked[-1][1] == "/dicom-web/studies?limit=1"
