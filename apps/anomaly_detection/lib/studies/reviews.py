"""Which series readers have reviewed, by the segmentations on their DICOM server."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from pathlib import Path

import requests
from monailabel.interfaces.exception import MONAILabelException
from pydicom.dataset import Dataset

from lib.studies.dicom_server import DicomServer, gives_nothing
from lib.studies.register import unwritable

LEFT_OUT_SECONDS = 600.0
"""So long a segmentation is not asked for again that the server took too long for, or that could not be read."""

logger = logging.getLogger(__name__)


class Reviews:
    """A search doesn't return what is in sequences, so each segmentation is looked into, once.

    Args:
        server: that has the segmentations.
        path: the file in which it is kept what was found in each that could be looked into.
    """

    def __init__(self, server: DicomServer, path: Path) -> None:
        self._server, self._path = server, path
        # by the keys of those that are left out, until when: the server may be mended
        self._left_out: dict[str, float] = {}

    def reviewed(self, outdated: Collection[str] = ()) -> set[str]:
        """Series with a segmentation that a reader drew or corrected; those of an algorithm don't count.

        A segmentation that can't be looked into is named in the log and doesn't count.

        Args:
            outdated: SeriesInstanceUIDs of segmentations that don't count: of images that others took the place of.

        Raises:
            MONAILabelException: SERVER_ERROR, the server doesn't answer.
        """
        from scripts.files import write

        try:
            known = dict(json.loads(self._path.read_text()))
        except (OSError, ValueError):
            known = {}
        now: dict[str, list[str]] = {}
        try:
            for seg in self._server.series(Modality="SEG"):
                if str(seg.SeriesInstanceUID) in outdated:
                    continue
                key = f"{seg.SeriesInstanceUID} {seg.get('NumberOfSeriesRelatedInstances') or ''}"
                found = known[key] if key in known else self._looked_into(seg, key)
                if found is not None:
                    now[key] = found
        finally:
            if now.keys() - known.keys():
                try:
                    write(self._path, json.dumps({**known, **now}).encode())
                except OSError as error:  # they are looked into again the next time
                    logger.warning("What readers have reviewed is not kept: %s", unwritable(error))
        return {series for uids in now.values() for series in uids}

    def _looked_into(self, seg: Dataset, key: str) -> list[str] | None:
        """The series that a series of segmentations shows to be read; None where it can't be looked into."""
        if time.monotonic() < self._left_out.get(key, 0.0):
            return None
        try:
            return self._server.read_by(str(seg.StudyInstanceUID), str(seg.SeriesInstanceUID))
        except MONAILabelException as error:
            if gives_nothing(error.__cause__):
                raise
            # no answer on this one: is there one on anything else?
            self._server.has_series(str(seg.SeriesInstanceUID))
            if isinstance(error.__cause__, requests.exceptions.Timeout):
                self._left_out[key] = time.monotonic() + LEFT_OUT_SECONDS
            logger.warning(
                "Segmentation %s can't be fetched, and is no reading: %s", seg.SeriesInstanceUID, error.__cause__
            )
            return None
        except Exception as error:  # other software's can be wrong in every way
            logger.warning("Segmentation %s can't be read, and is no reading: %s", seg.SeriesInstanceUID, error)
            self._left_out[key] = time.monotonic() + LEFT_OUT_SECONDS
            return None
