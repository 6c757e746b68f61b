"""What a training is about to do: its config as it was resolved, its data and its sizes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine

from ..checks import is_true
from ..command import command_config
from ..ranks import started
from .budget import Budget
from .checkpoint import ResumableCheckpoint
from .datasets import SliceDataset


def record(datasets: Mapping[str, SliceDataset], network: torch.nn.Module, budget: Budget) -> dict[str, Any]:
    """What is known of a training before it begins, as JSON has it.

    Args:
        datasets: by the name of their section in the datalist.
        network: that is trained.
        budget: of the training.

    Returns:
        ``config``: the ids in use with their values, overrides included; null if it isn't run by MONAI's command.
        ``data``: of each data set the digest, and the number of slices by class and subject. ``sizes``: of the rest.
    """
    sizes = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "images_a_step": budget.batch_size,
        "steps": budget.steps,
        "steps_an_epoch": budget.epoch_length,
        "epochs": budget.epochs,
    }
    data = {name: _summary(dataset) for name, dataset in datasets.items()}
    return {"config": command_config(), "data": data, "sizes": sizes}


def _summary(dataset: SliceDataset) -> dict[str, Any]:
    classes = dict(sorted(Counter(map(str, dataset.labels)).items()))
    return {
        "digest": dataset.digest,
        "slices": len(dataset.labels),
        "slices_by_class": classes,
        "slices_by_subject": dict(Counter(dataset.subjects)),
    }


class Plan:
    """Train, or print what would be trained.

    Args:
        record: see `record`.
        trainer: MONAI's.
        checkpoint: of the trainer.
        dry_run: print the record and train nothing. Volumes that the cache lacks are preprocessed, as the sizes depend on them.
    """

    def __init__(
        self, record: Mapping[str, Any], trainer: Engine, checkpoint: ResumableCheckpoint, dry_run: bool | str = False
    ) -> None:
        self.record, self.trainer, self.checkpoint = record, trainer, checkpoint
        self.dry_run = is_true(dry_run, "dry_run")

    def run(self) -> None:
        """Do it.

        Raises:
            SystemExit: see `ResumableCheckpoint`.
            ValueError: torchrun started several processes that don't know of each other.
        """
        if started() != idist.get_world_size():
            raise ValueError(
                f"torchrun started {started()} processes; with multi_gpu_train.json as the last config file they train one "
                "network together."
            )
        if self.dry_run:
            if idist.get_rank() == 0:
                print(json.dumps({**self.record, "settings": self.checkpoint.settings}, indent=2))
            return
        self.checkpoint.open()
        self.trainer.run()
        self.checkpoint.close()
