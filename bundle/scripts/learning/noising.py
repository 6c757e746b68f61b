"""What MONAI's trainer and evaluator need beyond their own parts to train on noised slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import default_prepare_batch
from monai.engines.utils import PrepareBatch
from monai.inferers import DiffusionInferer, SimpleInferer
from monai.utils import convert_to_tensor

from ..checks import check_number
from ..device import autocast
from ..method.inferer import with_counterpart
from .seeding import NOISE, seed_of


class _Autocast:
    """Makes of an inferer one whose networks run in `precision`, on whatever device the inputs are.

    MONAI's engines know CUDA's autocast only.
    """

    def __init__(self, *args: Any, precision: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        autocast("cpu", precision)  # refuses what it doesn't know
        self.precision = precision

    def __call__(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with autocast(inputs.device, self.precision):
            return super().__call__(inputs, *args, **kwargs).float()  # type: ignore[misc]  # of the other base


class StudentTrainingInferer(_Autocast, SimpleInferer):
    """A student under autocast, as `method.inferer.with_counterpart` reads it.

    Args:
        precision: "float32", "bfloat16", or "float16" (GPU; set the trainer's ``amp`` for its gradient scaler).

    Raises:
        ValueError: another precision.
    """

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The logits of the map and the counterpart, ``(N, 1 + C, H, W)``."""
        return with_counterpart(inputs, super().__call__(inputs, network, *args, **kwargs))


class AutocastDiffusionInferer(_Autocast, DiffusionInferer):
    """MONAI's `DiffusionInferer` under autocast.

    Args:
        scheduler: MONAI's.
        precision: as for `StudentTrainingInferer`.

    Raises:
        ValueError: another precision.
    """


class NoisedPrepareBatch(PrepareBatch):
    """Draw a timestep and a noise field for every image; the target is the noise (diffusion) or the label (classifier).

    Both depend on `seed` and the image's ``number`` alone, see `datasets.SliceDataset`: neither on the step nor on the batch
    that it is in, so that a training is the same on any number of ranks, and two validations compare.

    A diffusion network that learns its variance too has all of ``image``, ``noise`` and ``timesteps`` as its target, see
    `hybrid_loss.HybridLoss`.

    Args:
        num_train_timesteps: timesteps are drawn uniformly from 0 to this.
        target: "noise", "label" or "noise and variance".
        noise_levels: for validation: repeat every image at each of these timesteps, one level after the other.
        seed: of the training, 0 or above.
        clean: share of the training images that stay at timestep 0, from 0 to 1; see `method.classifiers.CleanAndNoised`.

    Returns (as MONAI's engines expect): images ``(N, C, H, W)``, targets, no arguments, and ``noise`` and ``timesteps`` by
    keyword for `DiffusionInferer`.
    """

    def __init__(
        self,
        num_train_timesteps: int,
        target: str = "noise",
        noise_levels: list[int] | None = None,
        seed: int = 0,
        clean: float = 0.0,
    ) -> None:
        if target not in ("noise", "label", "noise and variance"):
            raise ValueError(f"target must be 'noise', 'label' or 'noise and variance', got {target!r}.")
        check_number("clean", clean, 0, 1)
        self.num_train_timesteps = num_train_timesteps
        self.target = target
        self.noise_levels = noise_levels
        self.seed = seed
        self.clean = clean

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | dict[str, torch.Tensor], tuple, dict[str, torch.Tensor]]:
        images, labels = default_prepare_batch(dict(batchdata), device, non_blocking, **kwargs)
        images = convert_to_tensor(images)  # a MetaTensor slows every operation, and can't be compiled
        levels = len(self.noise_levels or [0])
        generator = torch.Generator(images.device)
        drawn = []
        for number in batchdata["number"]:
            generator.manual_seed(seed_of(self.seed, NOISE, int(number)))
            timestep = torch.randint(self.num_train_timesteps, (1,), generator=generator, device=images.device)
            field = torch.randn((levels, *images.shape[1:]), generator=generator, device=images.device)
            if self.clean and torch.rand(1, generator=generator, device=images.device) < self.clean:
                timestep.zero_()
            drawn.append((timestep, field))
        timesteps, noise = torch.cat([t for t, _ in drawn]), torch.stack([n for _, n in drawn], dim=1).flatten(0, 1)
        if self.noise_levels is not None:
            timesteps = torch.tensor(self.noise_levels, device=images.device).repeat_interleave(len(images))
            images = images.repeat(levels, 1, 1, 1)
            labels = labels.repeat(levels)
        noised = {"noise": noise, "timesteps": timesteps}
        targets = {"noise": noise, "label": labels, "noise and variance": {"image": images, **noised}}
        return images, targets[self.target], (), noised


def loss_of(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> float:
    """Output transform: the loss of an iteration, of a batch or of its images, each of which has it."""
    return float((output if isinstance(output, Mapping) else output[0])["loss"])
