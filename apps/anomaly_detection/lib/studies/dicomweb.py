"""Studies on a DICOMweb server."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset

from lib.studies.dicom_server import number_in, spoken_sequence
from lib.studies.fetched_studies import FetchedStudies
from lib.studies.names import plain
from lib.studies.objects import predicted, predicted_map, predicted_overlay, reviewed
from lib.studies.register import exclusively
from lib.studies.reviews import Reviews
from lib.studies.storing import RefusedError
from lib.studies.tags import FINAL, MAP_TAG, ORIGINAL
from lib.studies.unchanged import check_unchanged, stamps_of
from lib.studies.uploads import holds_itself

if TYPE_CHECKING:
    from scripts.images.sequences import Candidate

logger = logging.getLogger(__name__)


class DICOMwebStudies(FetchedStudies):
    """Studies on a DICOMweb server: every series of the models' modalities is an image, its SeriesInstanceUID the id.

    Predicted masks and maps go back to the server, in series of their own. Of a radiograph, a picture with the mask's outline
    goes back: OHIF fails on a Segmentation without a place in space. Masks that readers submit for one stay here.

    Args:
        store_results: whether predicted masks and maps are sent to the server.
        args, kwargs: of `FetchedStudies`.
    """

    def __init__(self, *args: Any, store_results: bool = True, **kwargs: Any) -> None:
        self._store_results = store_results
        self._in_several: set[str] = set()
        super().__init__(*args, **kwargs)
        # not segmentations.json, in which 0.2 kept odd answers as findings
        self._reviews = Reviews(self._server, Path(self._datastore_path) / "readings.json")

    def status(self) -> dict[str, Any]:
        """As for a folder; while the DICOM server is away, what is wrong: studies that were fetched can still be read."""
        self._read_again()
        try:
            return super().status()
        except MONAILabelException as error:
            return {"total": 0, "completed": 0, "label_tags": {}, "error": error.msg}

    def list_images(self) -> list[str]:
        searches = [{**self._search_filter, "Modality": modality} for modality in self._modalities]
        found = [series for search in searches for series in self._server.series(**search)]
        wanted = (None, *self.sequences)
        alone = self._in_one_study(found)
        return [str(s.SeriesInstanceUID) for s in alone if not self.sequences or spoken_sequence(s) in wanted]

    def _in_one_study(self, found: Sequence[Dataset]) -> list[Dataset]:
        """Those of these series that are in one study; another one is named in the log, once."""
        studies: defaultdict[str, set[str]] = defaultdict(set)
        for series in found:
            studies[str(series.SeriesInstanceUID)].add(str(series.get("StudyInstanceUID", "")))
        for uid in studies.keys() - self._in_several:
            if len(studies[uid]) > 1:
                logger.warning("%s is in several studies, %s, and left out.", uid, " and ".join(sorted(studies[uid])))
                self._in_several.add(uid)
        return [series for series in found if len(studies[str(series.SeriesInstanceUID)]) == 1]

    def taken_by(self, images: Sequence[str], modalities: Sequence[str]) -> list[str]:
        searches = [{**self._search_filter, "Modality": modality} for modality in modalities]
        found = {str(series.SeriesInstanceUID) for search in searches for series in self._server.series(**search)}
        return [image for image in images if image in found]

    def named(self, image_id: str) -> str | None:
        return spoken_sequence(self._described(image_id))

    def _labeled(self) -> set[str]:
        self._read_again()
        known = self._datastore.objects
        labeled = {image_id for image_id, obj in known.items() if FINAL in obj.labels}
        outdated = {uid for obj in known.values() for uid in obj.image.info.get("outdated", ())}
        return labeled | self._reviews.reviewed(outdated)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labeled = self._labeled()
        return [image_id for image_id in self.list_images() if image_id in labeled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labeled = self._labeled()
        return [image_id for image_id in self.list_images() if image_id not in labeled]

    def _sequences(self, image_id: str) -> dict[str, list[Candidate]]:
        from scripts.images.sequences import Candidate, in_order

        mine = self._server.one_series(image_id)
        found: defaultdict[str, list[Candidate]] = defaultdict(list)
        modality = str(mine.get("Modality", ""))
        study = self._server.series(StudyInstanceUID=str(mine.StudyInstanceUID), Modality=modality)
        for series in study:
            sequence = spoken_sequence(series)
            if sequence:
                name = str(series.get("SeriesDescription") or series.get("ProtocolName"))
                number = number_in(series, "SeriesNumber")
                found[sequence].append(Candidate(f"{name} ({number})", number, str(series.SeriesInstanceUID)))
        return {s: sorted(in_order(c), key=lambda one: one.place != image_id) for s, c in found.items()}

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        holds_itself(label_filename)
        with self._one_at_a_time(image_id):
            self._read_again()
            self._save_label(image_id, label_filename, label_tag, label_info)
        return image_id

    def _save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> None:
        image = self._seen(image_id)
        converted = None
        try:
            if label_filename.endswith(".bin"):
                converted = binary_to_image(image, label_filename)
            file = converted or label_filename
            # refuses what is not fit before a Segmentation is made of it
            self._writer(image_id, plain(label_tag, "label tag"), file)
            seg = None
            if label_tag == FINAL and not self._is_picture(image_id):
                seg = reviewed(self.series(image_id), file, self.version)
                content = hashlib.sha256(seg.PixelData).hexdigest()
                self._named_as_before(image_id, FINAL, seg, content)
                label_info = {**label_info, "SeriesInstanceUID": str(seg.SeriesInstanceUID)}
            # first: were it kept after it was sent, a full disk would leave another one on the server at every try
            super().save_label(image_id, file, label_tag, label_info)
        except ValueError as error:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"The label {label_tag!r} of {image_id} does not fit its images ({error}). Nothing was stored.",
            ) from error
        finally:
            if converted:
                os.unlink(converted)
        if seg is not None:
            try:
                self._send(image_id, FINAL, seg, content)
            except MONAILabelException as error:
                again = "" if isinstance(error.__cause__, RefusedError) else "; submit it again to send it"
                message = f"{error.msg} The label is kept on this server alone{again}."
                raise MONAILabelException(error.error, message) from error

    def _seen(self, image_id: str) -> str:
        """The path of a series that somebody has drawn on.

        Raises:
            MONAILabelException: INVALID_INPUT, it is found only now that other images have taken the place of those.
        """
        before = stamps_of([str(self._volume_of(image_id))])
        path = self.get_image_uri(image_id)
        if all(before.values()) and stamps_of(list(before)) != before:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"The images of {image_id} were replaced on {self._server.url}. Look whether the label is of the new ones, "
                "and submit it again. Nothing was stored.",
            )
        return path

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refused: what lies here is fetched. A file of a client's name could take the place of a series or of what is known.

        Raises:
            MONAILabelException: INVALID_INPUT.
        """
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"Studies are those of {self._server.url}: store the image on that server. Nothing was stored here.",
        )

    def segmentation_of(
        self, image_id: str, mask: str, params: Mapping[str, Any], read: Mapping[str, list[Any]] | None = None
    ) -> Dataset:
        """A predicted mask of a series as a DICOM Segmentation.

        Raises:
            MONAILabelException: INVALID_INPUT, see `predicted` and `check_unchanged`.
        """
        with self._one_at_a_time(image_id):
            check_unchanged(image_id, read)
            return predicted(self.series(image_id), mask, params)

    def save_results(
        self,
        image_id: str,
        tag: str,
        labels: str,
        results: Mapping[str, Path],
        params: Mapping[str, Any],
        read: Mapping[str, list[Any]] | None = None,
        made_with: Mapping[str, Any] | None = None,
    ) -> None:
        """As for a folder; then what is stored of them goes to the DICOM server, once for all that it was made with.

        Of several objects that are sent one may fail, or be deleted there; then the next time only those that are missing are
        sent. One that the server refuses for good is a warning in the log.

        Raises:
            MONAILabelException: SERVER_ERROR, the images were replaced, see `check_unchanged`, or not all could be sent; the
                message says what was kept and sent.
        """
        from scripts.digests import json_digest

        if not self._store_results or tag != ORIGINAL:
            super().save_results(image_id, tag, labels, results, params, read)
            return
        with self._one_at_a_time(image_id):
            self._read_again()
            check_unchanged(image_id, read)
            setting = json_digest(made_with or {key: params[key] for key in ("options", "weights", "version")})
            known = self._datastore.objects.get(image_id)
            stored = dict(known.image.info.get("stored", {})) if known else {}
            makers: list[tuple[Callable[..., Dataset], Any]] = [(predicted, labels), (predicted_map, results[MAP_TAG])]
            if self._is_picture(image_id):
                makers = [(predicted_overlay, labels)]
            there = [uid if uid and self._is_there(image_id, uid) else "" for uid in stored.get(setting, ())]
            sent = [*there, *[""] * len(makers)][: len(makers)]
            images = [] if all(sent) else self.series(image_id)
            missing = {n: make(images, file, params) for n, (make, file) in enumerate(makers) if not sent[n]}
            super().save_results(image_id, tag, labels, results, params, read)
            for n, dataset in missing.items():
                if self._is_taken(image_id, f"{n} {setting}", dataset):
                    sent[n] = str(dataset.SeriesInstanceUID)
                    self._note(image_id, {"stored": {**stored, setting: [*sent]}})

    def _is_there(self, image_id: str, uid: str) -> bool:
        """Whether a series that was stored, of a result, is still on the server; while that can't be told, it is.

        If not, the next one has UIDs of its own: a server may refuse those of what was deleted.
        """
        try:
            if self._server.has_series(uid):
                return True
        except MONAILabelException as error:
            logger.warning("%s: whether %s is still there can't be told: %s", image_id, uid, error.msg)
            return True
        self._note(image_id, {"sent": {what: u for what, u in self._sent(image_id).items() if u[0] != uid}})
        return False

    def _is_taken(self, image_id: str, what: str, dataset: Dataset) -> bool:
        """Send a part of a result that is kept here, see `_send`; whether the server takes such an object."""
        try:
            self._send(image_id, what, dataset)
        except MONAILabelException as error:
            if isinstance(error.__cause__, RefusedError):
                logger.warning("%s: %s It is kept here all the same.", image_id, error.msg)
                return False
            message = (
                f"{error.msg} The result and its score are kept here; the next time, what is missing there is sent."
            )
            raise MONAILabelException(error.error, message) from error
        return True

    def _send(self, image_id: str, what: str, dataset: Dataset, content: str = "") -> None:
        """Send an object, once: if the answer is lost, it is asked for the next time, and the same one is sent again.

        Args:
            image_id: of its series.
            what: tells it from all else that is sent for the series; the last one of that name counts.
            dataset: the object.
            content: another one is another object.
        """
        if not (self._named_as_before(image_id, what, dataset, content) and self._server.has(dataset)):
            uids, sent = [str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)], self._sent(image_id)
            before = [uid for uid in sent.get(what, ())[:1] if uid != uids[0]]
            outdated = [*self._datastore.objects[image_id].image.info.get("outdated", ()), *before]
            self._note(image_id, {"sent": {**sent, what: [*uids, content]}, "outdated": outdated})
            self._server.store(dataset)

    def _sent(self, image_id: str) -> dict[str, list[str]]:
        """What was sent for a series, whether it came or not: the UIDs of series and instance, and the content."""
        return dict(self._datastore.objects[image_id].image.info.get("sent", {}))

    def _named_as_before(self, image_id: str, what: str, dataset: Dataset, content: str = "") -> bool:
        """Give an object the UIDs under which it may be on the server; whether there are such."""
        *uids, before = self._sent(image_id).get(what, [""])
        if not uids or before != content:
            return False
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = uids
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        return True

    @exclusively
    def _note(self, image_id: str, sent: Mapping[str, Any]) -> None:
        try:
            self._keep(image_id, {}, sent)
        except MONAILabelException as error:
            message = f"{image_id}: what is sent to {self._server.url} can't be noted on the studies' disk."
            raise MONAILabelException(error.error, message) from error

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """As MONAI Label's.

        Raises:
            MONAILabelException: INVALID_INPUT, there is nothing to put into it.
        """
        if not self.datalist():
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "No study has a label of a reader here.")
        return str(super().get_dataset_archive(limit_cases))

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        self._read_again()
        return LocalDatastore.datalist(self, full_path)
