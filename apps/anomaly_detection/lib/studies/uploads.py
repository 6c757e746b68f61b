"""Files that came from a client."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

_ELSEWHERE = re.compile(rb"ElementDataFile\s*[=:](?!\s*LOCAL\s*\n)|\bdata ?file:", re.IGNORECASE)


def holds_itself(path: str | Path) -> None:
    """Refuse an upload whose header names another file for the voxels: it would be read from this server's disk.

    Raises:
        MONAILabelException: INVALID_INPUT, it does.
    """
    with open(path, "rb") as file:
        # the last two lines of the headers of MetaImage and NRRD files, but a reader may find them anywhere
        elsewhere = os.path.getsize(path) and _ELSEWHERE.search(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if elsewhere:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, "The voxels must be in the file itself; its header names another file."
        )
