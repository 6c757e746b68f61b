"""The studies: MONAI Label's datastores, made safe against bad names, half-written files and a DICOM server that goes away."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import requests
from filelock import FileLock
from highdicom.seg import Segmentation
from monai.transforms import LoadImage
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.convert import binary_to_image, dicom_to_nifti
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset
from retrying import RetryError

from lib.dicom import AUTOMATIC_LABEL, parametric_map, read_series, segmentation, store

logger = logging.getLogger(__name__)

MAP_TAG, COUNTERFACTUAL_TAG = "anomaly_map", "counterfactual"
"""Label tags under which the float results of an image are kept, for clients that can show them."""
FINAL, ORIGINAL = DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value
SCORE = "anomaly_score"
"""Key in an image's info: the score that orders the worklist."""
UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def plain(name: str, what: str) -> str:
    """`name`, if it can be a file's name and nothing else.

    Raises:
        MONAILabelException: INVALID_INPUT, it holds a path.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\\x00-\x1f]{1,200}", name) or name.startswith("."):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"{what} {name!r} is not allowed: a name without slashes, not beginning with a dot.",
        )
    return name


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The array ``(X, Y, Z)`` of a NIfTI or NRRD file and its affine ``(4, 4)``, RAS."""
    image = LoadImage(image_only=True)(path)
    return image.numpy(), image.affine.numpy()


def predicted(series: Sequence[Dataset], mask: str, params: Mapping[str, Any]) -> Segmentation:
    """The mask in a file, as a model gave it for a series, as a DICOM Segmentation."""
    array, affine = read_volume(mask)
    score, version = params["score"], params["version"]
    return segmentation(series, array == 1, affine, label="anomaly", score=score, version=version)


def _exclusive(method: Callable[..., Any]) -> Callable[..., Any]:
    """Batch inference runs in a process of its own: read what it wrote before changing anything, one process at a time."""

    @wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with FileLock(f"{self._datastore_config_path}.lock", is_singleton=True):
            self._init_from_datastore_file()
            return method(self, *args, **kwargs)

    return locked


class _Studies(LocalDatastore):
    """What both kinds of studies share; see `LocalDatastore` for the rest."""

    sequence: str | None = None
    """What the model takes first; images that are named as another sequence are left out of the worklist."""
    version = ""
    """Of the software, for DICOM objects."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._auto_reload:
            # the file is replaced, not written into, so watchers see it move
            self._handler.on_moved = lambda event: self._init_from_datastore_file()

    def _update_datastore_file(self, lock: bool = True) -> None:
        content = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        partial = f"{self._datastore_config_path}.part"
        with FileLock(self._lock_file) if lock else nullcontext():
            Path(partial).write_text(content)
            os.replace(partial, self._datastore_config_path)
            self._config_ts = os.stat(self._datastore_config_path).st_mtime

    @_exclusive
    def _reconcile_datastore(self) -> None:
        super()._reconcile_datastore()

    @_exclusive
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        return super().add_image(plain(image_id, "image id") if image_id else image_id, image_filename, image_info)

    @_exclusive
    def remove_image(self, image_id: str) -> None:
        super().remove_image(plain(image_id, "image id"))

    @_exclusive
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        plain(image_id, "image id")
        return LocalDatastore.save_label(self, image_id, label_filename, plain(label_tag, "label tag"), label_info)

    @_exclusive
    def remove_label(self, label_id: str, label_tag: str) -> None:
        super().remove_label(plain(label_id, "label"), plain(label_tag, "label tag"))

    @_exclusive
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        super().update_image_info(plain(image_id, "image id"), info)

    @_exclusive
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        super().update_label_info(plain(label_id, "label"), plain(label_tag, "label tag"), info)

    def get_image_uri(self, image_id: str) -> str:
        uri = super().get_image_uri(plain(image_id, "image id"))
        if not uri or not os.path.exists(uri):
            raise ImageNotFoundException(f"There is no image {image_id!r} among the studies.")
        return uri

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        return LocalDatastore.get_label_uri(self, plain(label_id, "label"), plain(label_tag, "label tag"))

    def _wanted(self, description: str) -> bool:
        from scripts.sequences import sequence_of  # the bundle is on the path only once it was chosen

        return self.sequence is None or sequence_of(description) in (None, self.sequence)

    def siblings(self, image_id: str, channels: Sequence[str]) -> list[str]:
        """The images of the same study that hold `channels`, in that order; `image_id` is one of them.

        Raises:
            MONAILabelException: INVALID_INPUT, one is missing.
        """
        if len(channels) == 1:
            return [image_id]
        found = self._sequences(image_id)
        missing = [c for c in channels if c not in found]
        if missing:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image_id}: the model takes {', '.join(channels)}; {', '.join(missing)} is missing in this study. Found: "
                f"{', '.join(f'{c} ({i})' for c, i in found.items()) or 'none'}. The rules are in the bundle's "
                "scripts/sequences.json.",
            )
        return [found[c] for c in channels]

    def _sequences(self, image_id: str) -> dict[str, str]:
        raise NotImplementedError

    def save_results(
        self, image_id: str, tag: str, labels: str, results: Mapping[str, Path], params: Mapping[str, Any]
    ) -> None:
        """Keep what a model gave for an image, and the image's score for the worklist.

        Args:
            image_id: of the image.
            tag: to keep the label map under.
            labels: the file of the label map.
            results: the files of the float results, by their tags.
            params: the scores and what they were made with, see `AnomalyInferTask`.
        """
        for name, path in {tag: labels, **results}.items():
            self.save_label(image_id, str(path), name, {"params": dict(params)})
        self.update_image_info(image_id, {SCORE: params["score"], "p_diseased": params["p_diseased"]})


class FolderStudies(_Studies):
    """Studies in a folder: every NIfTI or NRRD file is an image, its name without the ending its id."""

    def list_images(self) -> list[str]:
        return [image_id for image_id in super().list_images() if self._wanted(image_id)]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return [image_id for image_id in super().get_unlabeled_images() if self._wanted(image_id)]

    def _sequences(self, image_id: str) -> dict[str, str]:
        from scripts.sequences import RULES, sequence_of

        def case(name: str) -> str:
            return re.sub(RULES.get(sequence_of(name) or "", "$^"), "", name, flags=re.IGNORECASE)

        mine = case(image_id)
        return {s: name for name in sorted(self._datastore.objects) if case(name) == mine and (s := sequence_of(name))}


class DICOMwebStudies(_Studies, DICOMWebDatastore):
    """Studies on a DICOMweb server: every series of the search filter is an image, its SeriesInstanceUID the id.

    Series are fetched whole or not at all. Predicted masks and maps go back to the server, in series of their own.
    """

    def __init__(self, *args: Any, store_results: bool = True, **kwargs: Any) -> None:
        self._segmented: dict[str, str | None] = {}
        self._store_results = store_results
        super().__init__(*args, **kwargs)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (requests.exceptions.RequestException, RetryError, RuntimeError, OSError) as error:
            raise MONAILabelException(
                MONAILabelError.SERVER_ERROR,
                f"The DICOM server {self._client.base_url} doesn't answer as it should ({type(error).__name__}: {error}). "
                "Is it running? Nothing was changed; try again.",
            ) from error

    def _series(self, **filters: Any) -> list[Dataset]:
        with self._answering():
            fields = ["SeriesDescription", "NumberOfSeriesRelatedInstances", "SeriesNumber"]
            return [Dataset.from_json(d) for d in self._client.search_for_series(search_filters=filters, fields=fields)]

    def _one_series(self, image_id: str) -> Dataset:
        if not UID.fullmatch(image_id):
            raise ImageNotFoundException(f"{image_id!r} is no SeriesInstanceUID.")
        for series in self._series(SeriesInstanceUID=image_id):
            if str(series.SeriesInstanceUID) == image_id:
                return series
        raise ImageNotFoundException(f"There is no series {image_id} on {self._client.base_url}.")

    def status(self) -> dict[str, Any]:
        """As for a folder; while the DICOM server is away, what is wrong: studies that were fetched can still be read."""
        try:
            return super().status()
        except MONAILabelException as error:
            return {"total": 0, "completed": 0, "label_tags": {}, "error": error.msg}

    def list_images(self) -> list[str]:
        found = self._series(**self._search_filter)
        return [str(s.SeriesInstanceUID) for s in found if self._wanted(str(s.get("SeriesDescription", "")))]

    def _labeled(self) -> set[str]:
        """Series with a segmentation that a reader submitted; those that the app stored itself don't count."""
        labeled = {image_id for image_id, obj in self._datastore.objects.items() if FINAL in obj.labels}
        for seg in self._series(Modality="SEG"):
            uid = str(seg.SeriesInstanceUID)
            if uid not in self._segmented:
                with self._answering():
                    meta = self._client.retrieve_series_metadata(str(seg.StudyInstanceUID), uid)
                first = Dataset.from_json(meta[0])
                reference = first.get("ReferencedSeriesSequence")
                automatic = first.get("ContentLabel") == AUTOMATIC_LABEL
                self._segmented[uid] = str(reference[0].SeriesInstanceUID) if reference and not automatic else None
            labeled.add(self._segmented[uid] or "")
        return labeled

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labeled = self._labeled()
        return [image_id for image_id in self.list_images() if image_id in labeled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labeled = self._labeled()
        return [image_id for image_id in self.list_images() if image_id not in labeled]

    def get_image_uri(self, image_id: str) -> str:
        plain(image_id, "image id")
        known = self._datastore.objects.get(image_id)
        folder = Path(self._datastore.image_path()) / image_id
        path = Path(self._datastore.image_path()) / f"{image_id}.nii.gz"
        if known and path.is_file() and folder.is_dir():
            return str(path.resolve())
        series = self._one_series(image_id)
        modality, wanted = str(series.get("Modality", "")), self._search_filter.get("Modality")
        if wanted and modality != wanted:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image_id}: is {modality or 'of no modality'}; the model takes {wanted}.",
            )
        expected = int(series.get("NumberOfSeriesRelatedInstances") or 0)
        with tempfile.TemporaryDirectory(dir=self._datastore_path, prefix=".fetch-") as partial:
            fetched = Path(partial) / "series"
            fetched.mkdir()
            with self._answering():
                instances = self._client.retrieve_series(str(series.StudyInstanceUID), image_id)
            for instance in instances:
                instance.save_as(fetched / f"{plain(str(instance.SOPInstanceUID), 'SOPInstanceUID')}.dcm")
            if not instances and not expected:
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"Series {image_id} holds no image.")
            if len(instances) < expected:
                raise MONAILabelException(
                    MONAILabelError.SERVER_ERROR,
                    f"{image_id}: {len(instances)} of {expected} instances came from {self._client.base_url}; try again.",
                )
            try:
                read_series(fetched)
                nifti = dicom_to_nifti(str(fetched))
            except Exception as error:
                raise MONAILabelException(
                    MONAILabelError.INVALID_INPUT, f"Series {image_id} can't be read as a volume: {error}"
                ) from error
            try:
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(fetched, folder)
                info = {k: str(series.get(k, "")) for k in ("StudyDate", "StudyTime", "Modality", "PatientID")}
                info |= {k: str(series.get(k, "")) for k in ("StudyInstanceUID", "SeriesDescription", "RetrieveURL")}
                self.add_image(image_id, nifti, {**info, "SeriesInstanceUID": image_id})
            finally:
                os.unlink(nifti)
        return str(path.resolve())

    def _sequences(self, image_id: str) -> dict[str, str]:
        from scripts.sequences import sequence_of

        mine = self._one_series(image_id)
        found: dict[str, str] = {}
        study = self._series(StudyInstanceUID=str(mine.StudyInstanceUID), Modality=str(mine.Modality))
        # the series that was asked for speaks for its own sequence, the first one for every other
        for series in [mine, *sorted(study, key=lambda s: int(s.get("SeriesNumber") or 0))]:
            sequence = sequence_of(str(series.get("SeriesDescription", "")))
            if sequence:
                found.setdefault(sequence, str(series.SeriesInstanceUID))
        return found

    def series(self, image_id: str) -> list[Dataset]:
        """The instances of a series, in order; it is fetched if need be."""
        self.get_image_uri(image_id)
        return read_series(Path(self._datastore.image_path()) / image_id)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        image = self.get_image_uri(image_id)
        converted = binary_to_image(image, label_filename) if label_filename.endswith(".bin") else None
        try:
            if label_tag == FINAL:
                mask, affine = read_volume(converted or label_filename)
                seg = segmentation(
                    self.series(image_id), mask == 1, affine, label="anomaly", version=self.version, algorithm=False
                )
                with self._answering():
                    store(self._client, seg)
                label_info = {**label_info, "SeriesInstanceUID": str(seg.SeriesInstanceUID)}
            return _Studies.save_label(self, image_id, converted or label_filename, label_tag, label_info)
        finally:
            if converted:
                os.unlink(converted)

    def segmentation_of(self, image_id: str, mask: str, params: Mapping[str, Any]) -> Segmentation:
        """A predicted mask of a series as a DICOM Segmentation."""
        return predicted(self.series(image_id), mask, params)

    def save_results(
        self, image_id: str, tag: str, labels: str, results: Mapping[str, Path], params: Mapping[str, Any]
    ) -> None:
        """As for a folder; a mask and its map also go to the DICOM server, once for every setting that made them."""
        known = self._datastore.objects.get(image_id)
        stored = dict(known.image.info.get("stored", {})) if known else {}
        super().save_results(image_id, tag, labels, results, params)
        made_with = json.dumps([params[k] for k in ("options", "weights", "version")])
        if not self._store_results or tag != ORIGINAL or made_with in stored:
            return
        a, affine = read_volume(results[MAP_TAG])
        series = self.series(image_id)
        pair = [
            predicted(series, labels, params),
            parametric_map(series, a, affine, score=params["score"], version=params["version"]),
        ]
        with self._answering():
            for dataset in pair:
                store(self._client, dataset)
        stored[made_with] = [str(dataset.SeriesInstanceUID) for dataset in pair]
        self.update_image_info(image_id, {"stored": stored})

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        return LocalDatastore.datalist(self, full_path)
