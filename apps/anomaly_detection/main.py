"""The MONAI Label app: studies and viewers on one side, the bundle on the other."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.fine_tuning.fine_tune import FineTune
from lib.http.installing import prepare
from lib.http.processes import end_with_server, environment_on_path
from lib.models.abandoning import turn
from lib.models.declaration import Declaration
from lib.models.fetching import fetch_bundle
from lib.models.finding import REPOSITORY_BUNDLE, find_models
from lib.studies.connection import client_of
from lib.studies.dicomweb import DICOMwebStudies
from lib.studies.folder_studies import FolderStudies
from lib.studies.sessions import remove_expired
from lib.studies.tags import ORIGINAL, result_tag
from lib.studies.unchanged import check_unchanged, stamps_of
from lib.studies.uploads import is_upload
from lib.tasks.flags import flag
from lib.tasks.infer_task import AnomalyInferTask, infer_tasks
from lib.tasks.summaries import warn
from lib.tasks.triage import Dice, EveryStudy, MostAnomalousFirst
from lib.tasks.writing import write, write_results

logger = logging.getLogger(__name__)


class AnomalyDetection(MONAILabelApp):
    """Guided diffusion against anomalies, for OHIF and 3D Slicer.

    Args:
        app_dir: this folder.
        studies: a folder, or the URL of a DICOMweb server.
        conf: from ``--conf KEY VALUE``: ``bundle`` (a folder, by default the repository's), or ``bundle_url`` and
            ``bundle_sha256``; ``device``; ``store_results`` ("false": predicted masks and maps are not sent to the DICOM
            server); ``max_upload_mb``, ``allowed_hosts``, ``allowed_origins``, ``dicomweb_timeout``, see `prepare`.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        conf = conf or {}
        end_with_server()
        environment_on_path()
        path: str | Path = conf.get("bundle", REPOSITORY_BUNDLE)
        if "bundle_url" in conf:
            folder = Path(app_dir) / "model"
            path = fetch_bundle(conf["bundle_url"], conf.get("bundle_sha256", ""), folder)
        self.models = find_models(path, conf.get("device"))
        declared = self.models[0].declared
        self._one_at_a_time = threading.Lock()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"{declared.metadata['name']} - research only, not for clinical use",
            description=declared.metadata["description"],
            version=declared.version,
        )
        # it would start a process of its own at every click on "next sample"; POST /scoring/dice asks for it
        self._auto_update_scoring = False

    def on_init_complete(self) -> None:
        """Start warm: networks, brain extraction and ITK are there before the first request."""
        from monailabel.app import app

        prepare(app, self)
        self.load_models()
        # ITK reads its modules at the first write, which takes seconds
        os.unlink(write(MetaTensor(torch.zeros(1, 2, 2, 2)), "", ".nrrd", "uint8"))
        super().on_init_complete()

    def load_models(self) -> None:
        """Load all networks; a model beside the first that has none, or others than it declares, is left out from here on."""
        for model in list(self.models):
            try:
                model.load()
            except (OSError, RuntimeError, ValueError) as error:
                if model is self.models[0]:
                    raise
                logger.error("%s is left out: %s", model.declared.name, error.__cause__ or error)
                self.models.remove(model)
                for name in [name for name, task in self._infers.items() if task.model is model]:
                    del self._infers[name]

    def cleanup_sessions(self) -> None:
        if self._sessions is not None:  # empty after a start, whatever lies on the disk
            remove_expired(self._sessions)

    def init_datastore(self) -> Datastore:
        from scripts.images.formats import takes_pictures

        channels = [model.declared.channels for model in self.models]
        references = [model.declared.reference for model in self.models if model.declared.reference]
        if self.studies.startswith(("http://", "https://")):
            datastore = super().init_datastore()
            datastore.channels, datastore.references = channels, references
        else:
            pictures = any(takes_pictures(model.declared.modalities) for model in self.models)
            live = settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
            datastore = FolderStudies(self.studies, channels, pictures, live, references)
        datastore.version = self.models[0].declared.version
        return datastore

    def init_infers(self) -> dict[str, Any]:
        return infer_tasks(self.models)

    def init_trainers(self) -> dict[str, Any]:
        path, configs = self.models[0].declared.path, ["inference.json", "train.json"]
        return {
            "classifier": FineTune(path, [*configs, "train_classifier.json"], "Fine-tune the classifier"),
            "diffusion": FineTune(path, configs, "Fine-tune the diffusion network"),
        }

    def init_strategies(self) -> dict[str, Any]:
        # OHIF's "Next Sample" always asks for "random"
        strategies = {"most_anomalous_first": MostAnomalousFirst(), "random": MostAnomalousFirst()}
        kinds = {"_".join(model.declared.modalities): model.declared.modalities for model in self.models}
        if len(kinds) > 1:  # scores of a brain and of a chest don't compare
            strategies |= {f"most_anomalous_{kind}_first": MostAnomalousFirst(names) for kind, names in kinds.items()}
        return strategies

    def init_scoring_methods(self) -> dict[str, Any]:
        return {"dice": Dice()}

    def init_batch_infer(self) -> EveryStudy:
        return EveryStudy(self._is_done, self._modalities_of)

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a model on an image of the studies or on an upload.

        With ``save_label``, the label map is kept under ``label_tag``. "original", the default, has the full mask of the first
        model that takes the image, see `_is_original`; with it the float anomaly map, the healthy counterpart and the score
        are kept, and on a DICOMweb server a Segmentation and a Parametric Map. All else is kept under its model's name.

        Raises:
            MONAILabelException: see `AnomalyInferTask`; no such image or model; SERVER_ERROR, others took the place of
                its images meanwhile.
        """
        request, is_kept = dict(request), flag(request, "save_label")
        task = self._infers.get(str(request.get("model")))
        if task is None:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"There is no model {request.get('model')!r}; there are {', '.join(self._infers)}.",
            )
        datastore = datastore or self.datastore()
        image = str(request.get("image") or "")
        stored = not is_upload(image, self._sessions.store_path if self._sessions is not None else None)
        declared = task.model.declared
        warnings = self._warnings_of(request, declared, datastore) if stored else []
        if stored:
            ids = datastore.siblings(image, declared.channels)
            warnings += datastore.choices(image, declared.channels)
            request["image"] = [datastore.input_of(i) for i in ids]
        original = self._is_original(task, image, datastore) if stored else task.is_original
        tag = result_tag(request.get("label_tag"), request["model"], original)
        with turn(self._one_at_a_time):
            read = stamps_of(request["image"]) if stored else {}
            made_with = task.made_with(request) if stored else {}
            file, params, result = task.run(request)
        warn(params, warnings)
        label = file
        try:  # not in its turn: the next one need not wait for a disk or the DICOM server
            check_unchanged(image, read)
            if stored and is_kept:
                with tempfile.TemporaryDirectory() as folder:
                    results = {}
                    if tag == ORIGINAL:  # map and counterpart of an image are those of its original
                        results = write_results(result, result["input_image"].meta["source"], Path(folder))
                    datastore.save_results(image, tag, file, results, params, read, made_with)
                # last of all, when it is also where it was sent to
                datastore.mark_done(image, tag, params, made_with)
                label = image
        except BaseException:
            os.unlink(file)
            raise
        tag = tag if label == image else ORIGINAL
        return {"label": label, "tag": tag, "file": file, "params": params, "read": read}

    def _warnings_of(self, request: Mapping[str, Any], declared: Declaration, datastore: Datastore) -> list[str]:
        """What is to be said of an image that is named as a sequence which the model doesn't take.

        Raises:
            MONAILabelException: INVALID_INPUT, the request doesn't have ``allow_any_image``; or the image is of a modality
                that the model doesn't take.
        """
        image, modality, named = (
            request["image"],
            *(ask(request["image"]) for ask in (datastore.modality, datastore.named)),
        )
        if modality is not None and modality not in declared.modalities:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image} is {modality}, the model takes {', '.join(declared.modalities)}.",
            )
        takes = ", ".join(declared.channels)
        if len(declared.channels) > 1 and named in (None, *declared.channels) and named != declared.reference:
            ids = datastore.siblings(image, declared.channels)
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image} is {named or 'not named as a sequence'}, and the results of this model lie on the grid of "
                f"{declared.reference}: choose {ids[declared.channels.index(str(declared.reference))]} of this study.",
            )
        if named is None or not takes or named in declared.channels:
            return []
        if not flag(request, "allow_any_image"):
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image} is named as {named}, the model takes {takes}. If the name is wrong, "
                '"allow_any_image": true in params runs it all the same, with a warning.',
            )
        return [f"The series is named as {named}, the model takes {takes}."]

    def _is_original(self, task: AnomalyInferTask, image: str, datastore: Datastore) -> bool:
        """Whether a task gives the mask of an image that is scored and corrected: the first model that takes it does."""
        before = self.models[: self.models.index(task.model)]
        if not (task.is_original and before):
            return bool(task.is_original)
        modality, named = datastore.modality(image), datastore.named(image)

        def takes(declared: Declaration) -> bool:
            # the file alone says whether a picture or a volume is in a folder
            fits = (
                modality in declared.modalities
                if modality
                else image in datastore.taken_by([image], declared.modalities)
            )
            unnamed = named is None and len(declared.channels) < 2
            return fits and (unnamed or not declared.channels or named == declared.reference)

        return not any(takes(model.declared) for model in before)

    def _modalities_of(self, request: Mapping[str, Any]) -> list[str]:
        """Of a request's model; of all where there is no such model, which `infer` says."""
        task = self._infers.get(str(request.get("model")))
        return self._modalities if task is None else task.model.declared.modalities

    @property
    def _modalities(self) -> list[str]:
        return list(dict.fromkeys(m for model in self.models for m in model.declared.modalities))

    def _is_done(self, request: Mapping[str, Any], datastore: Datastore) -> bool:
        """Whether what `infer` would keep is there, from the same images, options, config, weights and version."""
        task = self._infers[request["model"]]
        image = request["image"]
        tag = result_tag(request.get("label_tag"), request["model"], self._is_original(task, image, datastore))
        made_with = datastore.get_label_info(image, tag).get("made_with")
        if not made_with or not os.path.isfile(datastore.get_label_uri(image, tag)):
            return False
        task.model.load()
        paths = [datastore.input_of(i) for i in datastore.siblings(image, task.model.declared.channels)]
        return bool(made_with == task.made_with({**request, "image": paths}))

    def dicom_segmentation(self, image: str, result: Mapping[str, Any]) -> str:
        """The path of a DICOM Segmentation of what `infer` gave for a series.

        Raises:
            MONAILabelException: INVALID_INPUT, the studies are no DICOM; SERVER_ERROR, the series was replaced meanwhile.
        """
        datastore = self.datastore()
        if not isinstance(datastore, DICOMwebStudies):
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "dicom_seg needs studies on a DICOMweb server.")
        handle, path = tempfile.mkstemp(suffix=".dcm")
        os.close(handle)
        try:
            datastore.segmentation_of(image, result["file"], result["params"], result["read"]).save_as(path)
        except BaseException:
            os.unlink(path)
            raise
        return path

    def _init_dicomweb_datastore(self) -> Datastore:
        self._download_dcmqi_tools()
        return DICOMwebStudies(
            client=client_of(self.studies, self.conf),
            search_filter=dict(settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER),
            cache_path=(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip() or None,
            # MONAI Label's default is CT, whatever the models take
            modalities=self._modalities,
            store_results=self.conf.get("store_results", "true").lower() != "false",
        )
