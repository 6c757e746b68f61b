"""What MONAI Label's HTTP server lacks: errors that say what to do, limits, and a loop that stays free while others work."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import psutil
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    info,
    logs,
    model,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.endpoints import infer as stock_infer
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import background_executors, background_processes, stop_background_task
from monailabel.utils.others.generic import remove_file
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.bundle import Abandoned, abandoned, out_of_memory
from lib.proxy import dicom_proxy
from lib.studies import holds_itself, plain

logger = logging.getLogger(__name__)

NAMES = {
    "image": "image id",
    "label": "label",
    "id": "id",
    "tag": "label tag",
    "session_id": "session id",
    "user": "user",
}
LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.|testclient$|localhost$")
PAGES = re.compile(r"/|/docs|/ohif(/.*)?")
"""What a link on another site may open."""
STATUS = {MONAILabelError.INVALID_INPUT: 400, MONAILabelError.SERVER_ERROR: 503}
CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
"""So long the DICOM server may take to accept a connection, and between two pieces of an answer."""
INFER_THREADS, OTHER_THREADS = 100, 100
"""So many requests may wait at once, for the networks, and for the DICOM server or a disk; the next ones queue."""
SERVER = "ANOMALY_DETECTION_SERVER"
"""The server's process id, in the environment of those that it begins."""
CHECK_SUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9A-Fa-f]*")
MAX_TASK = 100_000
"""Characters of a task's request: Linux takes no longer argument of a command than 128 KiB."""
CHOICES = {
    activelearning: ("strategy", "_strategies"),
    scoring: ("method", "_scoring_methods"),
    train: ("model", "_trainers"),
    batch_infer: ("model", "_infers"),
}
"""What a request names in each part of MONAI Label, and where the app keeps those that exist."""
_PATH = re.compile(
    r"""(?P<quote>['"])(?P<quoted>/[^'"\n]*/[^'"\n]*)(?P=quote)|(?<![\w.:/~%\]-])/(?:[^\s'"<>|:;,/]+/)+[^\s'"<>|:;,)]*"""
)
_folders: list[str] = []


def dicomweb_seconds(conf: dict[str, str]) -> tuple[float, float]:
    """The time limits for the DICOM server, to connect and to read: ``dicomweb_timeout`` sets the second."""
    return CONNECT_SECONDS, float(conf.get("dicomweb_timeout", READ_SECONDS))


def without_paths(text: str) -> str:
    """The text with the names of files in place of their paths, and without a password in an address.

    A client knows names, not where this server keeps files.
    """
    text = re.sub(r"://[^/@\s]*@", "://", text)
    for folder in _folders:  # they may hold spaces
        text = re.sub(rf"{re.escape(folder)}/(?:[^\s'\":;,/]+/)*", "", text)

    def name(found: re.Match[str]) -> str:
        quote = found["quote"] or ""
        return quote + (found["quoted"] or found[0]).rstrip("/").rpartition("/")[2] + quote

    return _PATH.sub(name, text)


async def answer(request: Request, error: Exception) -> Response:
    """The HTTP answer to an exception: 404 and 400 for the client's, 503 for what may be better later, 500 for our own."""
    if isinstance(error, StarletteHTTPException):
        if isinstance(error.detail, str):
            error.detail = without_paths(error.detail)
        return await http_exception_handler(request, error)
    if isinstance(error, RequestValidationError):  # without what was sent: it may be large, or no JSON
        return JSONResponse({"detail": [{k: e[k] for k in ("loc", "msg", "type")} for e in error.errors()]}, 422)
    if isinstance(error, MONAILabelException):
        logger.info("%s %s: %s", request.method, request.url.path, error.msg)
        known = isinstance(error, (ImageNotFoundException, LabelNotFoundException))
        return JSONResponse({"detail": without_paths(error.msg)}, 404 if known else STATUS.get(error.error, 500))
    if out_of_memory(error):
        return JSONResponse({"detail": "The server's memory was not enough. Try again when it has less to do."}, 503)
    message = f"The server failed ({type(error).__name__}: {error}). Nothing was stored; its log says more."
    return JSONResponse({"detail": without_paths(message)}, 500)


class Guard:
    """Refuses, before anything reads the request, what MONAI Label would not: each with an HTTP error that says what to do.

    Clients from other machines, unless the server was started for them; web pages of other sites, which a browser on this
    machine may show, by their Origin and by the name under which they reached this server (DNS rebinding); names that hold a
    path; archives, whose content is not checked; bodies above a limit, which are read to their end but not kept, so that the
    client gets the answer.

    Args:
        app: the next ASGI application.
        host: the address that the server was started for; None: it serves its own machine only.
        max_bytes: the largest body of a request.
        allowed_hosts: names beside that address, and this machine's own, by which clients may call it.
        origins: other sites whose pages may use this server, such as ``https://viewer.example``.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str | None,
        max_bytes: int,
        allowed_hosts: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        self.app, self.remote, self.max_bytes, self.origins = app, host is not None, max_bytes, origins
        self.hosts = {"localhost", *(name.lower() for name in allowed_hosts)}
        self.every_address = host in ("0.0.0.0", "::")
        if host:
            self.hosts.add(socket.gethostname().lower() if self.every_address else host.lower())

    def _is_own(self, host: str) -> bool:
        """Whether this Host header, ``NAME[:PORT]``, names this server."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        # no page can take an address in place of a name, so any does where the server listens on all of them
        return address.is_loopback or name in self.hosts or self.every_address

    def _is_foreign(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Whether a page of another site sends this."""
        origin = headers.get("origin")
        if origin is not None:
            return origin not in self.origins and origin.partition("://")[2] != headers.get("host")
        if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
            return False
        opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return not (opened and scope["method"] == "GET" and PAGES.fullmatch(scope["path"]))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        client = (scope.get("client") or ("testclient",))[0]
        if not self.remote and not LOOPBACK.match(client):
            return 403, "This server answers its own machine only. Start it with --host ADDRESS to serve others."
        if not self._is_own(headers.get("host", "")):
            return 400, "This server doesn't answer to that name; see --conf allowed_hosts."
        if self._is_foreign(scope, headers):
            return 403, "Pages of other sites may not use this server; see --conf allowed_origins."
        if ".." in re.split(r"[/\\]", scope["path"]):
            return 400, "The path of a request holds no '..'."
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        for key, what in NAMES.items():
            if query.get(key):
                try:
                    plain(query[key], what)
                except MONAILabelException as error:
                    return 400, error.msg
        if scope["path"].startswith("/session") and query.get("uncompress", "").lower() in ("true", "1", "on", "yes"):
            return 400, "Archives are not unpacked; send the volume itself."
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refusal(scope, headers)
        length = headers.get("content-length", "0")
        too_large = (
            f"The request is larger than the {self.max_bytes >> 20} MiB that are allowed; see --conf max_upload_mb."
        )
        if not refusal and (not length.isdigit() or int(length) > self.max_bytes):
            refusal = 413, too_large
        if refusal:
            message: Message = {"more_body": True}
            while message.get("more_body") and message.get("type") != "http.disconnect":
                message = await receive()
            await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise HTTPException(413, too_large)
            return message

        await self.app(scope, limited, send)


def json_object(text: str, name: str) -> dict[str, Any]:
    """What a form's field holds.

    Raises:
        MONAILabelException: INVALID_INPUT, it is no JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"{name} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f'{name} must be a JSON object such as {{"threshold": 0.1}}, got {text[:50]}.',
        )
    finite(value, name)
    return value


def finite(value: Any, name: str) -> str:
    """The value as JSON.

    Raises:
        MONAILabelException: INVALID_INPUT, a number in it is infinite or none: Python reads those, no JSON can hold them.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"{name} holds a number that is not finite."
        ) from error


def _kept(file: UploadFile, background_tasks: BackgroundTasks) -> str:
    """An upload as a temporary file, which goes with the answer."""
    suffixes = re.sub(r"[^\w.]", "", "".join(Path(file.filename or "upload.nii.gz").suffixes))
    handle, path = tempfile.mkstemp(suffix=suffixes[-20:])
    background_tasks.add_task(remove_file, path)
    with open(handle, "wb") as copy:
        shutil.copyfileobj(file.file, copy)
    return path


async def infer(
    request: Request,
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    file: UploadFile = File(None),  # noqa: B008
    label: UploadFile = File(None),  # noqa: B008
    output: ResultType | None = None,
    user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER)),  # noqa: B008
) -> Any:
    """Run a model on a study.

    It ends early, with nothing stored, once the client has closed the connection. ``output=dicom_seg`` gives a DICOM
    Segmentation of the mask. No model takes a ``label``.
    """
    options = json_object(params, "params")
    if not (file or image or session_id):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, "There is nothing to run on: give image (an id), session_id or a file."
        )

    def run() -> Any:
        # MONAI Label's `run_inference` also asks the DICOM server for all studies, whatever it runs on
        instance = app_instance()
        asked = {"model": model, "image": image, **options}
        plain(str(asked["image"] or "-"), "image id")  # a path would be taken for an upload
        if file:
            asked["image"] = _kept(file, background_tasks)
        elif session_id:
            found = instance.sessions().get_session(session_id) if instance.sessions() else None
            if found is None:
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"There is no session {session_id!r}.")
            asked["image"] = found.image
        if (file or session_id) and os.path.isfile(asked["image"]):
            holds_itself(asked["image"])
        if output != ResultType.dicom_seg:
            return send_response(instance.datastore(), instance.infer(asked), output, background_tasks)
        result = instance.infer({**asked, "result_extension": ".nii.gz"})
        background_tasks.add_task(remove_file, result["file"])
        path = instance.dicom_segmentation(image, result)
        background_tasks.add_task(remove_file, path)
        return FileResponse(path, media_type="application/dicom", filename=f"{image}.dcm")

    gone = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watcher = asyncio.create_task(watch())
    # the thread gets a copy of the context
    token = abandoned.set(gone.is_set)
    try:
        return await to_thread.run_sync(run, limiter=_limiter("infer", INFER_THREADS))
    except Abandoned:
        logger.info("%s on %s: the client has gone; it was not finished", model, image or "an upload")
        await background_tasks()
        return Response(status_code=499)
    except BaseException:
        # they remove the uploads, and wouldn't run after an error
        await background_tasks()
        raise
    finally:
        abandoned.reset(token)
        watcher.cancel()


_limiters: dict[str, CapacityLimiter] = {}


def _limiter(name: str, threads: int) -> CapacityLimiter:
    """Threads of their own: those that wait leave others to serve the viewers' pages."""
    if name not in _limiters:
        _limiters[name] = CapacityLimiter(threads)
    return _limiters[name]


def _in_thread(
    endpoint: Callable[..., Coroutine[Any, Any, Any]], choice: tuple[str, str] | None
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """MONAI Label's endpoint in a thread; in the event loop it stops every other while it waits for a disk or the DICOM server.

    What it is given is checked first, and what it received is removed also after an error.
    """

    @wraps(endpoint)
    async def run(*args: Any, **kwargs: Any) -> Any:
        for name in ("params", "info"):
            if isinstance(kwargs.get(name), str):
                json_object(kwargs[name], name)
        if not CHECK_SUM.fullmatch(kwargs.get("check_sum") or ""):
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, "check_sum must be SHA256:DIGITS, SHA512: or MD5:."
            )
        for upload in kwargs.get("files") or ():
            plain(upload.filename, "file name")
        if choice:
            _check_choice(choice, kwargs)
        try:
            result = await to_thread.run_sync(
                lambda: asyncio.run(endpoint(*args, **kwargs)), limiter=_limiter("other", OTHER_THREADS)
            )
        except BaseException:
            if kwargs.get("background_tasks"):
                await kwargs["background_tasks"]()
            raise
        if endpoint is datastore.api_download_dataset:
            result.background = BackgroundTask(remove_file, result.path)
        return _told(result) if isinstance(result, dict | list) else result

    return run


def _check_choice(choice: tuple[str, str], given: dict[str, Any]) -> None:
    name, parts = choice
    known = list(getattr(app_instance(), parts))
    params = given.get("params") or {}
    for values in (params, *(v for v in params.values() if isinstance(v, dict))):
        _check_task(values)
    if len(finite(params, "the request")) > MAX_TASK:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"The request of a task has at most {MAX_TASK} characters."
        )
    # the body's have the last word
    for values in (given, params):
        if name in values and values[name] not in known:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"There is no {name} {values[name]!r}; there are {', '.join(known) or 'none'}.",
            )


def _check_task(request: dict[str, Any]) -> None:
    """MONAI Label begins a process with this: one option is a folder whose code it imports, another one its environment."""
    if "bundle_path" in request:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, "bundle_path is not allowed; the bundle is chosen when the server starts."
        )
    gpus = request.get("gpus")
    if gpus is not None and not (isinstance(gpus, str) and re.fullmatch(r"[\w,-]*", gpus)):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f'gpus must be "all" or numbers such as "0,1", got {gpus!r}.'
        )


def _told(result: Any) -> Any:
    """The state of tasks without paths in the lines of their logs, and a session without those of its files."""
    if isinstance(result, list):
        return [_told(task) for task in result]
    if not isinstance(result, dict):
        return result
    told = dict(result)
    if "details" in told:
        told["details"] = [without_paths(line) for line in told["details"]]
    if "session_info" in told:
        told["session_info"] = _told(told["session_info"])
    if "last_access_ts" in told:
        told |= {key: Path(told[key]).name for key in ("path", "image")}
    return told


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
        instance: its ``conf`` may hold ``max_upload_mb``, the largest request, by default 512; ``allowed_hosts`` and
            ``allowed_origins``, each with commas between them, see `Guard`; ``dicomweb_timeout``, see `dicomweb_seconds`.
    """
    if getattr(app.state, "prepared", False):
        return
    app.state.prepared = True
    os.environ[SERVER] = str(os.getpid())
    threading.Thread(target=_end_tasks, daemon=True).start()
    conf = instance.conf
    for folder in (instance.studies, instance.app_dir, tempfile.gettempdir(), str(Path.home()), sys.prefix):
        if folder.startswith("/") and folder != "/":
            _folders.append(folder.rstrip("/"))
    _folders.sort(key=len, reverse=True)

    # MONAI Label's own setting stops `start_server`, which can't print it; pydantic adds a slash to it, which no browser sends
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS] + _names(
        conf, "allowed_origins"
    )
    guard = Middleware(
        Guard,
        host=_started_for(),
        max_bytes=int(float(conf.get("max_upload_mb", 512)) * 2**20),
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
            route.endpoint = _in_thread(route.endpoint, CHOICES.get(part))
    router = APIRouter(tags=["Infer"])
    router.add_api_route("/infer/{model}", infer, methods=["POST"], summary="Run inference")
    app.include_router(router)
    connect, read = dicomweb_seconds(conf)
    app.include_router(dicom_proxy(httpx.Timeout(read, connect=connect)))
    # built at the server's first call, before there was an app
    app.middleware_stack = None


def _end_tasks() -> None:
    """Once the server ends, end what it began: it would wait for it."""
    threading.main_thread().join()
    for executor in list(background_executors.values()):
        executor.shutdown(wait=False, cancel_futures=True)
    for method in list(background_processes):
        stop_background_task(method)


def end_with_server() -> None:
    """In a process that the server began, for a batch, training or scoring: end with the server, also if that was killed."""
    if SERVER not in os.environ or os.environ[SERVER] == str(os.getpid()):
        return
    server, parent = int(os.environ[SERVER]), os.getppid()

    def watch() -> None:
        while psutil.pid_exists(server) and os.getppid() == parent:
            time.sleep(1)
        logger.warning("the server has ended; so does this")
        os._exit(1)  # a batch's threads stop for nothing less

    threading.Thread(target=watch, daemon=True).start()


def environment_on_path() -> None:
    """Put the commands of this environment on the PATH: MONAI Label looks for dcmqi there, or downloads it."""
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PATH"))))
