"""The models that a viewer lists: two views of one run of the bundle, and its preview."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from monai.data import MetaTensor
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.writer import write_itk

from lib.bundle import FULL, PREVIEW, Bundle
from lib.studies import COUNTERFACTUAL_TAG, MAP_TAG

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd")
DTYPES = ("uint8", "uint16", "int16", "float32")
LESION, NOT_ASSESSED = 1, 2

# OHIF colours a segment by a sum over the letters of its name: these are bright green and nearly white
MASK_LABELS = {"lesion": LESION, "not assessed": NOT_ASSESSED}
LEVELS = 9
# and these run from dark violet over blue and green to pale yellow
HEAT_MAP_LABELS = {
    f"anomaly {level} {word}": level
    for level, word in enumerate(
        ("trace", "faint", "small", "minor", "notable", "high", "extreme", "top", "full"),
        start=1,
    )
}
# and this one is slate blue
HEAT_MAP_LABELS["not assessed: no result"] = LEVELS + 1
LEVELS_BELOW_THRESHOLD = 3
SHORT_OPTIONS = {"noise_level": "L", "guidance_scale": "g", "num_inference_steps": "s", "threshold": "t"}


def lesion_mask(result: Mapping[str, Any], threshold: float) -> torch.Tensor:
    """1 where the bundle marks a lesion, 2 in brain that was not assessed, 0 elsewhere: uint8 ``(X, Y, Z)``."""
    return result["pred"][0].to(torch.uint8)


def heat_map(result: Mapping[str, Any], threshold: float) -> torch.Tensor:
    """The anomaly map in nine levels: uint8 ``(X, Y, Z)``, 0 is below the first, 10 was not assessed.

    Three levels make one threshold, the one that was chosen on validation, whatever the request's: two studies compare.

    Args:
        result: what the bundle gave.
        threshold: the bundle's default. Level n begins at n / 3 of it, so the third begins where the mask does.
    """
    a = result["anomaly_map"][0].nan_to_num(nan=0.0)
    # level n holds what is above its edge, as the mask does
    levels = (torch.ceil(a / (threshold / LEVELS_BELOW_THRESHOLD)) - 1).clamp(0, LEVELS)
    return torch.where(result["pred"][0] == NOT_ASSESSED, LEVELS + 1, levels).to(torch.uint8)


class AnomalyInferTask(InferTask):
    """One view of what the bundle finds in a study, as a label map on the study's own grid.

    Args:
        bundle: shared by all views, so that the second one of a study takes no time.
        view: "mask" or "heat_map".
        mode: one of the bundle's.

    `__call__` takes MONAI Label's request and returns the path of the label map and, as ``params``, the scores: ``result``
    holds ``score`` and ``p_diseased`` of the volume (its highest slice's; None if no slice was assessed), ``lesion_ml``,
    ``not_assessed_slices`` (their numbers in the file) and ``warnings`` (sentences that say why it may be wrong); at
    the top level, where MONAI Label's own tasks have it, stands the same and ``slices``.

    Raises:
        MONAILabelException: INVALID_INPUT, an option or a volume can't be used; the message says why and what is allowed.
    """

    VIEWS = {"mask": (lesion_mask, MASK_LABELS), "heat_map": (heat_map, HEAT_MAP_LABELS)}

    def __init__(self, bundle: Bundle, view: str, mode: str = FULL) -> None:
        self.bundle = bundle
        self.mode = mode
        self.view, labels = self.VIEWS[view]
        threshold = bundle.options(mode)["threshold"]
        what = {
            "mask": "Lesion mask: 1 lesion, 2 not assessed (brain that the model did not look at, no statement on it)",
            "heat_map": f"Anomaly heat map in nine levels: level n is above n / {LEVELS_BELOW_THRESHOLD} of the threshold "
            f"{threshold:g}, so that 1 begins at {threshold / LEVELS_BELOW_THRESHOLD:.3g}, 3 is the edge of the mask, "
            f"9 is above {LEVELS / LEVELS_BELOW_THRESHOLD * threshold:.3g}; level 10 was not assessed",
        }[view]
        if mode == PREVIEW:
            what += "; in a second, by a network that learned it from counterfactuals, without one"
        super().__init__(
            InferType.SEGMENTATION,
            dict(labels),
            3,
            f"{what}. Takes {', '.join(bundle.channels)}. Research software, not for clinical use.",
            bundle.options(mode),
        )

    def info(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "labels": self.labels,
            "dimension": self.dimension,
            "description": self.description,
            "config": self.config(),
            "version": self.bundle.version,
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
        self.bundle.load()
        config = json.dumps(self.bundle.config(self.mode), sort_keys=True)
        return {
            "model": request["model"],
            "input": [[file.st_size, file.st_mtime_ns] for file in map(os.stat, request["image"])],
            "options": self.bundle.checked_options(request, self.mode),
            "config": hashlib.sha256(config.encode()).hexdigest(),
            "weights": self.bundle.weights,
            "version": self.bundle.version,
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
        options = self.bundle.checked_options(request, self.mode)
        image = request["image"]
        paths = [image] if isinstance(image, str) else list(image)
        result = self.bundle(paths, options, self.mode, allow_any_image(request))
        start = perf_counter()
        labels = self.view(result, self.bundle.options(self.mode)["threshold"])
        file = write(MetaTensor(labels[None], affine=result["pred"].affine), paths[0], extension, dtype)
        seconds = {**result["seconds"], "writing": perf_counter() - start}
        scores = summary(result)
        params = {
            **scores,
            "result": {k: v for k, v in scores.items() if k != "slices"},
            "label_names": self.labels,
            "options": options,
            "changed_options": changed_options(options, self.bundle.options(self.mode)),
            "version": self.bundle.version,
            "weights": self.bundle.weights,
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


def allow_any_image(request: Mapping[str, Any]) -> bool:
    """Whether a request wants to run what is no MR image of a head.

    Raises:
        MONAILabelException: INVALID_INPUT, the field is neither true nor false.
    """
    value = request.get("allow_any_image", False)
    if not isinstance(value, bool):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"allow_any_image must be true or false, got {value!r}."
        )
    return value


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a volume: its highest slice's, the volume of what is marked, and the warnings."""
    assessed = [s for s in result["slices"] if s["assessed"]]
    voxel_ml = float(abs(torch.linalg.det(result["pred"].affine[:3, :3]))) / 1000
    return {
        "score": max((s["score"] for s in assessed), default=None),
        "p_diseased": max((s["p_diseased"] for s in assessed), default=None),
        "lesion_ml": float((result["pred"] == LESION).sum()) * voxel_ml,
        "not_assessed_slices": [s["slice"] for s in result["slices"] if not s["assessed"]],
        "warnings": list(result.get("warnings", [])),
        "slices": result["slices"],
    }


def changed_options(options: Mapping[str, float], defaults: Mapping[str, float]) -> str:
    """Those that are not the default, short as in "L500 s20": noise (L)evel, (g)uidance, (s)teps, (t)hreshold."""
    return " ".join(f"{SHORT_OPTIONS.get(k, k)}{v:.4g}" for k, v in options.items() if v != defaults[k])


def warn(params: dict[str, Any], warnings: list[str]) -> None:
    """Put sentences that say why a result may be wrong before those that `AnomalyInferTask` gave."""
    for place in (params, params["result"]):
        place["warnings"] = [*warnings, *place.get("warnings", [])]


def write(image: MetaTensor, source: str, extension: str, dtype: str) -> str:
    """Write ``(1, X, Y, Z)`` on its grid to a new temporary file; NIfTI takes over the header of its source."""
    from scripts.running.saving import save_nifti

    handle, path = tempfile.mkstemp(suffix=extension)
    os.close(handle)
    image = image.to(getattr(torch, dtype))
    if extension in (".nii", ".nii.gz"):
        save_nifti(image, source, Path(path))
    else:
        write_itk(image[0].as_tensor().numpy(), path, image.affine.numpy(), None, compress=False)
    return path


def write_results(result: Mapping[str, Any], source: str, folder: Path) -> dict[str, Path]:
    """Write the float results on the grid of the input, as NIfTI, each under its tag."""
    from scripts.running.saving import save_nifti

    paths = {}
    for tag in (MAP_TAG, COUNTERFACTUAL_TAG):
        paths[tag] = folder / f"{tag}.nii.gz"
        save_nifti(result[tag], source, paths[tag])
    return paths
