"""Show the bundle's sample study in real viewers: Orthanc keeps the DICOM, MONAI Label runs the models."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import fire
import pydicom

from lib.dicom import series_from_nifti

APP = Path(__file__).resolve().parent
SAMPLE = APP.parents[1] / "bundle" / "sample" / "TCGA_FG_6692_flair.nii.gz"
HOST = "127.0.0.1"
PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc")
NOTICE = "Research software, not for clinical use."
LOGIN = {
    "MONAI_LABEL_DICOMWEB_USERNAME": "monailabel",
    "MONAI_LABEL_DICOMWEB_PASSWORD": secrets.token_urlsafe(24),
}
"""What Orthanc asks for, and the label server has in its environment: web pages that a browser on this machine shows reach
Orthanc's port, and could read, delete and shut down. New at each start."""

# a proxy that the environment names can't reach this machine's own loopback
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


_servers: list[tuple[str, subprocess.Popen[bytes], Path]] = []
"""Those that run: their names and logs."""


class ServeError(RuntimeError):
    """A server can't be started or does not answer; the message says why and what to do."""


def find_orthanc() -> tuple[Path, Path] | None:
    """Orthanc and its DICOMweb plugin, or None where one of them is not installed."""
    # Debian puts it where only root's PATH leads
    command = shutil.which(
        "Orthanc", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    )
    plugin = next((path for folder in PLUGIN_FOLDERS if (path := Path(folder) / PLUGIN).exists()), None)
    return (Path(command), plugin) if command and plugin else None


@contextmanager
def running(
    command: Sequence[str],
    *,
    name: str,
    ready: str,
    log: Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    login: Mapping[str, str] | None = None,
    timeout: float = 180.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers for as long as the block runs; it is ended with every process that it started.

    Args:
        command: starts it.
        name: for messages.
        ready: a URL on this machine that gives 200 once the server is up. Its port must be free before.
        log: the file for what the server prints.
        cwd: the folder that it runs in.
        env: what its environment has beside this one.
        login: as `LOGIN`, where it asks for one.
        timeout: for the start, in seconds.

    Raises:
        ServeError: the port is taken, the server died or was not up in time; the message quotes its last lines.
    """
    port = int(ready.removeprefix(f"http://{HOST}:").partition("/")[0])
    with socket.socket() as probe:
        # as the servers do, or the port would count as taken for a minute after each stop
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServeError(f"{name}: port {port} can't be used ({error.strerror}); choose another one.") from error
    with log.open("wb") as output:
        # a group of its own: Ctrl-C reaches this process only, which then ends the servers one after the other
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + timeout
        while not answers(ready, login):
            if process.poll() is not None or time.monotonic() > end:
                raise _stopped(name, process, log)
            time.sleep(0.3)
        _servers.append((name, process, log))
        yield process
    finally:
        _servers[:] = [server for server in _servers if server[1] is not process]
        _end(process)


def _stopped(name: str, process: subprocess.Popen[bytes], log: Path) -> ServeError:
    status = process.poll()
    what = "was not up in time" if status is None else f"ended with status {status}"
    last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    return ServeError(f"{name} {what}. The end of its log, {log}:\n{last}")


def watch() -> None:
    """Wait until one of the servers ends by itself.

    Raises:
        ServeError: always; it quotes the last lines of that server's log.
    """
    while True:
        for server in _servers:
            if server[1].poll() is not None:
                raise _stopped(*server)
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=15)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:
        # also after a second Ctrl-C, and for what the server started and left
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _request(url: str, login: Mapping[str, str] | None, data: bytes | None = None) -> urllib.request.Request:
    request = urllib.request.Request(url, data)
    if login:
        pair = base64.b64encode(":".join(login.values()).encode()).decode()
        request.add_header("Authorization", f"Basic {pair}")
    return request


def answers(url: str, login: Mapping[str, str] | None = None) -> bool:
    """Whether this URL gives 200 to who logs in so, see `LOGIN`."""
    try:
        with _open(_request(url, login), timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextmanager
def orthanc(folder: str | Path, port: int) -> Iterator[str]:
    """Orthanc with DICOMweb for this machine and those who have `LOGIN`, its data in a folder.

    Args:
        folder: for the data, the configuration and the log; an existing one is opened again.
        port: of HTTP. There is no DICOM port.

    Yields:
        the URL of its DICOMweb service.

    Raises:
        ServeError: see `running`; also where Orthanc or its plugin is missing.
    """
    found = find_orthanc()
    if found is None:
        raise ServeError("Orthanc with its DICOMweb plugin is not installed: `make viewers`.")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "Name": "Anomaly detection demonstration",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {LOGIN["MONAI_LABEL_DICOMWEB_USERNAME"]: LOGIN["MONAI_LABEL_DICOMWEB_PASSWORD"]},
        "Plugins": [str(found[1])],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    path = folder / "orthanc.json"
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text(json.dumps(config, indent=2))
    url = f"http://{HOST}:{port}"
    with running(
        [str(found[0]), str(path)],
        name="Orthanc",
        ready=f"{url}/dicom-web/studies",
        log=folder / "orthanc.log",
        cwd=folder,
        login=LOGIN,
    ):
        yield f"{url}/dicom-web"


def upload(files: Sequence[Path], port: int) -> None:
    """Give DICOM files to Orthanc; those that it has already are left as they are.

    Raises:
        ServeError: it refuses one.
    """
    for path in files:
        try:
            _open(_request(f"http://{HOST}:{port}/instances", LOGIN, path.read_bytes()), timeout=60).close()
        except OSError as error:
            raise ServeError(f"{path}: Orthanc did not take it ({error}).") from error


@contextmanager
def label_server(
    studies: str,
    folder: str | Path,
    port: int,
    conf: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The MONAI Label server with this app, for this machine only.

    Args:
        studies: a folder, or the URL of a DICOMweb service.
        folder: for all that is written: fetched series, sessions, logs. The folders of the app and the bundle are only read.
        port: of HTTP.
        conf: options of the app, see ``main.py``.
        env: what its environment has beside this one, such as `LOGIN`.

    Yields:
        the server's URL.

    Raises:
        ServeError: see `running`.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    env = {
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicomweb"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), HOST))),
        "PYTHONUNBUFFERED": "1",
        **(env or {}),
    }
    # MONAI Label writes logs and more into an app's folder; this one may be read-only
    app = folder / "app"
    app.mkdir(exist_ok=True)
    for name in ("main.py", "lib"):
        (app / name).unlink(missing_ok=True)
        (app / name).symlink_to(APP / name)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", studies]
    command += ["--host", HOST, "--port", str(port)]
    for key, value in (conf or {}).items():
        command += ["--conf", key, value]
    url = f"http://{HOST}:{port}"
    with running(
        command,
        name="MONAI Label",
        ready=f"{url}/info/",
        log=folder / "server.log",
        cwd=folder,
        env=env,
    ):
        yield url


def ohif_url(server: str, study: str, mode: str = "monai-label") -> str:
    """Where a MONAI Label server shows a study, given by its StudyInstanceUID, in OHIF.

    Args:
        server: its URL.
        study: StudyInstanceUID.
        mode: "monai-label", which runs models, or "viewer", which draws what is stored, Parametric Maps too.
    """
    return f"{server}/ohif/{mode}?StudyInstanceUIDs={study}"


def sample_study(folder: str | Path) -> tuple[list[Path], str]:
    """The bundle's sample as a DICOM series: its files and its StudyInstanceUID."""
    files = series_from_nifti(
        SAMPLE, folder, series_description="FLAIR", patient_id="TCGA-FG-6692", patient_name="Sample^Frontal glioma"
    )
    return files, str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)


def serve(folder: str = "output/serve", port: int = 8000, orthanc_port: int = 8043, **conf: str) -> None:
    """Serve the sample study until Ctrl-C: to OHIF and 3D Slicer; without Orthanc to 3D Slicer only.

    It ends with status 1, and says why, when one of its servers ends by itself.

    Args:
        folder: for all that is written; what an earlier run left there is shown again.
        port: of the MONAI Label server, which also serves OHIF.
        orthanc_port: of Orthanc; 8042 is that of the Orthanc which Debian's package starts.
        conf: options of the app, such as ``--device cpu``.
    """
    root = Path(folder).resolve()
    # ended with a signal, the servers must end too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    options = {key: str(value) for key, value in conf.items()}
    try:
        with ExitStack() as stack:
            if find_orthanc() is None:
                studies = root / "studies"
                studies.mkdir(parents=True, exist_ok=True)
                shutil.copy(SAMPLE, studies)
                server = stack.enter_context(label_server(str(studies), root, port, options))
                ohif = "needs Orthanc with its DICOMweb plugin: `make viewers` installs them on Debian and Ubuntu"
            else:
                files, study = sample_study(root / "dicom")
                dicomweb = stack.enter_context(orthanc(root / "orthanc", orthanc_port))
                upload(files, orthanc_port)
                server = stack.enter_context(label_server(dicomweb, root, port, options, LOGIN))
                ohif = f"{ohif_url(server, study)}\n             server, in the MONAI Label panel: {server}/"
                ohif += f"\n             anomaly map, once a model ran: {ohif_url(server, study, 'viewer')}"
            print(f"\n  OHIF       {ohif}\n  3D Slicer  module MONAILabel, server {server}", flush=True)
            print(f"  Files      {root}\n\n{NOTICE} Ctrl-C ends it.", flush=True)
            watch()
    except ServeError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        print("ended")


if __name__ == "__main__":
    fire.Fire(serve)
