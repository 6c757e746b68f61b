"""Whether the files that something was made of are still the same when it is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException


def stamps_of(paths: Sequence[str]) -> dict[str, list[Any]]:
    """The bundle's `state` of images by their paths; an empty one where there is none."""
    from scripts.sources import state

    return {path: state(path) if os.path.exists(path) else [] for path in paths}


def check_unchanged(image_id: str, stamps: Mapping[str, list[Any]] | None) -> None:
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
