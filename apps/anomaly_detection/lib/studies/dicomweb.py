"""Studies on a DICOMweb server."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset

from lib.studies.base import Studies
from lib.studies.dicom_server import DicomServer, spoken_sequence
from lib.studies.fetched import instances_in, picture_of, volume_of
from lib.studies.names import plain
from lib.studies.objects import predicted, predicted_map, predicted_overlay, reviewed
from lib.studies.register import exclusively
from lib.studies.reviews import Reviews
from lib.studies.storing import RefusedError
from lib.studies.tags import FINAL, FINAL_OF, MAP_TAG, SCORE
from lib.studies.uploads import holds_itself

if TYPE_CHECKING:
    from scripts.images.sequences import Candidate

logger = logging.getLogger(__name__)


def _unused(tag: str, tags: Collection[str]) -> str:
    """`tag`, with a number if there is one of that name: a series may be replaced again by as many images."""
    names = chain([tag], (f"{tag}-{n}" for n in count(2)))
    return next(name for name in names if name not in tags)


class DICOMwebStudies(Studies, DICOMWebDatastore):
    """Studies on a DICOMweb server: every series of the models' modalities is an image, its SeriesInstanceUID the id.

    Series are fetched whole or not at all, and again when their images on the server are others. Predicted masks and maps go
    back to the server, in series of their own. Of a radiograph, a picture with the mask's outline goes back: OHIF fails on a
    Segmentation without a place in space. Masks that readers submit for one stay here.

    Args:
        modalities: of the series, in DICOM's words; every other one is left out.
        store_results: whether predicted masks and maps are sent to the server.
        args, kwargs: of MONAI Label's `DICOMWebDatastore`.
    """

    def __init__(self, *args: Any, modalities: Sequence[str], store_results: bool = True, **kwargs: Any) -> None:
        self._modalities, self._store_results = modalities, store_results
        super().__init__(*args, **kwargs)
        self._server = DicomServer(self._client)
        self._reviews = Reviews(self._server, Path(self._datastore_path) / "segmentations.json")

    def status(self) -> dict[str, Any]:
        """As for a folder; while the DICOM server is away, what is wrong: studies that were fetched can still be read."""
        try:
            return super().status()
        except MONAILabelException as error:
            return {"total": 0, "completed": 0, "label_tags": {}, "error": error.msg}

    def list_images(self) -> list[str]:
        searches = [{**self._search_filter, "Modality": modality} for modality in self._modalities]
        found = [series for search in searches for series in self._server.series(**search)]
        wanted = (None, *self.sequences)
        return [str(s.SeriesInstanceUID) for s in found if not self.sequences or spoken_sequence(s) in wanted]

    def modality(self, image_id: str) -> str | None:
        return str(self._described(image_id).get("Modality") or "") or None

    def _described(self, image_id: str) -> Mapping[str, Any] | Dataset:
        """What is said of a series, here if it was fetched, or by the server."""
        known = self._info_of(plain(image_id, "image id"))
        return known if known is not None else self._server.one_series(image_id)

    def _info_of(self, image_id: str) -> dict[str, Any] | None:
        """What is known of a series that was fetched; None also where the register was lost, and the file found again."""
        known = self._datastore.objects.get(image_id)
        return dict(known.image.info) if known and known.image.info.get("StudyInstanceUID") else None

    def taken_by(self, images: Sequence[str], modalities: Sequence[str]) -> list[str]:
        searches = [{**self._search_filter, "Modality": modality} for modality in modalities]
        found = {str(series.SeriesInstanceUID) for search in searches for series in self._server.series(**search)}
        return [image for image in images if image in found]

    def named(self, image_id: str) -> str | None:
        return spoken_sequence(self._described(image_id))

    def _labeled(self) -> set[str]:
        labeled = {image_id for image_id, obj in self._datastore.objects.items() if FINAL in obj.labels}
        return labeled | self._reviews.reviewed()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labeled = self._labeled()
        return [image_id for image_id in self.list_images() if image_id in labeled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labeled = self._labeled()
        return [image_id for image_id in self.list_images() if image_id not in labeled]

    def input_of(self, image_id: str) -> str:
        path = self.get_image_uri(image_id)
        # of a radiograph the DICOM file itself, which says its view and how it is to be shown
        return str(picture_of(self._folder_of(image_id)).resolve()) if self._is_picture(image_id) else path

    def _is_picture(self, image_id: str) -> bool:
        from scripts.images.formats import takes_pictures

        return takes_pictures([self.modality(image_id) or "MR"])

    def get_image_uri(self, image_id: str) -> str:
        from scripts.images.formats import takes_pictures

        plain(image_id, "image id")
        path = Path(self._datastore.image_path()) / f"{image_id}.nii.gz"
        if self._is_fetched(image_id) and self._is_complete(image_id):
            return str(path.resolve())
        series = self._server.one_series(image_id)
        modality = str(series.get("Modality", ""))
        if modality not in self._modalities:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image_id}: is {modality or 'of no modality'}; allowed is {', '.join(self._modalities)}.",
            )
        expected = int(series.get("NumberOfSeriesRelatedInstances") or 0)
        with tempfile.TemporaryDirectory(dir=self._datastore_path, prefix=".fetch-") as partial:
            fetched = Path(partial) / "series"
            fetched.mkdir()
            number = self._server.retrieve(str(series.StudyInstanceUID), image_id, fetched)
            if not number and not expected:
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"Series {image_id} holds no image.")
            if number < expected:
                raise MONAILabelException(
                    MONAILabelError.SERVER_ERROR,
                    f"{image_id}: {number} of {expected} instances came from {self._server.url}; try again.",
                )
            nifti = volume_of(image_id, fetched, takes_pictures([modality]))
            try:
                info = {k: str(series.get(k, "")) for k in ("StudyDate", "StudyTime", "Modality", "PatientID")}
                names = ("SeriesDescription", "ProtocolName", "StudyInstanceUID", "RetrieveURL")
                info |= {k: str(series.get(k, "")) for k in names}
                self._take_in(image_id, fetched, nifti, {**info, "SeriesInstanceUID": image_id})
            finally:
                os.unlink(nifti)
        return str(path.resolve())

    def _folder_of(self, image_id: str) -> Path:
        """Where the images of a series are, each named by its SOPInstanceUID."""
        return Path(self._datastore.image_path()) / image_id

    def _is_fetched(self, image_id: str) -> bool:
        folder = self._folder_of(image_id)
        known = self._info_of(image_id) is not None
        return known and folder.is_dir() and folder.with_name(f"{image_id}.nii.gz").is_file()

    def _is_complete(self, image_id: str) -> bool:
        """Whether a series that was fetched has the same images on the server; while that can't be told, it is used."""
        study = str(self._datastore.objects[image_id].image.info["StudyInstanceUID"])
        try:
            return self._server.instances(study, image_id) == instances_in(self._folder_of(image_id))
        except MONAILabelException as error:
            logger.warning(
                "%s: whether more images have come can't be told, those of before are used: %s", image_id, error.msg
            )
            return True

    @exclusively
    def _take_in(self, image_id: str, fetched: Path, nifti: str, info: Mapping[str, Any]) -> None:
        """Put fetched images in the place of those of before.

        If they are not the same, results of those go, and a reader's label is kept under a tag that says of what it is.

        Args:
            image_id: of the series.
            fetched: folder of the images; it is moved.
            nifti: the volume that they make.
            info: on the series.
        """
        folder = self._folder_of(image_id)
        known = self._datastore.objects.get(image_id) or ImageLabelModel(image=DataModel(info={}))
        before = instances_in(folder)
        changed = bool(before or known.labels) and before != instances_in(fetched)
        name = f"{image_id}.nii.gz"
        writers = {folder.with_name(name): lambda part: shutil.copyfile(nifti, part)}
        kept, gone = dict(known.labels), {}
        old_info = dict(known.image.info)
        if changed:
            for key in (SCORE, "p_diseased", "stored", "dice"):
                old_info.pop(key, None)
            gone = {tag: label for tag, label in known.labels.items() if not tag.startswith(FINAL_OF)}
            kept = {tag: label for tag, label in known.labels.items() if tag not in gone}
            if FINAL in gone:
                tag, label = _unused(f"{FINAL_OF}{len(before)}-images", kept), gone[FINAL]
                source = self._place(image_id, FINAL, name)
                writers[self._place(image_id, tag, name)] = lambda part: shutil.copyfile(source, part)
                kept[tag] = label
            logger.warning(
                "%s: has other images than before (%d then, %d now) and was fetched again. Results of before are gone%s.",
                image_id,
                len(before),
                len(instances_in(fetched)),
                f"; the reader's label is kept under the tag {tag!r}" if FINAL in gone else "",
            )

        def change(parts: Mapping[Path, Path]) -> None:
            image = DataModel(info={**old_info, **info, "ts": int(time.time()), "name": name}, ext=".nii.gz")
            self._datastore.objects[image_id] = ImageLabelModel(image=image, labels=kept)

        self._replace(writers, change)
        for tag, label in gone.items():
            (Path(self._datastore.label_path(tag)) / f"{image_id}{label.ext}").unlink(missing_ok=True)
        # last: while the folder holds other images than the server, all this is done again
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fetched, folder)

    def _sequences(self, image_id: str) -> dict[str, list[Candidate]]:
        from scripts.images.sequences import Candidate, in_order

        mine = self._server.one_series(image_id)
        found: defaultdict[str, list[Candidate]] = defaultdict(list)
        study = self._server.series(StudyInstanceUID=str(mine.StudyInstanceUID), Modality=str(mine.Modality))
        for series in study:
            sequence = spoken_sequence(series)
            if sequence:
                name = str(series.get("SeriesDescription") or series.get("ProtocolName"))
                number = int(series.get("SeriesNumber") or 0)
                found[sequence].append(Candidate(f"{name} ({number})", number, str(series.SeriesInstanceUID)))
        return {s: sorted(in_order(c), key=lambda one: one.place != image_id) for s, c in found.items()}

    def series(self, image_id: str) -> list[Dataset]:
        """The instances of a series, in order, or its radiograph, as `get_image_uri` fetched them before."""
        from scripts.dicom.series import read_images

        if not self._is_fetched(image_id):
            self.get_image_uri(image_id)
        folder = self._folder_of(image_id)
        return read_images(picture_of(folder) if self._is_picture(image_id) else folder)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        holds_itself(label_filename)
        image = self.get_image_uri(image_id)
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
                label_info = {**label_info, "SeriesInstanceUID": str(seg.SeriesInstanceUID)}
            # first: were it kept after it was sent, a full disk would leave another one on the server at every try
            Studies.save_label(self, image_id, file, label_tag, label_info)
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
                self._server.store(seg)
            except MONAILabelException as error:
                again = "" if isinstance(error.__cause__, RefusedError) else "; submit it again to send it"
                message = f"{error.msg} The label is kept on this server alone{again}."
                raise MONAILabelException(error.error, message) from error
        return image_id

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refused: what lies here is fetched. A file of a client's name could take the place of a series or of what is known.

        Raises:
            MONAILabelException: INVALID_INPUT.
        """
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"Studies are those of {self._server.url}: store the image on that server. Nothing was stored here.",
        )

    def segmentation_of(self, image_id: str, mask: str, params: Mapping[str, Any]) -> Dataset:
        """A predicted mask of a series as a DICOM Segmentation.

        Raises:
            MONAILabelException: INVALID_INPUT, see `predicted`.
        """
        return predicted(self.series(image_id), mask, params)

    def save_results(
        self, image_id: str, tag: str, labels: str, results: Mapping[str, Path], params: Mapping[str, Any]
    ) -> None:
        """As for a folder; then what is stored of them goes to the DICOM server, once for every setting that made it.

        Of several objects that are sent one may fail; then the next time only those that are missing are sent. One that the
        server refuses for good is a warning in the log.

        Raises:
            MONAILabelException: SERVER_ERROR, not all could be sent; the message says what was kept and sent.
        """
        if not self._store_results:
            super().save_results(image_id, tag, labels, results, params)
            return
        # a batch, in a process of its own, may be at the same image
        with FileLock(f"{self._datastore_config_path}.{plain(image_id, 'image id')}.lock", is_singleton=True):
            self._read_again()
            made_with = json.dumps([params[k] for k in ("options", "weights", "version")])
            known = self._datastore.objects.get(image_id)
            stored = dict(known.image.info.get("stored", {})) if known else {}
            makers: list[tuple[Callable[..., Dataset], Any]] = [(predicted, labels), (predicted_map, results[MAP_TAG])]
            if self._is_picture(image_id):
                makers = [(predicted_overlay, labels)]
            sent = [*stored.get(made_with, ()), *[""] * len(makers)][: len(makers)]
            images = [] if all(sent) else self.series(image_id)
            missing = {n: make(images, file, params) for n, (make, file) in enumerate(makers) if not sent[n]}
            super().save_results(image_id, tag, labels, results, params)
            for n, dataset in missing.items():
                if self._is_taken(image_id, dataset):
                    sent[n] = str(dataset.SeriesInstanceUID)
                    self._note(image_id, {"stored": {**stored, made_with: sent}})

    def _is_taken(self, image_id: str, dataset: Dataset) -> bool:
        """Send a part of a result that is kept here; whether the server takes such an object."""
        try:
            self._server.store(dataset)
        except MONAILabelException as error:
            if isinstance(error.__cause__, RefusedError):
                logger.warning("%s: %s It is kept here all the same.", image_id, error.msg)
                return False
            message = (
                f"{error.msg} The result and its score are kept here; the next time, what is missing there is sent."
            )
            raise MONAILabelException(error.error, message) from error
        return True

    @exclusively
    def _note(self, image_id: str, sent: Mapping[str, Any]) -> None:
        try:
            self._keep(image_id, {}, sent)
        except MONAILabelException as error:
            message = (
                f"{image_id}: its result was sent, but that can't be noted on the studies' disk: it may be sent twice."
            )
            raise MONAILabelException(error.error, message) from error

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        return LocalDatastore.datalist(self, full_path)
