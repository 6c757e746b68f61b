"""Names: of images, which never lead to another file, and what they say of a study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

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


@lru_cache(maxsize=1 << 16)
def named_as(name: str, channels: tuple[str, ...] = ()) -> tuple[str | None, str]:
    """The sequence that an image file is named as, and its name without that, the same for all sequences of a study.

    Where a file's name says nothing, its folder's does if that is one word: "FLAIR", "T1w", "labelsTr".

    Args:
        name: its path in the folder of the studies.
        channels: of the models; those that are no MR sequences are the last words of a name.
    """
    from scripts.images.formats import stem as stem_of
    from scripts.images.sequences import RULES, sequence_of

    path = Path(name)
    stem = stem_of(path.name)
    for channel in channels:
        words = "[-_. ]".join(map(re.escape, channel.split()))
        last = None if channel in RULES else re.search(f"(?:^|[-_. ]){words}$", stem, re.IGNORECASE)
        if last:
            return channel, str(path.parent / stem[: last.start()])
    sequence = sequence_of(stem)
    if sequence:
        return sequence, str(path.parent / re.sub(f"(?:{RULES[sequence]})[a-z0-9]*", "", stem, flags=re.IGNORECASE))
    folder = path.parent.name
    # "lesion" may well be a folder of patients
    spoken = re.fullmatch("(?!lesion)[a-z0-9]+", folder, re.IGNORECASE)
    sequence = sequence_of(folder) if spoken else None
    return sequence, str(path.parent.parent / stem) if sequence else str(path.parent / stem)


def split_ending(file: str, formats: Sequence[str] = FORMATS) -> tuple[str, str]:
    """A file's name without and with only the ending of its format, "" if that is none of `formats`."""
    end = next((len(e) for e in formats if file.lower().endswith(e)), 0)
    return (file[:-end], file[-end:]) if end else (file, "")
