"""Images that took the place of others: what was known is of the others."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel

from lib.studies.folder_files import label_names, may_come_back
from lib.studies.register import stamp_of
from lib.studies.tags import (
    BEFORE,
    COUNTERFACTUAL_TAG,
    DIGEST,
    FINAL,
    FINAL_OF,
    MAP_TAG,
    ORIGINAL,
    RESULTS,
    STAMP,
    numbered,
    slices_file,
)

logger = logging.getLogger(__name__)

COMPUTED = ("ts", "name", STAMP, DIGEST, BEFORE, *RESULTS, "strategy")
"""Keys in an image's info that nobody entered."""


def digest_at(path: Path, stamp: list[Any]) -> str:
    """The SHA-256 of the file that has this stamp, with the files of its voxels, see `source_digest`.

    Raises:
        OSError: it can't be read, or has others by now.
    """
    from scripts.digests import source_digest

    digest = source_digest(str(path))
    if digest is None or stamp_of(path) != stamp:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return digest


def is_another(info: Mapping[str, Any], path: Path, stamp: list[Any], is_named_so: bool) -> bool:
    """Whether a file is not the one that something is known of; one that was only copied or renamed is.

    Args:
        info: what is known.
        path: of the file.
        stamp: its own, see `stamp_of`.
        is_named_so: whether the known one has that name. Where versions before kept no stamp, that alone counts.

    Raises:
        OSError: the file can't be read.
    """
    from scripts.digests import digest_of

    known = info.get(STAMP)
    if known is None:
        return not is_named_so
    before = is_of_header_alone(known, stamp)
    if known == (stamp[:2] if before else stamp):
        return False
    if known[0] != stamp[0] or DIGEST not in info:
        return True
    return (digest_of(path) if before else digest_at(path, stamp)) != info[DIGEST]


def is_of_header_alone(known: list[Any], stamp: list[Any]) -> bool:
    """Whether a known stamp, and its digest, are a version's before, which did not look at the files of voxels."""
    return len(known) == 2 < len(stamp)


def set_aside(image_id: str, old: ImageLabelModel, labels: Path) -> ImageLabelModel:
    """Put aside what is known of an image that another one took the place of.

    Results of models go. What readers drew is kept under tags that say of what file it is, and what was entered of the image
    under the key `BEFORE`.

    Args:
        image_id: of both.
        old: what is known.
        labels: the folder of labels.

    Returns:
        What is known from here on; the new image's name and stamp are not in it.

    Raises:
        OSError: a label can't be moved, or can't be read now.
    """
    if any(may_come_back(labels, name, set()) for name in label_names(image_id, old)):
        # labels that can't be set aside now would count as those of the new image later
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    info = old.image.info
    what = str(info.get(DIGEST) or info.get(STAMP, ["other"])[0])[:12]
    kept = {}
    for tag, label in old.labels.items():
        file = labels / tag / f"{image_id}{label.ext}"
        if tag.startswith(FINAL_OF):
            kept[tag] = label
        elif not file.is_file():
            continue
        elif tag in (ORIGINAL, MAP_TAG, COUNTERFACTUAL_TAG) or "made_with" in label.info:
            file.unlink()
        else:
            aside = f"{FINAL_OF}{what}" + ("" if tag == FINAL else f"-{tag}")
            aside = next(t for t in numbered(aside) if not (labels / t / file.name).exists())
            (labels / aside).mkdir(exist_ok=True)
            os.replace(file, labels / aside / file.name)
            kept[aside] = label
        slices_file(file.parent, image_id).unlink(missing_ok=True)
    logger.warning(
        "%s: its file is another one than before. What was known of that one is set aside%s.",
        image_id,
        f", labels of readers under {', '.join(sorted(kept))}" if kept else "",
    )
    entered = {k: v for k, v in info.items() if k not in COMPUTED} or info.get(BEFORE)
    new = {"ts": int(time.time())} | ({BEFORE: entered} if entered else {})
    return ImageLabelModel(image=DataModel(ext=old.image.ext, info=new), labels=kept)
