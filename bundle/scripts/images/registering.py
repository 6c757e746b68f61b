"""The sequences of one study on one grid: what a patient moved between them is taken back."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..errors import InvalidImageError
from .air import stripped_foreground
from .geometry import axial, on_grid, same_grid
from .intensities import without_spikes
from .masks import reordered
from .rigid import motion, resampled, to_itk

logger = logging.getLogger(__name__)

STILL = 1.0
"""mm: a series on the reference's own grid that moved by less keeps its voxels, as interpolating them would do more harm."""
DOUBTFUL, FAILED = 2.0, 5.0
"""mm of a registration's residual from which on there is a warning, and from which on the image is refused. Of series of one
patient it is 0.2 to 0.7; of another patient, of noise, of a wrong orientation or of four slices it was 7 to 94."""
FARTHEST = 40.0
"""mm that a head moves in a scanner's coil at most; up to 29 were seen. More gets a warning."""
SHOWN = "shown_channel"
"""What the reference's channel is called in an image's meta data; see `shown_channel`."""
MOST_UNCOVERED = 0.05
"""Of the foreground in a slice may lie beyond a sequence's edge; a slice with more is not assessed."""


def shown_channel(image: MetaTensor) -> int:
    """Which channel a picture shows: that on whose grid all were brought, or the first."""
    return int(image.meta.get(SHOWN, 0))


class RegisterChannelsd(MapTransform):
    """Bring the channels of an image to the grid of one of them, by rigid registration.

    A study's series lie on grids of their own, and the patient moves between them. Each channel is registered to the
    reference, see `rigid.motion`, and resampled to its grid. The reference's voxels stay as they are. So do all others where
    the channels lie on one grid and the brain was cut out before, as in BraTS.

    Adds ``covered``, uint8 ``(1, X, Y, Z)``, where all channels reach, for `LimitToCoveredd`. Warns of a registration that is
    doubtful.

    Args:
        keys: lists of images ``(1, X, Y, Z)``, one a channel, as `loading.LoadVolumed` gives them with ``own_grids``; they
            become one image ``(C, X, Y, Z)``, of which pictures show the reference.
        sequences: of the channels.
        reference: the one whose grid all get.

    Raises:
        ValueError: `reference` is none of `sequences`.
        InvalidImageError: a channel can't be registered.
    """

    def __init__(self, keys: KeysCollection, sequences: Sequence[str], reference: str) -> None:
        super().__init__(keys)
        if reference not in sequences:
            raise ValueError(f"reference must be one of {', '.join(sequences)}, got {reference!r}.")
        self.sequences = tuple(sequences)
        self.reference = self.sequences.index(reference)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        warnings: list[str] = d.setdefault("warnings", [])
        for key in self.key_iterator(d):
            images: list[MetaTensor] = d[key]
            fixed = images[self.reference]
            covered = torch.ones(fixed.shape, dtype=torch.bool)
            volumes = [image.as_tensor() for image in images]
            if not (all(_on_one_grid(image, fixed) for image in images) and _is_stripped(fixed)):
                for n, image in enumerate(images):
                    if n != self.reference:
                        volumes[n], reached = self._registered(image, fixed, self.sequences[n], warnings)
                        covered &= reached
            d[key] = on_grid(torch.cat(volumes), fixed.affine, fixed)
            d[key].meta["filename_or_obj"] = ", ".join(
                dict.fromkeys(str(image.meta["filename_or_obj"]) for image in images)
            )
            d[key].meta[SHOWN] = self.reference
            d["covered"] = on_grid(covered.to(torch.uint8), fixed.affine, fixed)
        return d

    def _registered(
        self, image: MetaTensor, fixed: MetaTensor, sequence: str, warnings: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        name, to = image.meta["filename_or_obj"], self.sequences[self.reference]
        image = on_grid(without_spikes(image.as_tensor()), image.affine, image)
        try:
            found = motion(to_itk(fixed), to_itk(image))
        except RuntimeError as error:  # ITK's, where no voxel of the one lies in the other
            raise InvalidImageError(
                f"{name}: can't be registered to {fixed.meta['filename_or_obj']}: by their headers they don't overlap; are "
                "both of one study?"
            ) from error
        said = f"{sequence} moved by up to {found.moved:.1f} mm and {found.turned:.1f} degrees against {to}"
        logger.info("%s: %s, residual %.1f mm", name, said, found.residual)
        if found.residual > FAILED:
            raise InvalidImageError(
                f"{name}: can't be registered to {fixed.meta['filename_or_obj']}: there and back it misses by "
                f"{found.residual:.0f} mm, at most {FAILED:.0f} are allowed. Are both of one patient? Else register the "
                "sequences first."
            )
        if found.residual > DOUBTFUL or found.moved > FARTHEST:
            warnings.append(
                f"{said}, by a registration that there and back misses by {found.residual:.1f} mm. The result may be wrong."
            )
        if _on_one_grid(image, fixed) and found.moved < STILL:
            return image.as_tensor(), torch.ones(fixed.shape, dtype=torch.bool)
        return resampled(image, fixed, found.transform)


class LimitToCoveredd(MapTransform):
    """Take from the foreground the slices that not all channels reach, with a warning, and take away ``covered``.

    What was taken is still part of the whole foreground that was kept before, so it is marked as not assessed.

    Args:
        keys: the foreground ``(1, X, Y, Z)`` on the input's grid, axial, its third axis the slices.

    Raises:
        InvalidImageError: no slice is left.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        covered = d.pop("covered", None)
        if covered is None:
            return d
        for key in self.key_iterator(d):
            mask: MetaTensor = d[key]
            reach = reordered(covered.as_tensor(), covered.affine, mask.affine, mask.shape[1:])
            assert reach is not None
            area = (mask.as_tensor() > 0).sum(dim=(0, 1, 2))
            beyond = ((mask.as_tensor() > 0) & (reach == 0)).sum(dim=(0, 1, 2))
            lost = beyond > MOST_UNCOVERED * area
            if bool(lost.any()):
                if not bool((area[~lost] > 0).any()):
                    name = mask.meta["filename_or_obj"]
                    raise InvalidImageError(f"{name}: no slice of the brain is covered by all of them.")
                d.setdefault("warnings", []).append(
                    f"{int(lost.sum())} slices with brain are not covered by all sequences and were not assessed."
                )
                left = mask.as_tensor().clone()
                left[..., lost] = 0
                d[key] = on_grid(left, mask.affine, mask)
        return d


def _on_one_grid(image: MetaTensor, other: MetaTensor) -> bool:
    return same_grid(image.shape[1:], image.affine, other.shape[1:], other.affine)


def _is_stripped(image: MetaTensor) -> bool:
    volume = axial(image)
    return stripped_foreground(volume[0].as_tensor().nan_to_num(0, 0, 0).numpy(), volume.pixdim.tolist()) is not None
