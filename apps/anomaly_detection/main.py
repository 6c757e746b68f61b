"""The MONAI Label app: studies and viewers on one side, the bundle on the other."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.http.preparing import prepare
from lib.http.processes import end_with_server, environment_on_path
from lib.models.abandoning import proceed
from lib.models.fetching import REPOSITORY_BUNDLE, fetch_bundle
from lib.models.model import FULL, PREVIEW, Bundle
from lib.studies.connection import dicomweb_seconds, session
from lib.studies.dicomweb import DICOMwebStudies
from lib.studies.folder import FolderStudies
from lib.studies.tags import ORIGINAL, result_tag
from lib.tasks.inference import AnomalyInferTask, allow_any_image
from lib.tasks.summaries import warn
from lib.tasks.triage import Dice, EveryStudy, MostAnomalousFirst
from lib.tasks.writing import write, write_results
from lib.trainer import FineTune


class AnomalyDetection(MONAILabelApp):
    """Guided diffusion against anomalies, for OHIF and 3D Slicer.

    Args:
        app_dir: this folder.
        studies: a folder, or the URL of a DICOMweb server.
        conf: from ``--conf KEY VALUE``: ``bundle`` (a folder, by default the repository's), or ``bundle_url`` and
            ``bundle_sha256``; ``device``; ``store_results`` ("false": predicted masks and maps are not sent to the DICOM
            server); ``max_upload_mb``, ``allowed_hosts``, ``allowed_origins``, ``dicomweb_timeout``, see `lib.server.prepare`.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        conf = conf or {}
        end_with_server()
        environment_on_path()
        path: str | Path = conf.get("bundle", REPOSITORY_BUNDLE)
        if "bundle_url" in conf:
            folder = Path(app_dir) / "model"
            path = fetch_bundle(conf["bundle_url"], conf.get("bundle_sha256", ""), folder)
        self.bundle = Bundle(path, conf.get("device"))
        self._one_at_a_time = threading.Lock()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"{self.bundle.metadata['name']} - research only, not for clinical use",
            description=self.bundle.metadata["description"],
            version=self.bundle.version,
        )
        # it would start a process of its own at every click on "next sample"; POST /scoring/dice asks for it
        self._auto_update_scoring = False

    def on_init_complete(self) -> None:
        """Start warm: networks, brain extraction and ITK are there before the first request."""
        from monailabel.app import app

        prepare(app, self)
        self.bundle.load()
        # ITK reads its modules at the first write, which takes seconds
        os.unlink(write(MetaTensor(torch.zeros(1, 2, 2, 2)), "", ".nrrd", "uint8"))
        super().on_init_complete()

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            datastore = super().init_datastore()
        else:
            datastore = FolderStudies(
                self.studies, self.bundle.channels[0], auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
            )
        datastore.sequence, datastore.version = self.bundle.channels[0], self.bundle.version
        return datastore

    def init_infers(self) -> dict[str, Any]:
        tasks = {
            "lesion_mask": AnomalyInferTask(self.bundle, "mask"),
            "anomaly_heat_map": AnomalyInferTask(self.bundle, "heat_map"),
        }
        if PREVIEW in self.bundle.modes:
            tasks["lesion_preview"] = AnomalyInferTask(self.bundle, "mask", PREVIEW)
        return tasks

    def init_trainers(self) -> dict[str, Any]:
        return {
            "classifier": FineTune(self.bundle.path, "train_classifier.json", "Fine-tune the classifier"),
            "diffusion": FineTune(self.bundle.path, "train.json", "Fine-tune the diffusion network"),
        }

    def init_strategies(self) -> dict[str, Any]:
        # OHIF's "Next Sample" always asks for "random"
        return {"most_anomalous_first": MostAnomalousFirst(), "random": MostAnomalousFirst()}

    def init_scoring_methods(self) -> dict[str, Any]:
        return {"dice": Dice()}

    def init_batch_infer(self) -> EveryStudy:
        return EveryStudy(self._is_done)

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a model on an image of the studies or on an upload.

        With ``save_label``, the predicted mask is kept under ``label_tag`` ("original"), the float anomaly map and the healthy
        counterpart under tags of their own, and on a DICOMweb server as a Segmentation and a Parametric Map. A preview's mask
        is kept under its model's name, and its score nowhere, as it is on another scale.

        Raises:
            MONAILabelException: see `AnomalyInferTask`; no such image or model.
        """
        request = dict(request)
        task = self._infers.get(request.get("model"))
        if task is None:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"There is no model {request.get('model')!r}; there are {', '.join(self._infers)}.",
            )
        tag = result_tag(request.get("label_tag"), request["model"], task.is_original)
        datastore = datastore or self.datastore()
        image = str(request.get("image") or "")
        stored = not self._is_upload(image)
        warnings = self._name_warnings(request, datastore) if stored else []
        if stored:
            ids = datastore.siblings(image, self.bundle.channels)
            request["image"] = [datastore.get_image_uri(i) for i in ids]
        with self._turn():
            made_with = task.made_with(request) if stored else {}
            file, params, result = task.run(request)
        warn(params, warnings)
        label = file
        try:  # not in its turn: the next one need not wait for a disk or the DICOM server
            if stored and request.get("save_label"):
                if task.mode != FULL:
                    datastore.save_label(image, file, tag, {"params": params})
                else:
                    with tempfile.TemporaryDirectory() as folder:
                        results = write_results(result, request["image"][0], Path(folder))
                        datastore.save_results(image, tag, file, results, params)
                # last of all, when it is also where it was sent to
                datastore.mark_done(image, tag, params, made_with)
                label = image
        except BaseException:
            os.unlink(file)
            raise
        return {"label": label, "tag": tag if label == image else ORIGINAL, "file": file, "params": params}

    def _name_warnings(self, request: Mapping[str, Any], datastore: Datastore) -> list[str]:
        """What is to be said of an image that is named as a sequence which the model doesn't take.

        Raises:
            MONAILabelException: INVALID_INPUT, the request doesn't have ``allow_any_image``.
        """
        named, takes = datastore.named(request["image"]), ", ".join(self.bundle.channels)
        if named is None or named in self.bundle.channels:
            return []
        if not allow_any_image(request):
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{request['image']} is named as {named}, the model takes {takes}. If the name is wrong, "
                '"allow_any_image": true in params runs it all the same, with a warning.',
            )
        return [f"The series is named as {named}, the model takes {takes}."]

    def _is_done(self, request: Mapping[str, Any], datastore: Datastore) -> bool:
        """Whether what `infer` would keep is there, from the same images, options, config, weights and version."""
        task = self._infers[request["model"]]
        tag = result_tag(request.get("label_tag"), request["model"], task.is_original)
        image = request["image"]
        made_with = datastore.get_label_info(image, tag).get("made_with")
        if not made_with or not os.path.isfile(datastore.get_label_uri(image, tag)):
            return False
        self.bundle.load()
        paths = [datastore.get_image_uri(i) for i in datastore.siblings(image, self.bundle.channels)]
        return bool(made_with == task.made_with({**request, "image": paths}))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One study at a time; who goes away while waiting loses the turn."""
        while not self._one_at_a_time.acquire(timeout=0.2):
            proceed()
        try:
            yield
        finally:
            self._one_at_a_time.release()

    def _is_upload(self, image: str) -> bool:
        """Whether the server itself put this file there for this request; any other path is refused."""
        if not image:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, "image must be the id of one of the studies' images."
            )
        path = Path(image)
        if not path.is_absolute():
            return False
        resolved, uploads = path.resolve(), Path(tempfile.gettempdir()).resolve()
        uploaded = resolved.parent == uploads and path.name.startswith(tempfile.gettempprefix())
        if self._sessions is not None:
            uploaded = uploaded or resolved.is_relative_to(Path(self._sessions.store_path).resolve())
        if uploaded and path.exists():
            return True
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"image {image!r} is a path; give the id of an image.")

    def dicom_segmentation(self, image: str, result: Mapping[str, Any]) -> str:
        """The path of a DICOM Segmentation of what `infer` gave for a series.

        Raises:
            MONAILabelException: INVALID_INPUT, the studies are no DICOM.
        """
        datastore = self.datastore()
        if not isinstance(datastore, DICOMwebStudies):
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "dicom_seg needs studies on a DICOMweb server.")
        handle, path = tempfile.mkstemp(suffix=".dcm")
        os.close(handle)
        try:
            datastore.segmentation_of(image, result["file"], result["params"]).save_as(path)
        except BaseException:
            os.unlink(path)
            raise
        return path

    def _init_dicomweb_datastore(self) -> Datastore:
        # MONAI Label's default is CT, whatever the model takes
        search = {**settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, "Modality": self.bundle.modality}
        self._download_dcmqi_tools()
        client = DICOMwebClientX(
            url=self.studies,
            session=session(*dicomweb_seconds(self.conf)),
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        # the default tries for half a minute, also where nothing listens, and five times where nothing answers
        client.set_http_retry_params(retry=False)
        return DICOMwebStudies(
            client=client,
            search_filter=search,
            cache_path=(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip() or None,
            store_results=self.conf.get("store_results", "true").lower() != "false",
        )
