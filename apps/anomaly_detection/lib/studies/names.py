"""Names of images, which never lead to another file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

UID = re.compile(r"[0-9]+(\.[0-9]+)+")
FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
"""Of images and labels, in any case: one volume with its orientation."""
OTHER_FORMATS = (
    ".mgz",
    ".mgh",
    ".img",
    ".hdr",
    ".nhdr",
    ".mnc",
    ".dcm",
    ".npy",
    ".npz",
    ".jpg",
    ".jpeg",
    ".png",
    ".tif",
)


def plain(name: str, what: str) -> str:
    """`name`, if it can be a file's name and nothing else.

    Raises:
        MONAILabelException: INVALID_INPUT, it holds a path.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\\x00-\x1f]{1,200}", name) or name.startswith("."):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"{what} {name!r} is not allowed: a name without slashes, not beginning with a dot.",
        )
    return name


def split_ending(file: str, formats: Sequence[str] = FORMATS) -> tuple[str, str]:
    """A file's name without and with only the ending of its format, "" if that is none of `formats`."""
    end = next((len(e) for e in formats if file.lower().endswith(e)), 0)
    return (file[:-end], file[-end:]) if end else (file, "")
