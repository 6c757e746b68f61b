"""What MONAI Label's HTTP server lacks: errors that say what to do, limits, and a loop that stays free while networks run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, JSONResponse
from monailabel.config import settings
from monailabel.endpoints.infer import ResultType, run_inference
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import remove_file
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.studies import plain

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
STATUS = {MONAILabelError.INVALID_INPUT: 400, MONAILabelError.SERVER_ERROR: 503}


async def answer(request: Request, error: Exception) -> JSONResponse:
    """The HTTP answer to an exception: 404 and 400 for the client's, 503 for another server's, 500 for our own."""
    if isinstance(error, MONAILabelException):
        known = isinstance(error, (ImageNotFoundException, LabelNotFoundException))
        return JSONResponse({"detail": error.msg}, 404 if known else STATUS.get(error.error, 500))
    if isinstance(error, json.JSONDecodeError):
        return JSONResponse({"detail": f"params is not JSON ({error})."}, 400)
    message = f"The server failed ({type(error).__name__}: {error}). Nothing was stored; its log says more."
    return JSONResponse({"detail": message}, 500)


class Guard:
    """Refuses, before anything reads the request, what MONAI Label would not: each with an HTTP error that says what to do.

    Clients from other machines, unless the server was started for them; names that hold a path; archives, whose content is
    not checked; bodies above a limit, which are read to their end but not kept, so that the client gets the answer.

    Args:
        app: the next ASGI application.
        remote: serve other machines.
        max_bytes: the largest body of a request.
    """

    def __init__(self, app: ASGIApp, remote: bool, max_bytes: int) -> None:
        self.app, self.remote, self.max_bytes = app, remote, max_bytes

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        host = (scope.get("client") or ("testclient",))[0]
        if not self.remote and not LOOPBACK.match(host):
            return 403, "This server answers its own machine only. Start it with --host ADDRESS to serve others."
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
        refusal = self._refusal(scope)
        length = dict(scope["headers"]).get(b"content-length", b"0")
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


def infer(
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

    MONAI Label's own endpoint runs in the event loop, where it stops every other request, the images of all viewers
    included; this one runs in a thread. ``output=dicom_seg`` gives a DICOM Segmentation of the mask.
    """
    try:
        if output == ResultType.dicom_seg:
            instance = app_instance()
            result = instance.infer(
                {**json.loads(params), "model": model, "image": image, "result_extension": ".nii.gz"}
            )
            background_tasks.add_task(remove_file, result["file"])
            path = instance.dicom_segmentation(image, result)
            background_tasks.add_task(remove_file, path)
            return FileResponse(path, media_type="application/dicom", filename=f"{image}.dcm")
        return run_inference(background_tasks, model, image, session_id, params, file, label, output)
    except BaseException:
        # they remove the uploads, and wouldn't run after an error
        asyncio.run(background_tasks())
        raise


def prepare(app: FastAPI, conf: dict[str, str]) -> None:
    """Put all of this into MONAI Label's FastAPI application, once, as it starts.

    Args:
        app: the application.
        conf: ``max_upload_mb``, the largest request, 512 by default.
    """
    if getattr(app.state, "prepared", False):
        return
    app.state.prepared = True
    # MONAI Label listens on every address unless told otherwise; only who says so serves other machines
    remote = any(argument == "-i" or argument.startswith("--host") for argument in sys.argv)
    max_bytes = int(float(conf.get("max_upload_mb", 512)) * 2**20)
    app.user_middleware.append(Middleware(Guard, remote=remote, max_bytes=max_bytes))
    for error in (MONAILabelException, json.JSONDecodeError, Exception):
        app.add_exception_handler(error, answer)
    router = APIRouter(tags=["Infer"])
    router.add_api_route("/infer/{model}", infer, methods=["POST"], summary="Run inference")
    app.include_router(router)
    app.router.routes.insert(0, app.router.routes.pop())
    # built at the server's first call, before there was an app
    app.middleware_stack = None


def environment_on_path() -> None:
    """Put the commands of this environment on the PATH: MONAI Label looks for dcmqi there, or downloads it."""
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PATH"))))
