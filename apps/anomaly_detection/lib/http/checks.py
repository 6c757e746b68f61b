"""What MONAI Label's routes are given, checked before they see it, and what they answer, where that would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monailabel.endpoints import datastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.utils.others.generic import get_basename
from starlette.datastructures import UploadFile

from lib.http.fields import check_choice, json_object
from lib.studies.names import FORMATS, plain, split_ending
from lib.studies.uploads import holds_itself

SESSION_FILE = "meta.info"
"""In which MONAI Label keeps what it knows of a session, beside the upload."""


def check_request(endpoint: Callable[..., Any], choice: tuple[str, str] | None, given: dict[str, Any]) -> None:
    """See to it that a request holds what its route can use; what is only missing is filled in.

    Args:
        endpoint: MONAI Label's.
        choice: of `CHOICES`, of what the route runs.
        given: the arguments of the route.

    Raises:
        MONAILabelException: INVALID_INPUT, it doesn't.
    """
    for name in ("params", "info"):
        if isinstance(given.get(name), str):
            json_object(given[name], name)
    for upload in (*(given.get("files") or ()), given.get("file"), given.get("label")):
        if isinstance(upload, UploadFile):
            _check_upload(upload)
    if choice:
        check_choice(choice, given)
    if endpoint is datastore.api_add_image and not given.get("image"):
        # MONAI Label's own id ends at the first dot: p1.t1.nii.gz would be p1, and no T1
        given["image"] = split_ending(get_basename(given["file"].filename or ""), _formats())[0] or None


def _formats() -> tuple[str, ...]:
    from scripts.images.formats import DICOM, PICTURES

    return (*FORMATS, *PICTURES, *DICOM)


def _check_upload(upload: UploadFile) -> None:
    name = plain(get_basename(upload.filename or "upload"), "file name")  # MONAI Label's client sends the whole path
    if name.casefold() == SESSION_FILE:
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"A file of the name {name} is not allowed.")
    upload.file.fileno()  # on the disk, where its ending doesn't matter
    upload.file.flush()
    holds_itself(upload.file)
