"""Whole volumes through networks of slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, cast

import torch
from monai.inferers import Inferer
from monai.networks.schedulers import Scheduler
from monai.utils import convert_to_tensor
from tqdm import tqdm

from .. import DISEASED, HEALTHY
from ..checks import check_number

CPU_BATCH, GPU_BATCH = 16, 256
"""Slices in one network call: a CPU gains nothing beyond, and a whole volume is one call on a GPU with the memory for it."""


class Findings(TypedDict, total=False):
    """What an inferer found, in slices ``(N, ...)`` or in volumes ``(B, ..., D)``: the one form that maps are made from.

    A dictionary, as MONAI's engines and MONAI Label take batches apart by its keys.
    """

    probability: torch.Tensor
    """p(diseased) by the classifier, ``(N,)`` or ``(B, D)``; NaN where not assessed."""
    counterfactual: torch.Tensor
    """The healthy counterpart in [-1, 1], ``(N, C, H, W)`` or ``(B, C, H, W, D)``; the input itself where not assessed."""
    student: torch.Tensor
    """The student's probability of lesion, ``(N, 1, H, W)`` or ``(B, 1, H, W, D)``; NaN where not assessed."""
    counterpart: torch.Tensor
    """The healthy counterpart as a student learned it, like ``counterfactual``."""
    assessed: torch.Tensor
    """Of volumes: bool ``(B, D)``, the slices that were looked at."""


def each(found: Findings, change: Callable[[torch.Tensor], torch.Tensor]) -> Findings:
    """The findings with every tensor changed."""
    return cast(Findings, {name: change(cast(torch.Tensor, values)) for name, values in found.items()})


def assessed_slices(foreground: torch.Tensor, min_area: int) -> torch.Tensor:
    """Which slices hold enough foreground to be trained on and looked at.

    The paper drops the lowest and highest slices of BRATS. A reader can't, so all count but those with next to nothing.

    Args:
        foreground: ``(..., 1, H, W, D)``, inside from 0.5 on.
        min_area: pixels.

    Returns:
        bool ``(..., D)``.
    """
    return (foreground[..., 0, :, :, :] >= 0.5).sum(dim=(-3, -2)) >= max(min_area, 1)


def with_neighbours(probability: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Each slice's probabilities averaged with the slices above and below, in parts 1 : 2 : 1, as lesions span slices.

    Args:
        probability: of disease or, a pixel, of lesion, ``(..., D)``, NaN where not assessed, which counts for no neighbour.
        counted: bool ``(..., D)``, the slices that count for their neighbours; by default all.

    Returns:
        ``(..., D)``, NaN where it was.
    """
    counting = probability if counted is None else probability.where(counted, torch.nan)
    below, above = (torch.nn.functional.pad(counting, ends, value=torch.nan) for ends in ((1, -1), (-1, 1)))
    around = torch.stack([below, probability, above], dim=-1)  # (..., D, 3)
    weight = around.new_tensor([1.0, 2.0, 1.0]).where(~around.isnan(), 0)
    mean = (around.nan_to_num() * weight).sum(dim=-1) / weight.sum(dim=-1)
    return mean.where(~probability.isnan(), torch.nan)


class SliceInferer(Inferer):
    """Folds volumes into slices and takes those that are assessed through the networks in batches.

    A subclass says in `slices` what it gives for slices, and in `unassessed` what stands for the others. The
    only noise is that of `classified_at`, the same in every run; that two runs give the same bits is tested on the CPU only.

    Args:
        classifier: f(x, t) -> logits ``(N, 2)`` of noised slices, for p(diseased).
        target_class: the healthy class, 0 or 1; p(diseased) is 1 - p(target).
        temperature: of p(diseased), from 0.01 to 100: the logits are divided by it, so that above 1 it is less sure (Guo et
            al. 2017). Guidance knows none.
        classified_at: noise levels, in timesteps, at which p(diseased) is read, and whose logits are averaged; by default the
            slices are read as they are, at timestep 0. A level's noise is the same for every slice, and in every run.
        scheduler: MONAI's, for its schedule; needed with `classified_at` alone.
        min_area: slices with less foreground are not assessed; pixels of the networks' grid, 1 or more.
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
        target_class: int = HEALTHY,
        temperature: float = 1.0,
        classified_at: Sequence[int] = (),
        scheduler: Scheduler | None = None,
        min_area: int = 1,
        batch_size: int | None = None,
        precision: str = "float32",
        progress: bool = False,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}.")
        check_number("target_class", target_class, HEALTHY, DISEASED, whole=True)
        check_number("temperature", temperature, 0.01, 100)
        for level in classified_at:
            if scheduler is None:
                raise ValueError("classified_at needs a scheduler, for the schedule of the noise.")
            check_number("classified_at", level, 0, scheduler.num_train_timesteps - 1, whole=True)
        check_number("min_area", min_area, 1, 10**12, "1 or more", whole=True)
        if batch_size is not None:
            check_number("batch_size", batch_size, 1, 65536, whole=True)
        self.classifier = classifier
        self.target_class = target_class
        self.temperature = temperature
        self.classified_at = list(classified_at)
        # a copy: MONAI's add_noise casts the schedule in place to the dtype of the images it is given
        self.alphas_cumprod = None if scheduler is None else scheduler.alphas_cumprod.float().clone()
        self.min_area = min_area
        self.batch_size = batch_size
        self.precision = precision
        self.progress = progress

    @property
    def settings(self) -> dict[str, Any]:
        """What the findings depend on beside the weights, the schedule and the temperature."""
        return {"classified_at": self.classified_at, "precision": self.precision}

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        foreground: torch.Tensor | None = None,
        assessed: torch.Tensor | None = None,
    ) -> Findings:
        """The result for whole volumes.

        Args:
            inputs: ``(B, C, H, W, D)`` in [-1, 1].
            network: what `slices` takes.
            foreground: ``(B, 1, H, W, D)``, inside from 0.5 on; by default the whole image.
            assessed: bool ``(B, D)``, the slices to run; by default those with enough foreground. Others count for no
                neighbour, so that those get what they get by default.

        Returns:
            What `slices` gives, each ``(B, ..., D)``, probabilities `with_neighbours`; and ``assessed``.
        """
        x = convert_to_tensor(inputs).float()
        inside = torch.ones_like(x[:, :1]) if foreground is None else convert_to_tensor(foreground).to(x.device)
        enough = assessed_slices(inside, self.min_area)
        assessed = enough if assessed is None else assessed
        slices, inside = x.movedim(-1, 1), inside.movedim(-1, 1)  # (B, D, C, H, W)
        found = self.unassessed(slices)
        found["probability"] = torch.full(assessed.shape, torch.nan, device=x.device)
        chosen = slices[assessed]
        if len(chosen):
            for name, values in self._batches(chosen, inside[assessed] >= 0.5, network).items():
                found[name][assessed] = values  # type: ignore[literal-required]  # of the same names
        of_volumes = each(found, lambda values: values.movedim(1, -1))
        of_volumes["probability"] = with_neighbours(of_volumes["probability"], enough)
        if "student" in of_volumes:
            of_volumes["student"] = with_neighbours(of_volumes["student"], enough[:, None, None, None])
        of_volumes["assessed"] = assessed
        return of_volumes

    def _batches(self, x: torch.Tensor, inside: torch.Tensor, network: Callable[..., torch.Tensor]) -> Findings:
        """`slices` in batches that fit the memory."""
        size = self.batch_size or (GPU_BATCH if x.device.type == "cuda" else CPU_BATCH)
        results: list[Findings] = []
        done = 0
        with tqdm(total=len(x), desc="slices", leave=False, disable=not self.progress) as bar:
            while done < len(x):
                batch = x[done : done + size]
                found = None
                try:
                    found = self.slices(batch, inside[done : done + size], network)
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
        return cast(
            Findings, {name: torch.cat([cast(torch.Tensor, dict(r)[name]) for r in results]) for name in results[0]}
        )

    def slices(self, x: torch.Tensor, foreground: torch.Tensor, network: Callable[..., torch.Tensor]) -> Findings:
        """What is found in slices ``(N, C, H, W)`` whose foreground, bool ``(N, 1, H, W)``, is looked at."""
        raise NotImplementedError

    def unassessed(self, x: torch.Tensor) -> Findings:
        """The images of `slices` for ``(B, D, C, H, W)``, all as if not assessed."""
        raise NotImplementedError

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The classifier's logits ``(N, 2)``: of slices without noise, or their mean over the levels of `classified_at`."""
        classifier = self.classifier.to(x.device).eval()
        logits = []
        for level, signal, noise in self.levels(x.shape[1:]):
            t = torch.full((len(x),), level, dtype=torch.long, device=x.device)
            logits.append(classifier(signal * x + noise.to(x.device), t).float())
        return torch.stack(logits).mean(dim=0)

    def levels(self, shape: Sequence[int]) -> list[tuple[int, float, torch.Tensor]]:
        """The noise levels that p(diseased) is read at, how much is left of a slice there, and the noise ``(1, *shape)``."""
        if self.alphas_cumprod is None or not self.classified_at:
            return [(0, 1.0, torch.zeros(1, *shape))]
        draw = torch.Generator().manual_seed(0)
        alphas = [(level, float(self.alphas_cumprod[level])) for level in self.classified_at]
        return [(t, a**0.5, (1 - a) ** 0.5 * torch.randn(1, *shape, generator=draw)) for t, a in alphas]

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The classifier's p(diseased) ``(N,)``, by `logits`."""
        return self.diseased(self.logits(x) / self.temperature)

    def diseased(self, logits: torch.Tensor) -> torch.Tensor:
        """p(diseased) ``(N,)`` of logits ``(N, 2)``."""
        return 1 - logits.softmax(dim=1)[:, self.target_class]
