"""Series of a DICOMweb server that were fetched: their images, the volumes they make and what is known of them."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydicom
import requests
from filelock import BaseFileLock, FileLock, Timeout
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset

from lib.studies.base import Studies
from lib.studies.dicom_server import DicomServer, gives_nothing, number_in
from lib.studies.fetched import instances_in, picture_of, volume_of
from lib.studies.names import plain
from lib.studies.register import exclusively, unwritable
from lib.studies.tags import FINAL, FINAL_OF, IDENTITY, RESULTS, numbered, slices_file

logger = logging.getLogger(__name__)

Writers = dict[Path, Callable[[Path], Any]]
"""What writes a file, by the file's place."""

FETCHING = ".fetch-"
"""Begins the name of the folder in which a series lies until it is whole."""
UNFIT_SECONDS = 600.0
"""So long a series that was found to be no volume is not fetched again, as long as it has the same images."""


def _identity(dataset: Dataset) -> dict[str, str]:
    """Of which patient and study a series or an image is, as far as it says; of the name a digest, as viewers see it."""
    said = {key: str(dataset.get(key) or "") for key in ("PatientID", "PatientName", "StudyInstanceUID")}
    name = said["PatientName"].encode(errors="surrogatepass")
    return {**said, "PatientName": hashlib.sha256(name).hexdigest() if name else ""}


def _identity_in(folder: Path, instance: str) -> dict[str, str]:
    try:
        return _identity(pydicom.dcmread(folder / f"{instance}.dcm", stop_before_pixels=True))
    except Exception:  # a damaged one is replaced
        return {}


def _differs(now: Mapping[str, str], info: Mapping[str, Any]) -> bool:
    """Whether an identity is another one than is known; what isn't said, now or then, is no difference."""
    known = info.get(IDENTITY, info)  # versions before kept id and study alone
    return any(value and value != (known.get(key) or value) for key, value in now.items())


def _put(fetched: Path, folder: Path) -> None:
    """Move fetched images to their place, and those of before to where they are removed with what is left."""
    if folder.is_dir():
        os.replace(folder, fetched.with_name("before"))
    os.replace(fetched, folder)


class _Unwatched(LocalDatastore):
    """Without the watcher of files that MONAI Label's datastore for DICOMweb asks for: a system may have no more of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "auto_reload": False})


class FetchedStudies(Studies, DICOMWebDatastore, _Unwatched):
    """Studies on a DICOMweb server, by their SeriesInstanceUIDs, as far as they are read here.

    Series are fetched whole or not at all, and again when their images on the server are others, or of another patient or
    study. What another process, such as a batch, wrote of them is read whenever it is asked for.

    Args:
        modalities: of the series, in DICOM's words; every other one is left out.
        args, kwargs: of MONAI Label's `DICOMWebDatastore`.
    """

    def __init__(self, *args: Any, modalities: Sequence[str], **kwargs: Any) -> None:
        self._modalities = modalities
        # by its id the images of a series that is no volume, why, and until when that is believed: an answer may have been cut
        self._unfit: dict[str, tuple[set[str], str, float]] = {}
        super().__init__(*args, **kwargs)
        self._server = DicomServer(self._client)
        self._clear()

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        self._read_again()
        return dict(super().get_image_info(image_id))

    def json(self) -> dict[str, Any]:
        self._read_again()
        return dict(super().json())

    def modality(self, image_id: str) -> str | None:
        return str(self._described(image_id).get("Modality") or "") or None

    def _described(self, image_id: str) -> Mapping[str, Any] | Dataset:
        """What is said of a series, here if it was fetched, or by the server."""
        known = self._info_of(plain(image_id, "image id"))
        return known if known is not None else self._server.one_series(image_id)

    def _info_of(self, image_id: str) -> dict[str, Any] | None:
        """What is known of a series that was fetched; None also where the register was lost, and the file found again."""
        self._read_again()
        known = self._datastore.objects.get(image_id)
        return dict(known.image.info) if known and known.image.info.get("StudyInstanceUID") else None

    def input_of(self, image_id: str) -> str:
        path = self.get_image_uri(image_id)
        # of a radiograph the DICOM file itself, which says its view and how it is to be shown
        return str(picture_of(self._folder_of(image_id)).resolve()) if self._is_picture(image_id) else path

    def _is_picture(self, image_id: str) -> bool:
        from scripts.images.formats import takes_pictures

        return takes_pictures([self.modality(image_id) or "MR"])

    def get_image_uri(self, image_id: str) -> str:
        plain(image_id, "image id")
        path = self._volume_of(image_id)
        if not self._is_current(image_id):
            with self._one_at_a_time(image_id):
                self._read_again()
                if not self._is_current(image_id):  # another one may have fetched it meanwhile
                    self._fetch(image_id)
        return str(path.resolve())

    def _fetch(self, image_id: str) -> None:
        from scripts.images.formats import takes_pictures

        series = self._server.one_series(image_id)
        modality = str(series.get("Modality", ""))
        if modality not in self._modalities:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image_id}: is {modality or 'of no modality'}; allowed is {', '.join(self._modalities)}.",
            )
        study = str(series.StudyInstanceUID)
        unfit, why, until = self._unfit.get(image_id, (set(), "", 0.0))
        if time.monotonic() < until and self._server.instances(study, image_id) == unfit:
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, why)
        expected = number_in(series, "NumberOfSeriesRelatedInstances")
        partial = Path(self._datastore_path) / f"{FETCHING}{image_id}"
        shutil.rmtree(partial, ignore_errors=True)  # of a batch that was killed
        try:
            fetched = partial / "series"
            fetched.mkdir(parents=True)
            number = self._server.retrieve(study, image_id, fetched)
            # the number that a server tells may be an old one: what it lists is what it has
            if number < expected and self._listed(study, image_id, instances_in(fetched)) != instances_in(fetched):
                raise MONAILabelException(
                    MONAILabelError.SERVER_ERROR,
                    f"{image_id}: {number} of {expected} instances came from {self._server.url}; try again.",
                )
            if not number:
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"Series {image_id} holds no image.")
            try:
                nifti = volume_of(image_id, fetched, takes_pictures([modality]))
            except MONAILabelException as error:
                if isinstance(error.__cause__, ValueError):  # not of this machine, such as its memory
                    self._unfit[image_id] = instances_in(fetched), error.msg, time.monotonic() + UNFIT_SECONDS
                raise
            try:
                info = {k: str(series.get(k, "")) for k in ("StudyDate", "StudyTime", "Modality", "PatientID")}
                names = ("SeriesDescription", "ProtocolName", "StudyInstanceUID", "RetrieveURL")
                info |= {k: str(series.get(k, "")) for k in names}
                own = {"SeriesInstanceUID": image_id, IDENTITY: _identity(series)}
                self._take_in(image_id, fetched, nifti, info | own)
            finally:
                os.unlink(nifti)
        except OSError as error:
            raise MONAILabelException(
                MONAILabelError.SERVER_ERROR, f"{unwritable(error)} {image_id} is not fetched."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _clear(self) -> None:
        """Remove what a process that was killed while it fetched left; what another one is fetching stays."""
        for partial in Path(self._datastore_path).glob(f"{FETCHING}*"):
            with suppress(Timeout), self._one_at_a_time(partial.name.removeprefix(FETCHING)).acquire(timeout=0):
                shutil.rmtree(partial, ignore_errors=True)

    def _volume_of(self, image_id: str) -> Path:
        return Path(self._datastore.image_path()) / f"{image_id}.nii.gz"

    def _folder_of(self, image_id: str) -> Path:
        """Where the images of a series are, each named by its SOPInstanceUID."""
        return Path(self._datastore.image_path()) / image_id

    def _is_fetched(self, image_id: str) -> bool:
        known = self._info_of(image_id) is not None
        return known and self._folder_of(image_id).is_dir() and self._volume_of(image_id).is_file()

    def _is_current(self, image_id: str) -> bool:
        return self._is_fetched(image_id) and self._is_complete(image_id)

    def _is_complete(self, image_id: str) -> bool:
        """Whether a series that was fetched has the same images on the server, of the same patient and study.

        While that can't be told, it is used.
        """
        info = self._datastore.objects[image_id].image.info
        try:
            now = _identity(self._server.one_series(image_id))
            if _differs(now, info):
                return False
            here = instances_in(self._folder_of(image_id))
            return self._listed(now["StudyInstanceUID"], image_id, here) == here
        except MONAILabelException as error:
            if error.error != MONAILabelError.SERVER_ERROR:  # there is none any more
                raise
            logger.warning(
                "%s: whether more images have come can't be told, those of before are used: %s", image_id, error.msg
            )
            return True

    def _listed(self, study: str, image_id: str, here: set[str]) -> set[str]:
        """The images of a series that the server lists, where `here` are those that it gave."""
        there = self._server.instances(study, image_id)
        if there < here:  # a part of them, or some have gone: without an answer to that, these are all
            with suppress(MONAILabelException):
                return self._server.all_instances(study, image_id)
        return there

    def fails_alone(self, image_id: str, error: MONAILabelException) -> bool:
        cause = error.__cause__
        of_disk = isinstance(cause, OSError) and not isinstance(cause, requests.RequestException)
        if of_disk or gives_nothing(cause):
            return False
        self._server.has_series(image_id)  # no answer on its images: is there one on anything else?
        return True

    def _one_at_a_time(self, image_id: str) -> BaseFileLock:
        """For what is done with a series while it may not be replaced: a batch, in a process of its own, may be at it too."""
        return FileLock(f"{self._datastore_config_path}.{plain(image_id, 'image id')}.lock", is_singleton=True)

    @exclusively
    def _take_in(self, image_id: str, fetched: Path, nifti: str, info: Mapping[str, Any]) -> None:
        """Put fetched images in the place of those of before.

        If they are not the same, results of those go, and a reader's label is kept under a tag that says of what it is. If they
        are, but of another patient or study by now, results stay, and are sent anew when they are asked for again.

        Args:
            image_id: of the series.
            fetched: folder of the images; it is moved.
            nifti: the volume that they make.
            info: on the series, with its `IDENTITY`.
        """
        folder, volume = self._folder_of(image_id), self._volume_of(image_id)
        known = self._datastore.objects.get(image_id) or ImageLabelModel(image=DataModel(info={}))
        before, after = instances_in(folder), instances_in(fetched)
        same = before == after and volume.is_file()
        changed = bool(before or known.labels) and before != after
        # what is the same is left alone: a run may be reading it
        writers: Writers = {} if same else {volume: lambda part: shutil.copyfile(nifti, part)}
        kept, gone = dict(known.labels), {}
        old_info = dict(known.image.info)
        moved = False
        if before == after:
            then, now = (_identity_in(place, min(before)) for place in (folder, fetched))
            moved = bool(then and now and then != now) or _differs(info[IDENTITY], old_info)
        if changed or moved:
            # what was sent is of the old ones, under its UIDs
            old_info.pop("stored", None)
            of_final = old_info.pop("sent", {}).get(FINAL, ())
            old_info["outdated"] = [*old_info.get("outdated", ()), *of_final[:1]]
        if changed:
            for key in RESULTS:
                old_info.pop(key, None)
            gone = {tag: label for tag, label in known.labels.items() if not tag.startswith(FINAL_OF)}
            kept, copies = self._kept_of_before(image_id, known.labels, len(before), len(after))
            writers |= copies
        if moved:
            self._move_in(image_id, fetched, kept)

        def change(parts: Mapping[Path, Path]) -> None:
            image = DataModel(info={**old_info, **info, "ts": int(time.time()), "name": volume.name}, ext=".nii.gz")
            self._datastore.objects[image_id] = ImageLabelModel(image=image, labels=kept)

        self._replace(writers, change)
        for tag, label in gone.items():
            labels = Path(self._datastore.label_path(tag))
            for file in (labels / f"{image_id}{label.ext}", slices_file(labels, image_id)):
                file.unlink(missing_ok=True)
        if not same and not moved:
            # last: while the folder holds other images than the server, all this is done again
            _put(fetched, folder)

    def _kept_of_before(
        self, image_id: str, labels: Mapping[str, DataModel], then: int, now: int
    ) -> tuple[dict[str, DataModel], Writers]:
        """The labels that stay of a series that has other images now, and what writes the reader's under its new tag."""
        kept = {tag: label for tag, label in labels.items() if tag.startswith(FINAL_OF)}
        copies: Writers = {}
        told = ""
        if FINAL in labels:
            tag = next(t for t in numbered(f"{FINAL_OF}{then}-images") if t not in kept)
            name = self._volume_of(image_id).name
            source = self._place(image_id, FINAL, name)
            copies[self._place(image_id, tag, name)] = lambda part: shutil.copyfile(source, part)
            kept[tag] = labels[FINAL]
            told = f"; the reader's label is kept under the tag {tag!r}"
        logger.warning(
            "%s: has other images than before (%d then, %d now) and was fetched again. Results of before are gone%s.",
            image_id,
            then,
            now,
            told,
        )
        return kept, copies

    def _move_in(self, image_id: str, fetched: Path, labels: Mapping[str, DataModel]) -> None:
        """Take the same images of another patient or study, to whom no label was sent yet.

        This comes before what is known is written anew, which shows until then that it is to be done.
        """
        for label in labels.values():
            label.info.pop("made_with", None)
        logger.warning(
            "%s: is of another patient or study than before on the server, and was fetched again%s.",
            image_id,
            "; to send the reader's label to that one, submit it again" if FINAL in labels else "",
        )
        # one by one, as they have the names of those before: without its folder the series would count as another one
        for file in fetched.iterdir():
            os.replace(file, self._folder_of(image_id) / file.name)

    @exclusively
    def remove_image(self, image_id: str) -> None:
        super().remove_image(image_id)
        shutil.rmtree(self._folder_of(image_id), ignore_errors=True)

    def series(self, image_id: str) -> list[Dataset]:
        """The instances of a series, in order, or its radiograph, as `get_image_uri` fetched them before."""
        from scripts.dicom.series import read_images

        if not self._is_fetched(image_id):
            self.get_image_uri(image_id)
        folder = self._folder_of(image_id)
        return read_images(picture_of(folder) if self._is_picture(image_id) else folder)
