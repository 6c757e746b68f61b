"""The route that runs a model."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import Depends, File, Form, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import remove_file

from lib.http.fields import json_object
from lib.http.threads import INFER_THREADS, limiter
from lib.models.abandoning import Abandoned, abandoned
from lib.studies.names import plain
from lib.studies.uploads import holds_itself, small_enough

logger = logging.getLogger(__name__)


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
    if output == ResultType.dicom_seg and (file or session_id):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, "dicom_seg needs the id of a series as image; an upload is none."
        )

    def run() -> Any:
        # MONAI Label's `run_inference` also asks the DICOM server for all studies, whatever it runs on
        instance = app_instance()
        asked = {"model": model, "image": image, **options}
        plain(str(asked["image"] or "-"), "image id")  # a path would be taken for an upload
        if file:
            asked["image"] = _kept(file, background_tasks)
        elif session_id:
            sessions = instance.sessions()  # empty after a start, whatever lies on the disk
            found = sessions.get_session(session_id) if sessions is not None else None
            if found is None:
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"There is no session {session_id!r}.")
            asked["image"] = found.image
        if file or session_id:
            upload = Path(asked["image"])
            for part in upload.iterdir() if upload.is_dir() else [upload]:
                holds_itself(part)
                small_enough(part)
        if output != ResultType.dicom_seg:
            return send_response(instance.datastore(), instance.infer(asked), output, background_tasks)
        result = instance.infer({**asked, "result_extension": ".nii.gz"})
        background_tasks.add_task(remove_file, result["file"])
        path = instance.dicom_segmentation(asked["image"], result)
        background_tasks.add_task(remove_file, path)
        return FileResponse(path, media_type="application/dicom", filename=f"{asked['image']}.dcm")

    gone = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watcher = asyncio.create_task(watch())
    # the thread gets a copy of the context
    token = abandoned.set(gone.is_set)
    try:
        return await to_thread.run_sync(run, limiter=limiter("infer", INFER_THREADS))
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
