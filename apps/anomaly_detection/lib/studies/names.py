"""Names of images, which never lead to another file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

UID = re.compile(r"[0-9]+(\.[0-9]+)+")
MAX_BYTES = 200
"""Of a name in UTF-8. File systems take 255, and it gets an ending, and a beginning while it is written."""
GROUPS = ("all", "labeled", "unlabeled")
"""What MONAI Label calls the studies, those that readers labelled, and the others."""
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
        MONAILabelException: INVALID_INPUT, it holds a path, is too long, or can't be encoded as UTF-8.
    """
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[^/\\\x00-\x1f\ud800-\udfff]+", name)
        or len(name.encode()) > MAX_BYTES
        or name.startswith(".")
    ):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"{what} {name!r} is not allowed: a name without slashes, of at most {MAX_BYTES} bytes in UTF-8, not beginning "
            "with a dot.",
        )
    return name


def batch_images(images: Any) -> str | list[str]:
    """What a batch is to run on: `GROUPS` of the studies, or the ids of some.

    Raises:
        MONAILabelException: INVALID_INPUT, it is neither.
    """
    if isinstance(images, list):
        return [plain(image, "image id") for image in images]
    if images not in GROUPS:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"images must be {', '.join(GROUPS)} or a list of ids, got {images!r:.60}."
        )
    return str(images)


def split_ending(file: str, formats: Sequence[str] = FORMATS) -> tuple[str, str]:
    """A file's name without and with only the ending of its format, "" if that is none of `formats`."""
    end = next((len(e) for e in formats if file.lower().endswith(e)), 0)
    return (file[:-end], file[-end:]) if end else (file, "")
