"""The models that a viewer lists: two views of one run of the bundle, and its preview."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from monai.data import MetaTensor
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.models.declaration import FULL, PREVIEW
from lib.models.model import Model
from lib.tasks.flags import flag
from lib.tasks.summaries import changed_options, summary
from lib.tasks.views import HEAT_MAP_LABELS, LEVELS, LEVELS_BELOW_THRESHOLD, MASK_LABELS, heat_map, lesion_mask
from lib.tasks.writing import write

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd")
DTYPES = ("uint8", "uint16", "int16", "float32")


class AnomalyInferTask(InferTask):
    """One view of what the bundle finds in a study, as a label map on the study's own grid.

    Args:
        model: shared by all views, so that the second one of a study takes no time.
        view: "mask" or "heat_map".
        mode: one of the model's.

    `__call__` takes MONAI Label's request and returns the path of the label map and, as ``params``, the scores: ``result``
    holds ``score`` and ``p_diseased`` of the volume (its highest slice's; None if no slice was assessed), ``lesion_ml``,
    ``not_assessed_slices`` (their numbers in the file) and ``warnings`` (sentences that say why it may be wrong); at
    the top level, where MONAI Label's own tasks have it, stands the same and ``slices``.

    Raises:
        MONAILabelException: INVALID_INPUT, an option or a volume can't be used; the message says why and what is allowed.
    """

    VIEWS = {"mask": (lesion_mask, MASK_LABELS), "heat_map": (heat_map, HEAT_MAP_LABELS)}

    def __init__(self, model: Model, view: str, mode: str = FULL) -> None:
        self.model = model
        self.mode = mode
        self.view, labels = self.VIEWS[view]
        options = model.declared.options(mode)
        super().__init__(InferType.SEGMENTATION, dict(labels), 3, self._described(options["threshold"]), options)

    def _described(self, threshold: float) -> str:
        """What a viewer shows of this view with a threshold."""
        declared = self.model.declared
        what = "Lesion mask: 1 lesion, 2 not assessed (where the model did not look, no statement on it)"
        if self.view is heat_map:
            what = (
                f"Anomaly heat map in nine levels: level n is above n / {LEVELS_BELOW_THRESHOLD} of the threshold "
                f"{threshold:g}, so that 1 begins at {threshold / LEVELS_BELOW_THRESHOLD:.3g}, 3 is the edge of the mask, "
                f"9 is above {LEVELS / LEVELS_BELOW_THRESHOLD * threshold:.3g}; level 10 was not assessed"
            )
        if self.mode == PREVIEW:
            what += "; in a second, by the student, a network that learned it from counterfactuals"
        return f"{what}. Takes {', '.join(declared.channels or declared.modalities)}. Research software, not for clinical use."

    def config(self) -> dict[str, Any]:
        """The options with their defaults, as a request takes them now: viewers send back what they are shown."""
        # if they can't be had, the next request says why; the other models can be listed all the same
        with suppress(RuntimeError, ValueError):
            self._config = self.model.declared.options(self.mode)
        return dict(self._config)

    def info(self) -> dict[str, Any]:
        config = self.config()
        return {
            "type": self.type,
            "labels": self.labels,
            "dimension": self.dimension,
            "description": self._described(config["threshold"]),
            "config": config,
            "version": self.model.declared.version,
        }

    @property
    def is_original(self) -> bool:
        """Whether it gives the mask that is scored and corrected."""
        return self.view is lesion_mask and self.mode == FULL

    def made_with(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """All that a result depends on: as the same values in JSON, it would be the same again.

        Args:
            request: as for `run`, ``image`` a list of paths.

        Raises:
            MONAILabelException: INVALID_INPUT, an option is no number.
        """
        from scripts.sources import state

        self.model.load()
        config = json.dumps(self.model.declared.config(self.mode), sort_keys=True)
        return {
            "model": request["model"],
            "input": [state(path) for path in request["image"]],
            "options": self.model.declared.checked_options(request, self.mode),
            "config": hashlib.sha256(config.encode()).hexdigest(),
            "weights": self.model.networks.weights,
            "version": self.model.declared.version,
        }

    def is_valid(self) -> bool:
        return True

    def get_path(self, validate: bool = True) -> None:
        """No path: weights are not exchanged over HTTP."""

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        file, params, _ = self.run(request)
        return file, params

    def run(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """As `__call__`, and what the bundle gave."""
        begin = perf_counter()
        extension = request.get("result_extension") or ".nii.gz"
        dtype = request.get("result_dtype") or "uint8"
        for name, value, allowed in (
            ("result_extension", extension, EXTENSIONS),
            ("result_dtype", dtype, DTYPES),
        ):
            if value not in allowed:
                raise MONAILabelException(
                    MONAILabelError.INVALID_INPUT, f"{name} must be one of {', '.join(allowed)}, got {value!r}."
                )
        options = self.model.declared.checked_options(request, self.mode)
        image = request["image"]
        paths = [image] if isinstance(image, str) else list(image)
        result = self.model(paths, options, self.mode, flag(request, "allow_any_image"))
        start = perf_counter()
        labels = self.view(result, self.model.declared.options(self.mode)["threshold"])
        source = result["input_image"].meta["source"]
        file = write(MetaTensor(labels[None], affine=result["pred"].affine), source, extension, dtype)
        seconds = {**result["seconds"], "writing": perf_counter() - start}
        scores = summary(result)
        params = {
            **scores,
            "result": {k: v for k, v in scores.items() if k != "slices"},
            "label_names": self.labels,
            "options": options,
            "changed_options": changed_options(options, self.model.declared.options(self.mode)),
            "version": self.model.declared.version,
            "weights": self.model.networks.weights,
            "warning": "Research software, not for clinical use.",
            "latencies": {
                "pre": round(seconds["preprocessing"], 3),
                "infer": round(seconds["networks"], 3),
                "post": round(seconds["postprocessing"], 3),
                "write": round(seconds["writing"], 3),
                "total": round(perf_counter() - begin, 3),
                "transform": {"pre": result["transforms"]},
            },
        }
        return file, params, result


def infer_tasks(models: Sequence[Model]) -> dict[str, AnomalyInferTask]:
    """What clients can run, by name: of every model its mask and its heat map, and the preview if it has a student.

    Args:
        models: the names of the first one's tasks stand alone; those of another one begin with its name.
    """
    tasks = {}
    for n, model in enumerate(models):
        prefix = f"{model.declared.name}_" if n else ""
        tasks[f"{prefix}lesion_mask"] = AnomalyInferTask(model, "mask")
        tasks[f"{prefix}anomaly_heat_map"] = AnomalyInferTask(model, "heat_map")
        if PREVIEW in model.declared.modes:
            tasks[f"{prefix}lesion_preview"] = AnomalyInferTask(model, "mask", PREVIEW)
    return tasks
