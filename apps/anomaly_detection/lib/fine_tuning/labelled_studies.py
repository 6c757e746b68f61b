"""The labelled studies of a datastore."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from monailabel.interfaces.datastore import DefaultLabelTag

from lib.fine_tuning.slice_classes import UNKNOWN, tag_labels
from lib.studies.base import Studies

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """One labelled image: its path, whose it is, and a label for each slice of the file."""

    image: str
    patient: str
    labels: Sequence[int]


def labelled_studies(
    datastore: Studies, modalities: Sequence[str], sequences: Sequence[str]
) -> tuple[list[Study], int]:
    """The studies with labels that can be used, and how many others were skipped.

    Args:
        datastore: of the studies, those of other models too, which are neither.
        modalities: that the model takes, in DICOM's words.
        sequences: likewise; an image may also be named as none.
    """
    from scripts.images.grids import image_grid
    from scripts.images.mask_labels import mask_labels

    studies, skipped, unlabelled = [], 0, 0
    for image_id in sorted(datastore.taken_by(datastore.list_images(), modalities)):
        try:
            info = datastore.get_image_info(image_id)
            label_id = datastore.get_label_by_image_id(image_id, DefaultLabelTag.FINAL)
            tag = info.get("image_label")
            if not label_id and tag is None:
                unlabelled += 1
                continue
            if sequences and datastore.named(image_id) not in (None, *sequences):
                continue
            image = datastore.get_image_uri(image_id)
            if label_id:
                mask = datastore.get_label_uri(label_id, DefaultLabelTag.FINAL)
                labels = mask_labels(mask, image_grid(image))
            else:
                labels = tag_labels(image, tag)
            if set(labels) == {UNKNOWN}:
                raise ValueError(f"{image}: the label of each slice is unknown.")
        except Exception as error:
            logger.warning("skipped %s: %s", image_id, error)
            skipped += 1
            continue
        studies.append(Study(image, str(info.get("PatientID") or image_id), labels))
    logger.info("%d images with labels; %d skipped; %d without a label", len(studies), skipped, unlabelled)
    return studies, skipped
