"""Which series readers have reviewed, by the segmentations on their DICOM server."""

from __future__ import annotations

import json
from pathlib import Path

from lib.studies.dicom_server import DicomServer


class Reviews:
    """A search doesn't return what is in sequences, so each segmentation is looked into, once.

    Args:
        server: that has the segmentations.
        path: the file in which it is kept what was found in each.
    """

    def __init__(self, server: DicomServer, path: Path) -> None:
        self._server, self._path = server, path

    def reviewed(self) -> set[str]:
        """Series with a segmentation that a reader drew or corrected; those of an algorithm don't count."""
        from scripts.files import write

        try:
            known = dict(json.loads(self._path.read_text()))
        except (OSError, ValueError):
            known = {}
        now: dict[str, list[str]] = {}
        try:
            for seg in self._server.series(Modality="SEG"):
                uid = str(seg.SeriesInstanceUID)
                key = f"{uid} {seg.get('NumberOfSeriesRelatedInstances') or ''}"
                now[key] = known[key] if key in known else self._server.read_by(str(seg.StudyInstanceUID), uid)
        finally:
            if now.keys() - known.keys():
                write(self._path, json.dumps({**known, **now}).encode())
        return {series for uids in now.values() for series in uids}
