"""Fine-tuning of the bundle's networks from the studies' labels, by the bundle's own training configs."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list, name_to_device

logger = logging.getLogger(__name__)

METRIC = "val_loss"
"""What must not rise for new weights to be published."""

HEALTHY, ANOMALOUS, UNKNOWN = 0, 1, -1
"""A slice's label, as `scripts.learning.datasets.SliceDataset` takes it."""

CLASSES = {HEALTHY: "healthy", ANOMALOUS: "anomalous"}

OPTIONS: dict[str, tuple[type[int] | type[float], float]] = {
    "max_images": (int, 10**12),
    "max_minutes": (float, math.inf),
    "val_split": (float, 1.0),
    "learning_rate": (float, math.inf),
    "batch_size": (int, math.inf),
}
"""The numbers a request may set, and below what; all are above 0."""


@dataclass(frozen=True)
class Study:
    """One labelled image: its path, whose it is, and a label for each slice of the file."""

    image: str
    patient: str
    labels: Sequence[int]


def axial_volume(path: str) -> MetaTensor:
    """A NIfTI or NRRD file as ``(C, X, Y, Z)`` in the order left, posterior, superior, with ``input_affine`` in its meta.

    Args:
        path: of a 3D file, or of a 4D file that holds its channels last.

    Raises:
        ValueError: the file can't be read as such.
    """
    try:
        volume = LoadImage(image_only=True, ensure_channel_first=False, dtype=np.float32)(path)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path}: can't be read as an image ({reason[0] if reason else type(error).__name__})."
        ) from error
    if volume.ndim not in (3, 4):
        raise ValueError(
            f"{path}: has {volume.ndim} dimensions {tuple(volume.shape)}; allowed are 3, or 4 with channels."
        )
    affine = torch.as_tensor(volume.affine, dtype=torch.float64)
    array = volume.as_tensor().reshape(*volume.shape[:3], -1).moveaxis(-1, 0)
    # the reader's other meta stays behind: a "space" in it would change what Orientation means by its letters
    return Orientation("LPS", labels=None)(MetaTensor(array, affine=affine, meta={"input_affine": affine.clone()}))


def mask_labels(image: str, mask: str) -> list[int]:
    """The label of each slice of an image from a mask on its grid.

    A slice is anomalous (1) if the mask marks a voxel in it as lesion; unknown (-1) if it marks none but has voxels that
    were not assessed; else healthy (0). Slices count from 0 along the image file's axis nearest to superior-inferior.

    Args:
        image: path of the image.
        mask: path of the mask; its file may hold the same voxels in another order.

    Raises:
        ValueError: a file can't be read, the mask lies on another grid, or holds other values than 0, 1 and 2.
    """
    from scripts.images.geometry import slice_numbers
    from scripts.images.restoring import LESION, NOT_ASSESSED

    volume, marks = axial_volume(image), axial_volume(mask)
    if marks.shape != (1, *volume.shape[1:]) or not np.allclose(marks.affine, volume.affine, atol=1e-3):
        raise ValueError(
            f"{mask}: lies on another grid than {image} (in the order left, posterior, superior {tuple(marks.shape)} "
            f"against {(1, *volume.shape[1:])}, or another affine); save the mask on the image's grid."
        )
    values = marks.as_tensor()
    others = sorted(set(values.unique().tolist()) - {0, LESION, NOT_ASSESSED})
    if others:
        raise ValueError(
            f"{mask}: holds the value {others[0]:g}; allowed are 0, {LESION} (anomaly) and {NOT_ASSESSED} (not assessed)."
        )
    labels = torch.full(values.shape[-1:], HEALTHY)
    labels[(values == NOT_ASSESSED).any(dim=(0, 1, 2))] = UNKNOWN
    labels[(values == LESION).any(dim=(0, 1, 2))] = ANOMALOUS
    return [label for _, label in sorted(zip(slice_numbers(volume), labels.tolist(), strict=True))]


def tag_labels(image: str, tag: Any) -> list[int]:
    """The label of each slice of an image from its ``image_label``: "healthy", or a list with 0, 1 or -1 for each slice.

    Args:
        image: path of the image.
        tag: its ``image_label``.

    Raises:
        ValueError: the image can't be read, or the tag doesn't give a label for each slice.
    """
    depth = axial_volume(image).shape[-1]
    if tag == CLASSES[HEALTHY]:
        return [HEALTHY] * depth
    if isinstance(tag, list) and len(tag) == depth and all(label in (HEALTHY, ANOMALOUS, UNKNOWN) for label in tag):
        return [int(label) for label in tag]
    if tag == "diseased":
        raise ValueError(f'{image}: "diseased" doesn\'t say which slices are; submit a mask, or give 0 or 1 a slice.')
    raise ValueError(
        f'{image}: image_label must be "healthy" or a list with 0, 1 or -1 for each of its {depth} slices, got {tag!r:.60}.'
    )


def require_both_classes(classes: Mapping[str, set[int]]) -> None:
    """Check that each class has two patients, one to train and one to validate.

    Args:
        classes: of each patient's slices, 0 (healthy) and 1 (anomalous).

    Raises:
        ValueError: it has not; the message says how many more are needed.
    """
    counts = {label: sum(label in c for c in classes.values()) for label in CLASSES}
    if min(counts.values()) < 2:
        missing = [f"{2 - n} more with {CLASSES[label]} slices" for label, n in counts.items() if n < 2]
        raise ValueError(
            "too few labelled patients: training and validation each need one with healthy and one with anomalous slices. "
            f"There are {counts[HEALTHY]} with healthy and {counts[ANOMALOUS]} with anomalous slices that can be used; "
            f"label {' and '.join(missing)}."
        )


def split_patients(classes: Mapping[str, set[int]], val_split: float, seed: int) -> set[str]:
    """Choose the patients for validation, by chance but so that both classes are on both sides.

    Args:
        classes: of each patient's slices, 0 (healthy) and 1 (anomalous).
        val_split: share of the patients; more or fewer where both classes could not be on both sides otherwise.
        seed: of the shuffle; the same patients and seed give the same choice.

    Raises:
        ValueError: see `require_both_classes`.
    """
    require_both_classes(classes)
    order = sorted(classes)
    random.Random(seed).shuffle(order)
    number = max(1, round(val_split * len(order)))
    chosen: set[str] = set()
    # a class that is still missing takes the next patient who has it; one always follows, as each class has two
    for patient in order:
        held = set[int]().union(*(classes[p] for p in chosen))
        left = set[int]().union(*(classes[p] for p in order if p != patient and p not in chosen))
        if left >= CLASSES.keys() and (len(chosen) < number or not classes[patient] <= held):
            chosen.add(patient)
    return chosen


class TrainingLog:
    """Log the loss and the minutes left, every few seconds and at the end; stop a training that diverges.

    Raises ValueError where the loss is not finite.

    Args:
        minutes: that the training may take.
        every_seconds: between two lines.
    """

    def __init__(self, minutes: float, every_seconds: float = 15.0) -> None:
        self.minutes, self.every_seconds = minutes, every_seconds
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """To the trainer."""
        from scripts.learning.noising import loss_of

        self._loss_of = loss_of
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._log)

    def _start(self, engine: Engine) -> None:
        self._began = self._logged = time.monotonic()

    def _collect(self, engine: Engine) -> None:
        loss = self._loss_of(engine.state.output)
        if not math.isfinite(loss):
            raise ValueError(
                f"the training diverged: the loss is {loss} at iteration {engine.state.iteration}. Nothing was published; "
                "set a lower learning_rate."
            )
        self._losses.append(loss)
        if time.monotonic() - self._logged >= self.every_seconds:
            self._log(engine)

    def _log(self, engine: Engine) -> None:
        self._logged = time.monotonic()
        if self._losses:
            loss = sum(self._losses) / len(self._losses)
            left = max(0.0, self.minutes - (self._logged - self._began) / 60)
            logger.info("iteration %d: loss %.4f, at most %.1f minutes left", engine.state.iteration, loss, left)
            self._losses.clear()


class FineTune(TrainTask):
    """Go on training one of the bundle's networks with the studies' labels; publish it only if it did not get worse.

    Slices are labelled by the submitted masks (see `mask_labels`), for images without one by ``image_label`` in the image's
    info (see `tag_labels`). What can't be used is named in the log and skipped. Patients are split by ``PatientID`` in the
    image's info, where there is none each image counts as a patient.

    The bundle's folder must be on ``sys.path``: its configs name its ``scripts``.

    Args:
        bundle: folder of the bundle.
        config_files: in its ``configs``, one over the other: "inference.json", the model's own if it has one, "train.json" and
            what else the training needs. The weights are what they call ``published``.
        description: shown in the viewer.
        overrides: ids of the config with other values.
    """

    def __init__(self, bundle: str | Path, config_files: Sequence[str], description: str, **overrides: Any) -> None:
        super().__init__(description)
        self.bundle = Path(bundle).resolve()
        self.config_files = config_files
        self.overrides = overrides
        parser = self._parser()
        self.weights = Path(parser.get_parsed_content("published"))
        self.report_path = self.weights.with_suffix(".finetune.json")
        self._options = {
            "max_images": 8000,
            "max_minutes": 10,
            "val_split": 0.2,
            "learning_rate": float(f"{parser.get_parsed_content('learning_rate') / 10:.3g}"),
            "batch_size": parser.get_parsed_content("batch_size"),
        }

    def config(self) -> dict[str, Any]:
        """The options of a request, with their defaults."""
        return {"device": device_list(), **self._options}

    def stats(self) -> dict[str, Any]:
        """What the last fine-tuning returned; empty if there was none."""
        try:
            report: dict[str, Any] = json.loads(self.report_path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return report

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Fine-tune, validate, and publish what is not worse.

        Args:
            request: values for the options in `config`.
            datastore: of the studies.

        Returns:
            ``before`` and ``after`` (validation metrics), ``patients`` and ``slices`` of each side, ``skipped`` images,
            ``iterations``, ``published``, and ``kept``, the file beside the weights that holds the old ones.

        Raises:
            ValueError: an option is out of range, or there are too few labels; the message says which and how many.
        """
        options = self._options_of(request)
        studies, skipped = self._studies(datastore)
        # too few labels are said before the volumes are preprocessed, which takes long
        require_both_classes(_classes((s.patient, s.labels) for s in studies))
        # on the weights' disk, so that they can be moved in one step; what a killed run left is found by the next
        folder = self.weights.with_suffix(".finetune")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            return self._fine_tune(options, studies, skipped, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _parser(self, **overrides: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(self.bundle / "configs" / name) for name in self.config_files])
        parser.update({"bundle_root": str(self.bundle), **self.overrides, **overrides})
        return parser

    def _options_of(self, request: Mapping[str, Any]) -> dict[str, Any]:
        # every value becomes a number or a device: as a string the config would run it where it starts with "$"
        options: dict[str, Any] = {}
        for name, (kind, limit) in OPTIONS.items():
            given = request.get(name)
            try:
                options[name] = kind(self._options[name] if given in (None, "") else given)
            except (TypeError, ValueError, OverflowError):
                options[name] = math.nan
            if not 0 < options[name] < limit:
                upper = f" and below {limit:g}" if math.isfinite(limit) else ""
                raise ValueError(f"{name} must be a number above 0{upper}, got {given!r}.")
        given = request.get("device")
        try:
            options["device"] = torch.device(name_to_device(given))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device must be one of {device_list()}, got {given!r}.") from error
        return options

    def _studies(self, datastore: Datastore) -> tuple[list[Study], int]:
        studies, skipped, unlabelled = [], 0, 0
        for image_id in sorted(datastore.list_images()):
            try:
                info = datastore.get_image_info(image_id)
                label_id = datastore.get_label_by_image_id(image_id, DefaultLabelTag.FINAL)
                tag = info.get("image_label")
                if not label_id and tag is None:
                    unlabelled += 1
                    continue
                image = datastore.get_image_uri(image_id)
                if label_id:
                    labels = mask_labels(image, datastore.get_label_uri(label_id, DefaultLabelTag.FINAL))
                else:
                    labels = tag_labels(image, tag)
                if set(labels) == {UNKNOWN}:
                    raise ValueError(f"{image}: the label of each slice is unknown.")
            except Exception as error:
                logger.warning("skipped %s: %s", image_id, error)
                skipped += 1
                continue
            studies.append(Study(image, str(info.get("PatientID") or image_id), labels))
        logger.info("%d images with labels; %d skipped; %d without a label", len(studies), skipped, unlabelled)
        return studies, skipped

    def _fine_tune(self, options: dict[str, Any], studies: list[Study], skipped: int, folder: Path) -> dict[str, Any]:
        from scripts.weights import load_weights, replace_weights

        val_split = options.pop("val_split")
        candidate = folder / "run" / "model.pt"
        parser = self._parser(
            cache_dir=str(folder / "cache"),
            run_dir=str(candidate.parent),
            initial_weights=str(self.weights),
            epoch_images=options["max_images"],
            **options,
        )
        left = _labels_left(parser, studies)
        usable = [s for s in studies if s.image in left]
        classes = _classes((s.patient, left[s.image]) for s in usable)
        chosen = split_patients(classes, val_split, parser.get_parsed_content("seed"))
        sides = {
            "train": [s for s in usable if s.patient not in chosen],
            "validation": [s for s in usable if s.patient in chosen],
        }
        parser["train#dataset#data"] = _datalist(sides["train"])
        parser["validate#dataset#data"] = _datalist(sides["validation"])
        parser.get_parsed_content("initialize")
        datasets = {
            "train": parser.get_parsed_content("train#dataset"),
            "validation": parser.get_parsed_content("validate#dataset"),
        }
        report: dict[str, Any] = {
            "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "patients": {side: len({s.patient for s in members}) for side, members in sides.items()},
            "slices": {
                side: {name: dataset.labels.count(label) for label, name in CLASSES.items()}
                for side, dataset in datasets.items()
            },
            "skipped": skipped + len(studies) - len(usable),
        }
        logger.info("patients %s, slices %s, %d skipped", report["patients"], report["slices"], report["skipped"])
        evaluator, trainer = (parser.get_parsed_content(k) for k in ("validate#evaluator", "train#trainer"))
        before = _validated(evaluator, "before")
        TrainingLog(options["max_minutes"]).attach(trainer)
        # not the config's "run": an error in it comes out as one of the config
        trainer.run()
        load_weights(parser.get_parsed_content("ema").ema_model, str(candidate), options["device"])
        after = _validated(evaluator, "after")
        # false for a loss that is not a number, too
        published = after[METRIC] <= before[METRIC]
        report |= {
            "iterations": trainer.state.iteration,
            # JSON has no NaN
            "before": {k: v if math.isfinite(v) else None for k, v in before.items()},
            "after": {k: v if math.isfinite(v) else None for k, v in after.items()},
            "published": published,
            "kept": replace_weights(candidate, self.weights) if published else None,
        }
        outcome = f"published; the old weights are {report['kept']}" if published else "not published"
        logger.info(
            "%s: %s %.4f before, %.4f after: %s", self.weights.name, METRIC, before[METRIC], after[METRIC], outcome
        )
        part = folder / self.report_path.name
        part.write_text(json.dumps(report, indent=2), "utf-8")
        os.replace(part, self.report_path)
        return report


def _classes(labels: Iterable[tuple[str, Iterable[int]]]) -> dict[str, set[int]]:
    """The classes of each patient's slices, from pairs of patient and labels."""
    classes: dict[str, set[int]] = defaultdict(set)
    for patient, values in labels:
        classes[patient] |= set(values) - {UNKNOWN}
    return dict(classes)


def _labels_left(parser: ConfigParser, studies: Sequence[Study]) -> dict[str, set[int]]:
    """The classes that the preprocessing leaves of each image: it drops slices outside of the trained range."""
    parser["train#dataset#data"] = _datalist(studies)
    dataset = parser.get_parsed_content("train#dataset")
    left = _classes((image, [label]) for image, label in zip(dataset.subjects, dataset.labels, strict=True))
    for study in studies:
        if study.image not in left:
            logger.warning("skipped %s: the preprocessing leaves no labelled slice of it", study.image)
    return left


def _datalist(studies: Sequence[Study]) -> tuple[dict[str, Any], ...]:
    # a tuple passes through the config as it is; in a list a path that starts with "$" or "@" would be read as config
    return tuple({"image": s.image, "label": list(s.labels)} for s in studies)


def _validated(evaluator: Any, when: str) -> dict[str, float]:
    evaluator.run()
    metrics = {name: float(value) for name, value in evaluator.state.metrics.items()}
    logger.info("validation %s: %s", when, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics
