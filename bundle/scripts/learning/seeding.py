"""Every step of a training draws from the seed and its own number: one that was stopped goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Randomizable
from torch.utils.data import Sampler

from .. import DISEASED
from ..checks import check_number, is_true

BATCH, STEP, AUGMENTATION = range(3)
"""What is drawn from one seed, each from a stream of its own."""

Draw = tuple[int, int]
"""Which slice of a data set, and the how-manyth image of the training it is, counted from 0."""


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits for a sequence of whole numbers, each 0 or above: NumPy's `SeedSequence`."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class RandomBatches(Sampler[list[Draw]]):
    """Batches of slices, drawn with replacement, without end; a batch depends on the seed and its number alone.

    Args:
        dataset: its ``labels`` are the classes, 0 or 1.
        batch_size: images a batch.
        balanced: draw each class equally often.
        seed: of the training, 0 or above.

    Raises:
        ValueError: the seed is negative, or `balanced` and there is one class alone.
    """

    def __init__(self, dataset: Any, batch_size: int, balanced: bool | str, seed: int) -> None:
        check_number("seed", seed, 0, 2**32 - 1, whole=True)
        labels = np.asarray(dataset.labels)
        balanced = is_true(balanced, "balanced")
        if balanced and len(set(dataset.labels)) < 2:
            one = "diseased" if labels[0] == DISEASED else "healthy"
            raise ValueError(f"all {len(labels)} slices are labelled {one}; this training needs both classes.")
        weights = 1.0 / np.bincount(labels)[labels] if balanced else np.ones(len(labels))
        self._upper = np.cumsum(weights) / weights.sum()
        self.batch_size, self.seed = batch_size, seed
        self._first = 0

    def attach(self, engine: Engine) -> None:
        """Begin with the batch that the trainer is at; behind what loads its checkpoint."""
        engine.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Engine) -> None:
        self._first = engine.state.iteration

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self._first
        while True:
            drawn = np.random.default_rng([self.seed, BATCH, number]).random(self.batch_size)
            slices = np.minimum(np.searchsorted(self._upper, drawn, side="right"), len(self._upper) - 1)
            yield [(int(i), number * self.batch_size + n) for n, i in enumerate(slices)]
            number += 1


class SeedSteps:
    """Seed PyTorch before every step: the timesteps, the noise and the dropout depend on the seed and the step alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """To the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        torch.manual_seed(seed_of(self.seed, STEP, engine.state.iteration))


_RANDOM = np.random.RandomState()
"""Of every augmentation of this process; to make one for each draw takes as long as the augmentation."""


def augmented(
    item: dict[str, Any], augmentation: Callable[[dict[str, Any]], dict[str, Any]], seed: int, number: int
) -> dict[str, Any]:
    """An item of a training set after its augmentation, which depends on the seed and the image's number alone.

    Not on what was drawn before, nor on the worker that draws it. On plain tensors, as MONAI's record of what was done to them
    takes as long as doing it. `augmentation` must not be asked whether it is true: a MONAI `Compose` seeds its transforms anew
    then.
    """
    _RANDOM.seed(seed_of(seed, AUGMENTATION, number))
    for transform in getattr(augmentation, "transforms", (augmentation,)):
        if isinstance(transform, Randomizable):
            transform.set_random_state(state=_RANDOM)
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        return augmentation(item)
    finally:
        set_track_meta(tracked)
