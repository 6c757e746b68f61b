"""MONAI Label with this app."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lib.demonstration.servers import HOST, running

APP = Path(__file__).resolve().parents[2]


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
        # threads that wait leave the cores to requests beside them, see `scripts.running`
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
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
