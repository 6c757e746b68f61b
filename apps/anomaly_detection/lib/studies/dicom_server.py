"""A DICOMweb server: what is asked of it, and one way to say that it doesn't answer."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from retrying import RetryError

from lib.studies.names import UID, plain
from lib.studies.register import unwritable
from lib.studies.storing import store

logger = logging.getLogger(__name__)

READERS = ("MANUAL", "SEMIAUTOMATIC")
"""Segment Algorithm Types of what a reader drew or corrected."""
AWAY = (401, 403, 408, 429, 502, 503, 504)
"""HTTP statuses that say nothing of what was asked for, but that the server gives nothing now."""
ODD = (
    (requests.exceptions.RequestException, RetryError, RuntimeError, OSError, ValueError)
    # what the client, and pydicom, make of a login page, of no content type and of rows that are none
    + (AttributeError, LookupError, TypeError, EOFError, struct.error, InvalidDicomError)
)
"""What comes of an answer that is none, or not what was asked for."""
UID_TAG = "00080018"
"""SOPInstanceUID in DICOM's JSON."""
FIELDS = ["SeriesDescription", "ProtocolName", "NumberOfSeriesRelatedInstances", "SeriesNumber"]
"""What searches for series return beside what every server returns."""


class DicomServer:
    """The server behind a client.

    Every method raises MONAILabelException, SERVER_ERROR, where the server doesn't answer as it should.
    """

    def __init__(self, client: DICOMwebClient) -> None:
        self._client = client
        self.url = str(client.base_url)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except ODD as error:
            raise MONAILabelException(
                MONAILabelError.SERVER_ERROR,
                f"The DICOM server {self.url} doesn't answer as it should ({type(error).__name__}: {error}). "
                "Is it running? Try again.",
            ) from error

    def series(self, **filters: Any) -> list[Dataset]:
        """The series that these attributes match."""
        return list(self._series(**filters))

    def one_series(self, uid: str) -> Dataset:
        """The series with a SeriesInstanceUID.

        Raises:
            ImageNotFoundException: there is none, or it is no UID.
            MONAILabelException: INVALID_INPUT, there is one in several studies.
        """
        if not UID.fullmatch(uid):
            raise ImageNotFoundException(f"{uid!r} is no SeriesInstanceUID.")
        found = [series for series in self._series(SeriesInstanceUID=uid) if str(series.SeriesInstanceUID) == uid]
        if not found:
            raise ImageNotFoundException(f"There is no series {uid} on {self.url}.")
        with self._answering():  # all that is asked for next names the study too
            studies = sorted({str(series["StudyInstanceUID"].value) for series in found})
        if len(studies) > 1:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"Series {uid} is in several studies on {self.url}, {' and '.join(studies)}: they may be of several patients.",
            )
        return found[0]

    def instances(self, study: str, series: str) -> set[str]:
        """The SOPInstanceUIDs of a series, as far as a search returns them."""
        search = partial(self._client.search_for_instances, study, series, fields=["SOPInstanceUID"])
        return {str(row.SOPInstanceUID) for row in self._found(search, "SOPInstanceUID")}

    def all_instances(self, study: str, series: str) -> set[str]:
        """The SOPInstanceUIDs of a series, whole but slow: a search may return a part alone, and know no offset."""
        with self._answering():
            metadata = self._client.retrieve_series_metadata(study, series)
            return {str(Dataset.from_json({UID_TAG: row[UID_TAG]}).SOPInstanceUID) for row in metadata}

    def has(self, dataset: Dataset) -> bool:
        """Whether an object is on the server."""
        try:
            return dataset.SOPInstanceUID in self.instances(dataset.StudyInstanceUID, dataset.SeriesInstanceUID)
        except MONAILabelException as error:
            if _says_no(error.__cause__):  # some have no empty list for a series that they don't know
                return False
            raise

    def has_series(self, uid: str) -> bool:
        """Whether a series is on the server."""
        try:
            return any(str(series.SeriesInstanceUID) == uid for series in self._series(SeriesInstanceUID=uid))
        except MONAILabelException as error:
            if _says_no(error.__cause__):
                return False
            raise

    def retrieve(self, study: str, series: str, folder: Path) -> int:
        """Save the instances of a series as ``SOPInstanceUID.dcm``; returns how many there are."""
        with self._answering():
            # as they are stored: not every server can decompress
            instances = self._client.retrieve_series(study, series, media_types=(("application/dicom", "*"),))
            for instance in instances:
                found = instance.StudyInstanceUID, instance.SeriesInstanceUID
                if found != (study, series):
                    raise ValueError(
                        f"asked for series {series} of study {study}, it gave one of {found[1]} of {found[0]}"
                    )
                path = folder / f"{plain(str(instance.SOPInstanceUID), 'SOPInstanceUID')}.dcm"
                try:
                    instance.save_as(path)
                except OSError as error:
                    raise MONAILabelException(MONAILabelError.SERVER_ERROR, unwritable(error)) from error
            return len({str(instance.SOPInstanceUID) for instance in instances})

    def read_by(self, study: str, series: str) -> list[str]:
        """The series that a series of segmentations shows to be read, by its Segment Algorithm Types (PS3.3 C.8.20.4)."""
        with self._answering():
            metadata = self._client.retrieve_series_metadata(study, series)
            if not (isinstance(metadata, list) and metadata):
                raise ValueError(f"no metadata of series {series}")
        instances = [Dataset.from_json(d) for d in metadata]  # which the server is not to blame for
        return sorted(
            {
                str(reference.SeriesInstanceUID)
                for instance in instances
                if any(s.get("SegmentAlgorithmType") in READERS for s in instance.get("SegmentSequence", []))
                for reference in instance.get("ReferencedSeriesSequence", [])
            }
        )

    def store(self, dataset: Dataset) -> None:
        """Store an object, see `store`; the error's cause is a RefusedError where the server takes no such object."""
        with self._answering():
            store(self._client, dataset)

    def _series(self, **filters: Any) -> Iterator[Dataset]:
        # a server may ignore what it can't match, and return what is of no use, or of another patient; a filter may be a list
        asked = {
            key: re.split(r"[\\,]", str(filters[key])) for key in ("Modality", "StudyInstanceUID") if key in filters
        }
        for series in self._searched(filters):
            if all(str(series.get(key, "")) in values for key, values in asked.items()):
                yield series

    def _searched(self, filters: dict[str, Any]) -> Iterator[Dataset]:
        search = partial(self._client.search_for_series, search_filters=filters, fields=FIELDS)
        return self._found(search, "SeriesInstanceUID")

    def _found(self, search: Callable[..., list[dict[str, Any]]], uid: str) -> Iterator[Dataset]:
        """What a search finds, told apart by a UID and the study; asked again behind what came until nothing new does.

        A server may return any part of it at a time, and needn't know an offset (PS3.18 8.3.4).
        """
        known: set[tuple[str, str]] = set()
        received = 0
        while True:
            try:
                with self._answering():
                    rows = [_read(row) for row in search(offset=received or None)]
                    keys = [(str(row[uid].value), str(row.get("StudyInstanceUID", ""))) for row in rows]
            except MONAILabelException as error:
                if received and _says_no(error.__cause__):
                    logger.info("%s knows nothing behind the first %d: %s", self.url, received, error.__cause__)
                    return
                raise
            if odd := [key for key in keys if not UID.fullmatch(key[0])]:
                logger.warning("%s lists %r as %s, which is no UID; it is left out.", self.url, odd[0][0], uid)
            new = {key: row for key, row in zip(keys, rows, strict=True) if key not in {*known, *odd}}
            if not new:
                return
            yield from new.values()
            known |= new.keys()
            received += len(rows)


def _read(row: dict[str, Any]) -> Dataset:
    """What a search tells of one series or instance, without attributes whose values are none of their kind."""
    try:
        return Dataset.from_json(row)
    except ValueError:
        read = Dataset()
        for tag, element in row.items():
            try:
                read.update(Dataset.from_json({tag: element}))
            except ValueError as error:
                logger.warning("The DICOM server says %r of attribute %s; it is left out: %s", element, tag, error)
        return read


def number_in(series: Dataset, key: str) -> int:
    """A whole number that a server tells of a series; 0 where it tells none, or several."""
    value = series.get(key)
    return int(value) if isinstance(value, int | float) else 0


def gives_nothing(error: BaseException | None) -> bool:
    """Whether a server says that it answers nobody now, or not this client; what it says of one object isn't that."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in AWAY and status not in (408, 502, 504)


def _says_no(error: BaseException | None) -> bool:
    """Whether a server refuses what it was asked for, such as an offset behind the end, and not who asks or how often."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return 400 <= status < 500 and status not in AWAY


def spoken_sequence(series: Mapping[str, Any] | Dataset) -> str | None:
    """The sequence that a series' description speaks of, or where it is empty its protocol's name."""
    from scripts.images.sequences import sequence_of

    return sequence_of(str(series.get("SeriesDescription") or series.get("ProtocolName") or ""))
