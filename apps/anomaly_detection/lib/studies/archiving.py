"""The files of images and labels in an archive."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException


def archived(name: str, ending: str, file: str) -> dict[str, str]:
    """The files of an image or a label by their names in an archive: its own, in a folder with those that its header names.

    Args:
        name: in the archive, without the ending.
        ending: of its format.
        file: its path.

    Raises:
        MONAILabelException: INVALID_INPUT, the header names a file outside of its folder.
    """
    from scripts.sources import data_files

    voxels = data_files(file)
    if not voxels:
        return {f"{name}{ending}": file}
    inside = {os.path.relpath(part, os.path.dirname(file)): part for part in (file, *voxels)}
    if any(".." in PurePosixPath(part).parts for part in inside):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"{name}: the files of its voxels must lie in the folder of its header to be archived.",
        )
    return {f"{name}/{part}": path for part, path in inside.items()}
