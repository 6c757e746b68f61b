"""What MONAI Label's routes are given, checked before they see it, and what they answer, where that would be wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import HTTPException
from monailabel.endpoints import datastore
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum, get_basename
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse

from lib.http.fields import CHECK_SUM, check_choice, json_object
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
    _check_names(given.get("files") or ())
    if choice:
        check_choice(choice, given)
    if "check_sum" in given:
        _check_sum(given)
    if isinstance(given.get("lines"), int):
        given["lines"] = min(given["lines"], sys.maxsize)  # more are no number for what reads them
    if endpoint is datastore.api_put_image_info:
        app_instance().datastore().check_entered(given["image"], json_object(given["info"], "info"))
    if endpoint is datastore.api_remove_label and not app_instance().datastore().get_label_uri(
        given["id"], given["tag"]
    ):
        raise LabelNotFoundException(f"There is no label {given['tag']!r} of {given['id']!r}.")
    if endpoint is datastore.api_add_image and not given.get("image"):
        # MONAI Label's own id ends at the first dot: p1.t1.nii.gz would be p1, and no T1
        given["image"] = split_ending(get_basename(given["file"].filename or ""), _formats())[0] or None


def check_answer(endpoint: Callable[..., Any], given: dict[str, Any], answer: Any) -> None:
    """See to it that nothing is said of what doesn't exist, where MONAI Label says {}, and that no file is sent in part.

    Raises:
        ImageNotFoundException, LabelNotFoundException: it doesn't exist.
        MONAILabelException: INVALID_INPUT, the file is a header of voxels that lie in others.
    """
    from scripts.sources import data_files

    voxels: list[str] = []
    if isinstance(answer, FileResponse):
        try:
            voxels = list(data_files(str(answer.path)))
        except OSError as error:  # of a header whose voxels can't be found now
            voxels = [str(error.filename or "")]
    if voxels:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"{os.path.basename(answer.path)} is a header, and its voxels lie in other files, which a download leaves out. "
            "Keep it in the studies as one file, such as .nii.gz; GET /datastore/dataset gives all files of those with labels.",
        )
    if answer == {} and endpoint is datastore.api_get_label_info:
        raise LabelNotFoundException(f"There is no label {given['tag']!r} of {given['label']!r}.")
    # of a series that was not fetched, nothing is known here
    if (
        answer == {}
        and endpoint is datastore.api_get_image_info
        and app_instance().datastore().modality(given["image"]) is None
    ):
        raise ImageNotFoundException(f"There is no image {given['image']!r} among the studies.")


def _check_sum(given: dict[str, Any]) -> None:
    """Compare an image's sum here: MONAI Label compares the digits with what has the method's name before it."""
    wanted = given["check_sum"] or ""
    if not CHECK_SUM.fullmatch(wanted):
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, "check_sum must be SHA256:DIGITS, SHA512: or MD5:.")
    given["check_sum"] = None
    if wanted:
        method, _, digits = wanted.rpartition(":")
        image = app_instance().datastore().get_image_uri(given["image"])
        found = file_checksum(image, method or "SHA256").rpartition(":")[2]
        if found.lower() != digits.lower():
            raise HTTPException(404, "Image NOT Found (checksum failed)")


def _formats() -> tuple[str, ...]:
    from scripts.images.formats import DICOM, PICTURES

    return (*FORMATS, *PICTURES, *DICOM)


def _check_names(uploads: Sequence[UploadFile]) -> None:
    """See to it that files that are sent together have names of their own: MONAI Label keeps the last of each name."""
    seen: set[str] = set()
    for upload in uploads:
        name = get_basename(upload.filename or "")
        if name.casefold() in seen:  # some disks don't tell capitals
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"More than one file has the name {name}. Files of one upload need different names, without their folders and "
                "whatever their capitals.",
            )
        seen.add(name.casefold())


def _check_upload(upload: UploadFile) -> None:
    name = plain(get_basename(upload.filename or "upload"), "file name")  # MONAI Label's client sends the whole path
    if name.casefold() == SESSION_FILE:
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"A file of the name {name} is not allowed.")
    upload.file.fileno()  # on the disk, where its ending doesn't matter
    upload.file.flush()
    holds_itself(upload.file)
