"""Whole volumes through networks of slices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from tqdm import tqdm

from .. import DISEASED
from ..checks import check_number
from ..images.foreground import assessed_slices

CPU_BATCH, GPU_BATCH = 16, 256
"""Slices in one network call: a CPU gains nothing beyond, and a whole volume is one call on a GPU with the memory for it."""


def with_neighbours(probability: torch.Tensor) -> torch.Tensor:
    """Each slice's probabilities averaged with the slices above and below, in parts 1 : 2 : 1, as lesions span slices.

    Args:
        probability: of disease or, a pixel, of lesion, ``(..., D)``, NaN where not assessed, which counts for no neighbour.

    Returns:
        ``(..., D)``, NaN where it was.
    """
    around = torch.nn.functional.pad(probability, (1, 1), value=torch.nan).unfold(-1, 3, 1)  # (..., D, 3)
    weight = around.new_tensor([1.0, 2.0, 1.0]).where(~around.isnan(), 0)
    mean = (around.nan_to_num() * weight).sum(dim=-1) / weight.sum(dim=-1)
    return mean.where(~probability.isnan(), torch.nan)


class SliceInferer(Inferer):
    """Folds volumes into slices and takes those that are assessed through the networks in batches.

    A subclass says in `slices` what it gives for slices, and in `unassessed` what stands for the others. No noise
    is drawn; that two runs give the same bits is tested on the CPU only.

    Args:
        classifier: f(x, t) -> logits ``(N, 2)`` of noised slices, for p(diseased).
        min_area_fraction: slices with less of the largest slice's brain are not assessed; from 0 to 1.
        batch_size: slices in one network call, 1 or more; by default `CPU_BATCH`, or on a GPU the largest that its memory
            holds: from `GPU_BATCH` down, halved whenever memory runs out.
        precision: "float32", or "bfloat16" for autocast within the networks.
        progress: show a bar.

    Raises:
        ValueError: another precision, or a number out of range.
    """

    def __init__(
        self,
        classifier: torch.nn.Module,
        min_area_fraction: float = 0.5,
        batch_size: int | None = None,
        precision: str = "float32",
        progress: bool = False,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}.")
        check_number("min_area_fraction", min_area_fraction, 0, 1)
        if batch_size is not None:
            check_number("batch_size", batch_size, 1, 65536, whole=True)
        self.classifier = classifier
        self.min_area_fraction = min_area_fraction
        self.batch_size = batch_size
        self.precision = precision
        self.progress = progress

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        assessed: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The result for whole volumes.

        Args:
            inputs: ``(B, C, H, W, D)`` in [-1, 1], -1 outside the brain.
            network: what `slices` takes.
            assessed: bool ``(B, D)``, the slices to run; by default those with enough brain.

        Returns:
            What `slices` gives, each ``(B, ..., D)``, probabilities `with_neighbours`, NaN where not assessed; and
            ``assessed``, bool ``(B, D)``.
        """
        x = convert_to_tensor(inputs).float()
        if assessed is None:
            assessed = assessed_slices(x, self.min_area_fraction)
        slices = x.movedim(-1, 1)  # (B, D, C, H, W)
        found = self.unassessed(slices) | {"probability": torch.full(assessed.shape, torch.nan, device=x.device)}
        chosen = slices[assessed]
        if len(chosen):
            for name, values in self._batches(chosen, network).items():
                found[name][assessed] = values
        found = {name: values.movedim(1, -1) for name, values in found.items()}
        smoothed = {name: with_neighbours(found[name]) for name in ("probability", "student") if name in found}
        return found | smoothed | {"assessed": assessed}

    def _batches(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """`slices` in batches that fit the memory."""
        size = self.batch_size or (GPU_BATCH if x.device.type == "cuda" else CPU_BATCH)
        results: list[dict[str, torch.Tensor]] = []
        done = 0
        with tqdm(total=len(x), desc="slices", leave=False, disable=not self.progress) as bar:
            while done < len(x):
                batch = x[done : done + size]
                found = None
                try:
                    found = self.slices(batch, network)
                except torch.OutOfMemoryError:
                    if self.batch_size or len(batch) == 1:
                        raise
                if found is None:
                    # only here, as the error holds what every frame it passed through held
                    torch.cuda.empty_cache()
                    size = len(batch) // 2
                    continue
                results.append(found)
                done += len(batch)
                bar.update(len(batch))
        return {name: torch.cat([r[name] for r in results]) for name in results[0]}

    def slices(self, x: torch.Tensor, network: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is found in slices ``(N, C, H, W)``: images ``(N, ...)`` by name, and ``probability`` ``(N,)``."""
        raise NotImplementedError

    def unassessed(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The images of `slices` for ``(B, D, C, H, W)``, all as if not assessed."""
        raise NotImplementedError

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The classifier's p(diseased) ``(N,)`` of slices without noise."""
        timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.classifier.to(x.device).eval()(x, timesteps).float().softmax(dim=1)[:, DISEASED]
