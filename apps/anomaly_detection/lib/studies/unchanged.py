"""Whether the files that something was made of are still the same when it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.studies.register import stamp_of


def stamps_of(paths: Sequence[str]) -> dict[str, list[int]]:
    """The stamps of files by their paths; an empty one where there is none."""
    return {path: stamp_of(Path(path)) if Path(path).is_file() else [] for path in paths}


def check_unchanged(image_id: str, stamps: Mapping[str, list[int]] | None) -> None:
    """See to it that nothing is kept for other images than those that it was made of.

    Args:
        image_id: for the message.
        stamps: of its files when they were read, see `stamps_of`; None checks nothing.

    Raises:
        MONAILabelException: SERVER_ERROR, a file is another one now, or gone.
    """
    if stamps and stamps_of(list(stamps)) != stamps:
        raise MONAILabelException(
            MONAILabelError.SERVER_ERROR,
            f"{image_id}: the series was replaced meanwhile; run it again. Nothing was stored.",
        )
