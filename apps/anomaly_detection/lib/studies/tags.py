"""The tags under which an image's labels are kept, and the keys in what is known of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.studies.names import plain

MAP_TAG, COUNTERFACTUAL_TAG = "anomaly_map", "counterfactual"
"""Label tags under which the float results of an image are kept, for clients that can show them."""
FINAL, ORIGINAL = DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value
SCORE, P_DISEASED, DICE = "anomaly_score", "p_diseased", "dice"
"""Keys in an image's info: the score that orders the worklist, the probability that goes with it, and how well a model's label
matches a reader's."""
RESULTS = (SCORE, P_DISEASED, DICE)
"""Keys in an image's info that say what models gave: of another image they say nothing."""
STAMP = "stamp"
"""Key in the info of an image, and of a label that was found to be whole: of the file, see `stamp_of`."""
DIGEST = "sha256"
"""Key in an image's info: of the file, where something is known that can't be computed anew."""
IDENTITY = "identity"
"""Key in a series' info: of which patient and study it was on the server when it was fetched."""
BEFORE = "before"
"""Key in an image's info: what was known of the file whose place this one took."""
FINAL_OF = "final-of-"
"""Begins the tag of a reader's label of a series that had other images then, or of another file."""

SLICES = ".slices."
"""Begins the name of a file beside a label that has the scores of its slices, see `slices_file`."""


def slices_file(folder: Path, image_id: str) -> Path:
    """Where the params of an image's label stand whole, with the scores of slices.

    Args:
        folder: of the labels of one tag.
        image_id: of the image.
    """
    return folder / f"{SLICES}{image_id}.json"


def numbered(tag: str) -> Iterator[str]:
    """`tag`, then with the numbers 2, 3 and on: of two images that were replaced, a tag may say the same."""
    return chain([tag], (f"{tag}-{n}" for n in count(2)))


def result_tag(tag: Any, model: str, is_original: bool) -> str:
    """The tag under which what a model gave is kept.

    Args:
        tag: that a request asked for; none is "original".
        model: its name, the tag of what is not the mask that readers correct.
        is_original: whether it is that mask.

    Raises:
        MONAILabelException: INVALID_INPUT, the tag holds a path, or what is kept under it is no model's mask.
    """
    tag = plain(tag or ORIGINAL, "label tag")
    if tag.casefold() in (FINAL, MAP_TAG, COUNTERFACTUAL_TAG) or tag.casefold().startswith(FINAL_OF):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"label_tag {tag!r} is not allowed for what a model gives: {FINAL!r} is the label of a reader, {MAP_TAG!r} and "
            f"{COUNTERFACTUAL_TAG!r} are kept beside the mask. Allowed are {ORIGINAL!r} (the default), {model!r}, other names.",
        )
    return model if tag == ORIGINAL and not is_original else tag
