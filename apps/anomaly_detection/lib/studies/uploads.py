"""Files that came from a client."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from pathlib import Path
from typing import BinaryIO

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.studies.sizes import check_size, largest

_ELSEWHERE = re.compile(rb"ElementDataFile\s*[=:](?!\s*LOCAL\s*\n)|\bdata ?file:", re.IGNORECASE)


def holds_itself(upload: str | Path | BinaryIO) -> None:
    """Refuse an upload whose header names another file for the voxels: it would be read from this server's disk.

    Args:
        upload: its path, or the file on the disk, open.

    Raises:
        MONAILabelException: INVALID_INPUT, it does.
    """
    if isinstance(upload, str | Path):
        with open(upload, "rb") as file:
            holds_itself(file)
        return
    number = upload.fileno()
    # the last two lines of the headers of MetaImage and NRRD files, but a reader may find them anywhere
    if os.fstat(number).st_size and _ELSEWHERE.search(mmap.mmap(number, 0, access=mmap.ACCESS_READ)):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, "The voxels must be in the file itself; its header names another file."
        )


def small_enough(path: str | Path) -> None:
    """Refuse an upload that is no larger than others until its voxels are unpacked.

    Raises:
        MONAILabelException: INVALID_INPUT, it holds more than `set_largest` allows.
    """
    try:
        check_size(path, largest["voxels"])
    except ValueError as error:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"The image {str(error).removesuffix('.')}; see --conf max_upload_mb."
        ) from error


def is_upload(image: str, sessions: str | None) -> bool:
    """Whether the server itself put this file there for this request.

    Args:
        image: what a request asks for: an id, or the path of an upload.
        sessions: the folder of the sessions' uploads.

    Raises:
        MONAILabelException: INVALID_INPUT, it is empty, or any other path.
    """
    if not image:
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, "image must be the id of one of the studies' images.")
    path = Path(image)
    if not path.is_absolute():
        return False
    resolved, uploads = path.resolve(), Path(tempfile.gettempdir()).resolve()
    uploaded = resolved.parent == uploads and path.name.startswith(tempfile.gettempprefix())
    if sessions is not None:
        uploaded = uploaded or resolved.is_relative_to(Path(sessions).resolve())
    if uploaded and path.exists():
        return True
    raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"image {image!r} is a path; give the id of an image.")
