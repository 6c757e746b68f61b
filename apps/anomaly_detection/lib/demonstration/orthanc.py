"""Orthanc, which keeps the DICOM."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lib.demonstration.servers import HOST, LOGIN, ServeError, open_url, running, with_login

PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc")


def find_orthanc() -> tuple[Path, Path] | None:
    """Orthanc and its DICOMweb plugin, or None where one of them is not installed."""
    # Debian puts it where only root's PATH leads
    command = shutil.which(
        "Orthanc", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    )
    plugin = next((path for folder in PLUGIN_FOLDERS if (path := Path(folder) / PLUGIN).exists()), None)
    return (Path(command), plugin) if command and plugin else None


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
            open_url(with_login(f"http://{HOST}:{port}/instances", LOGIN, path.read_bytes()), timeout=60).close()
        except OSError as error:
            raise ServeError(f"{path}: Orthanc did not take it ({error}).") from error
