"""What a teacher makes of slices, on disk: one row a slice, made once, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..bundle import bundle_version
from ..checks import is_true
from ..files import exclusive
from ..fingerprints import settings_of
from ..method.inferer import CounterfactualInferer
from ..method.slices import CPU_BATCH, GPU_BATCH
from ..ranks import of_first
from ..weights import weights_digest
from .datasets import SliceDataset

Change = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of slices, their counterfactuals and their foreground, ``(N, C, H, W)``: what is kept of them, ``(N, K, H, W)``."""


class Rows:
    """Float16 arrays of one shape in a file, read one by one.

    Args:
        path: of the file.
        shape: of a row.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.path, self.shape = path, tuple(shape)
        self._values = int(np.prod(self.shape))

    def __getitem__(self, n: int) -> np.ndarray:
        """The row `n`, float16."""
        return np.fromfile(self.path, np.float16, self._values, offset=2 * self._values * n).reshape(self.shape)

    def make(self, number: int, size: int, batch: Callable[[range], torch.Tensor], what: str) -> None:
        """Write the rows that aren't there, by one process at a time; one that was stopped goes on.

        Args:
            number: of rows.
            size: rows a batch.
            batch: makes those of a range, ``(N, *shape)``.
            what: they are, for the bar.
        """
        whole = 2 * self._values * number
        if self.path.is_file() and self.path.stat().st_size == whole:
            return
        with exclusive(self.path.with_suffix(".lock")), self.path.open("ab") as file:
            done = file.tell() // (2 * self._values)
            if done < number:
                # a batch is made as a whole, so that its bits don't depend on where it was stopped
                done -= done % size
            file.truncate(min(2 * self._values * done, whole))
            for begin in tqdm(range(done, number, size), what, unit="batch"):
                rows = batch(range(begin, min(begin + size, number)))
                file.write(rows.half().cpu().numpy().tobytes())


class Counterfactuals:
    """Makes the counterfactuals of a data set's slices, for teachers that keep something of each.

    Args:
        network: the diffusion network.
        inferer: its `slices` gives the counterfactuals, as many in a call as its ``batch_size`` says, by default `CPU_BATCH`
            or on a GPU `GPU_BATCH`.
        cache_dir: where the files lie.
        dry_run: make none.
    """

    def __init__(
        self, network: torch.nn.Module, inferer: CounterfactualInferer, cache_dir: str, dry_run: bool | str = False
    ) -> None:
        self.network, self.inferer = network, inferer
        self.folder, self.dry_run = Path(cache_dir), is_true(dry_run, "dry_run")
        self.weights = {"network": weights_digest(network), "classifier": weights_digest(inferer.classifier)}
        """The digests of the networks."""

    def made(
        self,
        slices: SliceDataset,
        chosen: Sequence[int],
        name: str,
        channels: int,
        settings: Any,
        change: Change,
        changes: Rows | None = None,
    ) -> tuple[Rows, str]:
        """What `change` keeps of the chosen slices, a row each in their order; made where it isn't on disk yet.

        Args:
            slices: a data set.
            chosen: indices of its slices.
            name: how the file's begins.
            channels: of what is kept.
            settings: of `change`, which the digest depends on.
            change: see `Change`.
            changes: the counterfactuals of these slices minus the slices, where they were made before.

        Returns:
            The rows, ``(channels, H, W)``, and the digest of slices, weights and settings by which they are found again.
        """
        device = next(self.network.parameters()).device
        alphas = settings_of(self.inferer.alphas_cumprod)
        # those that were kept are rounded to half precision
        settings = settings if changes is None else (settings, "of kept changes")
        of_teacher = (settings, self.inferer.settings, *self.weights.values(), alphas)
        state = (slices.digest, *of_teacher, bundle_version(), device.type)
        digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
        rows = Rows(self.folder / f"{name}-{digest}.f16", (channels, *slices.foreground(0).shape[1:]))

        def batch(numbers: range) -> torch.Tensor:
            x = torch.stack([slices[chosen[n]]["image"] for n in numbers]).to(device)
            inside = torch.stack([slices.foreground(chosen[n]) for n in numbers]).to(device)
            if changes is None:
                found = self.inferer.slices(x, inside, self.network)["counterfactual"]
            else:
                found = x + torch.stack([torch.from_numpy(changes[n]) for n in numbers]).float().to(device)
            return change(x, found, inside)

        if not self.dry_run:
            size = self.inferer.batch_size or (GPU_BATCH if device.type == "cuda" else CPU_BATCH)
            of_first(lambda: rows.make(len(chosen), size, batch, f"{name} of {len(chosen)} slices"))
        return rows, digest
