"""All of this put into MONAI Label's application."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import httpx
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    info,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.endpoints import infer as stock_infer
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib.http.answers import answer, hidden_folders
from lib.http.fields import CHOICES
from lib.http.guard import Guard
from lib.http.infer_route import infer
from lib.http.ohif import ohif_config, ohif_file
from lib.http.processes import SERVER, end_tasks
from lib.http.proxy import dicom_proxy
from lib.http.threads import in_thread
from lib.studies.connection import dicomweb_seconds
from lib.studies.sizes import LARGEST_MIB, set_largest


def _names(conf: dict[str, str], key: str) -> list[str]:
    return [name.strip().rstrip("/") for name in conf.get(key, "").split(",") if name.strip()]


def _started_for() -> str | None:
    """The address that the command line names; MONAI Label listens on every one unless told otherwise."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-i", "--host")
    return parser.parse_known_args()[0].host


def prepare(app: FastAPI, instance: MONAILabelApp) -> None:
    """Put all of this into MONAI Label's FastAPI application, once, as it starts.

    Args:
        app: the application.
        instance: its ``conf`` may hold ``max_upload_mb``, the largest request, and volume in it as float32, by default
            `LARGEST_MIB`; ``allowed_hosts`` and ``allowed_origins``, each with commas between them, see `Guard`;
            ``dicomweb_timeout``, see `dicomweb_seconds`.
    """
    if getattr(app.state, "prepared", False):
        return
    app.state.prepared = True
    os.environ[SERVER] = str(os.getpid())
    threading.Thread(target=end_tasks, daemon=True).start()
    conf = instance.conf
    for folder in (instance.studies, instance.app_dir, tempfile.gettempdir(), str(Path.home()), sys.prefix):
        if folder.startswith("/") and folder != "/":
            hidden_folders.append(folder.rstrip("/"))
    hidden_folders.sort(key=len, reverse=True)

    # MONAI Label's own setting stops `start_server`, which can't print it; pydantic adds a slash to it, which no browser sends
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS] + _names(
        conf, "allowed_origins"
    )
    largest_mib = float(conf.get("max_upload_mb", LARGEST_MIB))
    set_largest(largest_mib)
    guard = Middleware(
        Guard,
        host=_started_for(),
        max_bytes=int(largest_mib * 2**20),
        allowed_hosts=_names(conf, "allowed_hosts"),
        origins=origins,
    )
    # MONAI Label's own allows every origin unless some are configured
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )
    app.user_middleware[:] = [cors, guard] if origins else [guard]
    for error in (MONAILabelException, StarletteHTTPException, RequestValidationError, Exception):
        app.add_exception_handler(error, answer)

    # replaced here, or of no use: weights are not exchanged over HTTP, and there are no whole slide images
    for replaced in (stock_infer, proxy, model, wsi_infer):
        replaced.router.routes.clear()
    # anybody could make the server load everything anew
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != "/reload"]
    if not shutil.which("nvidia-smi"):
        logs.router.routes[:] = [route for route in logs.router.routes if route.path != "/logs/gpu"]
    for part in (activelearning, batch_infer, datastore, info, logs, scoring, session, train):
        for route in part.router.routes:
            route.endpoint = in_thread(route.endpoint, CHOICES.get(part))
    router = APIRouter(tags=["Infer"])
    router.add_api_route("/infer/{model}", infer, methods=["POST"], summary="Run inference")
    app.include_router(router)
    connect, read = dicomweb_seconds(conf)
    app.include_router(dicom_proxy(httpx.Timeout(read, connect=connect)))
    ohif.get_ohif = ohif_file
    # before MONAI Label's own, which takes every path of OHIF's
    app.router.routes[:0] = ohif_config().routes
    # built at the server's first call, before there was an app
    app.middleware_stack = None
