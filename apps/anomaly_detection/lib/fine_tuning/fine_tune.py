"""The task that trains on, and publishes what is not worse."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from monai.bundle import ConfigParser
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list

from lib.fine_tuning.labelled_studies import Study, labelled_studies
from lib.fine_tuning.options import checked_options
from lib.fine_tuning.patients import classes_of, require_both_classes, split_patients
from lib.fine_tuning.training_log import TrainingLog
from lib.studies.base import Studies

logger = logging.getLogger(__name__)

METRIC = "val_loss"
"""What must not rise for new weights to be published."""


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

    def check(self, request: Mapping[str, Any]) -> None:
        """See to it that a request's options can be used, before a process begins with them.

        Raises:
            MONAILabelException: INVALID_INPUT, one can't.
        """
        try:
            checked_options(request, self._options)
        except ValueError as error:
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, str(error)) from error

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> dict[str, Any]:
        """Fine-tune, validate, and publish what is not worse.

        Args:
            request: values for the options in `config`.
            datastore: of the studies.

        Returns:
            ``before`` and ``after`` (validation metrics), ``patients`` and ``slices`` of each side, ``skipped`` images,
            ``iterations``, ``published``, and ``kept``, the file beside the weights that holds the old ones.

        Raises:
            MONAILabelException: INVALID_INPUT, there are too few labels, the message says how many; SERVER_ERROR, these weights
                are being fine-tuned already.
            ValueError: an option is out of range.
        """
        options = checked_options(request, self._options)
        parser = self._parser()
        studies, skipped = labelled_studies(datastore, parser["modalities"], parser["sequences"])
        # too few labels are said before the volumes are preprocessed, which takes long
        require_both_classes(classes_of((s.patient, s.labels) for s in studies))
        # on the weights' disk, so that they can be moved in one step; what a killed run left is found by the next
        folder = self.weights.with_suffix(".finetune")
        try:
            with self._alone(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(mode=0o700)
                try:
                    return self._fine_tune(options, studies, skipped, folder)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
        except Timeout as error:
            raise MONAILabelException(
                MONAILabelError.SERVER_ERROR,
                f"{self.weights.name} is being fine-tuned already. Try again once that has ended.",
            ) from error

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Hold a lock beside the folder, which goes with it."""
        with FileLock(f"{folder}.lock", blocking=False) as lock:
            try:
                yield
            finally:
                os.unlink(lock.lock_file)

    def _parser(self, **overrides: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(self.bundle / "configs" / name) for name in self.config_files])
        parser.update({"bundle_root": str(self.bundle), **self.overrides, **overrides})
        return parser

    def _fine_tune(self, options: dict[str, Any], studies: list[Study], skipped: int, folder: Path) -> dict[str, Any]:
        from scripts import DISEASED, HEALTHY
        from scripts.files import write
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
        classes = classes_of((s.patient, left[s.image]) for s in usable)
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
            "time": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
            "patients": {side: len({s.patient for s in members}) for side, members in sides.items()},
            "slices": {
                # "anomalous" is what clients and the reports on disk know
                side: {"healthy": dataset.labels.count(HEALTHY), "anomalous": dataset.labels.count(DISEASED)}
                for side, dataset in datasets.items()
            },
            "skipped": skipped + len(studies) - len(usable),
        }
        logger.info("patients %s, slices %s, %d skipped", report["patients"], report["slices"], report["skipped"])
        evaluator, trainer = (parser.get_parsed_content(k) for k in ("validate#evaluator", "train#trainer"))
        before = _validated(evaluator, "before")
        TrainingLog(options["max_minutes"]).attach(trainer)
        # not the config's "run": an error in it comes out as one of the config
        parser.get_parsed_content("checkpoint").open()
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
        write(self.report_path, json.dumps(report, indent=2).encode())
        return report


def _labels_left(parser: ConfigParser, studies: Sequence[Study]) -> dict[str, set[int]]:
    """The classes that the preprocessing leaves of each image: slices with too little foreground are dropped."""
    parser["train#dataset#data"] = _datalist(studies)
    dataset = parser.get_parsed_content("train#dataset")
    left = classes_of((image, [label]) for image, label in zip(dataset.subjects, dataset.labels, strict=True))
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
