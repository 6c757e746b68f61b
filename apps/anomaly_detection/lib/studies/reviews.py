"""Which series readers have reviewed, by the segmentations on their DICOM server."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import requests
from monailabel.interfaces.exception import MONAILabelException
from pydicom.dataset import Dataset

from lib.studies.dicom_server import AWAY, DicomServer

logger = logging.getLogger(__name__)


class Reviews:
    """A search doesn't return what is in sequences, so each segmentation is looked into, once.

    Args:
        server: that has the segmentations.
        path: the file in which it is kept what was found in each.
    """

    def __init__(self, server: DicomServer, path: Path) -> None:
        self._server, self._path = server, path

    def reviewed(self) -> set[str]:
        """Series with a segmentation that a reader drew or corrected; those of an algorithm don't count.

        A segmentation that can't be looked into is named in the log and doesn't count.

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
                key = f"{seg.SeriesInstanceUID} {seg.get('NumberOfSeriesRelatedInstances') or ''}"
                found = known[key] if key in known else self._read_by(seg)
                if found is not None:
                    now[key] = found
        finally:
            if now.keys() - known.keys():
                write(self._path, json.dumps({**known, **now}).encode())
        return {series for uids in now.values() for series in uids}

    def _read_by(self, seg: Dataset) -> list[str] | None:
        """The series that a series of segmentations shows to be read; None where the server fails on this one."""
        try:
            return self._server.read_by(str(seg.StudyInstanceUID), str(seg.SeriesInstanceUID))
        except MONAILabelException as error:
            if _is_away(error.__cause__):
                raise
            logger.warning(
                "Segmentation %s can't be fetched, and is no reading: %s", seg.SeriesInstanceUID, error.__cause__
            )
            return None
        except Exception as error:  # other software's can be wrong in every way
            logger.warning("Segmentation %s can't be read, and is no reading: %s", seg.SeriesInstanceUID, error)
            return []


def _is_away(error: BaseException | None) -> bool:
    """Whether a server answers nothing at all, by what one request came to."""
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in AWAY
    return not isinstance(error, requests.exceptions.InvalidJSONError)
