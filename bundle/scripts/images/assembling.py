"""From the arrays of files to one image with its channels, checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor

from ..errors import InvalidImageError
from .geometry import check_affine, checked_spacing, difference, same_grid
from .volume_files import Loaded

MAX_EXTENT = 1000.0
"""mm of any axis: more is a header with wrong units, and would be resampled to more voxels than memory holds."""


def on_one_grid(image: Loaded, other: Loaded) -> bool:
    """Whether voxels, but for their channels, lie at the same places."""
    return same_grid(image.voxels.shape[:3], image.affine, other.voxels.shape[:3], other.affine)


def assemble(
    images: Sequence[Loaded],
    paths: Sequence[str],
    channels: int,
    min_size: int,
    spacing: Sequence[float] | None = None,
) -> MetaTensor:
    """What was read of one file, or of one file a channel, as an image ``(C, X, Y, Z)``, or why it can't be one.

    Args:
        images: as their files hold them.
        paths: of the files.
        channels: number of channels an image must have.
        min_size: fewest voxels along two axes.
        spacing: voxel sizes in mm to take instead of the files', three, or two of a picture.

    Raises:
        InvalidImageError: see `LoadVolumed`.
    """
    for image, path in zip(images, paths, strict=True):
        shape, size = tuple(image.voxels.shape), tuple(images[0].voxels.shape[:3])
        if len(shape) not in ((3, 4) if len(paths) == 1 else (3,)):
            raise InvalidImageError(
                f"{path}: has {len(shape)} dimensions {shape}; allowed are a 3D volume (a radiograph: one "
                "slice) or, for several channels, one 3D file each or one 4D file with the channels last."
            )
        check_affine(path, image.affine)
        if not on_one_grid(image, images[0]):
            has_size = image.has_size and images[0].has_size
            how = difference(shape[:3], image.affine, size, images[0].affine, has_size)
            raise InvalidImageError(
                f"{path}: lies on another grid than {paths[0]} ({how}); resample the sequences to one grid first."
            )
    first = images[0]
    channels_last = first.voxels.ndim == 4
    volume = first.voxels.movedim(-1, 0).contiguous() if channels_last else torch.stack([i.voxels for i in images])
    name = ", ".join(paths)
    if volume.shape[0] != channels:
        raise InvalidImageError(
            f"{name}: has {volume.shape[0]} channel(s), the model takes {channels}; "
            "give one file a channel, one 4D file, or the folder of the study."
        )
    affine = torch.as_tensor(first.affine, dtype=torch.float64).clone()
    lengths = torch.linalg.norm(affine[:3, :3], dim=0)
    header = {}
    if spacing is not None:
        if isinstance(spacing, (list, tuple)) and len(spacing) == 2 and volume.shape[3] == 1:
            spacing = [*spacing, float(lengths[2])]
        try:
            sizes = checked_spacing(spacing)
        except ValueError as error:
            raise InvalidImageError(f"{name}: {error}") from error
        header["header_affine"] = affine.clone()
        affine[:3, :3] *= sizes / lengths
        lengths = sizes
    if sorted(volume.shape[1:])[1] < min_size:
        raise InvalidImageError(f"{name}: is only {tuple(volume.shape[1:])} voxels, at least two axes need {min_size}.")
    extent = [float(n * s) for n, s in zip(volume.shape[1:], lengths, strict=True)]
    if max(extent) > MAX_EXTENT and (first.has_size or spacing is not None):
        raise InvalidImageError(
            f"{name}: measures {' x '.join(f'{e:.0f}' for e in extent)} mm by its header; at most {MAX_EXTENT:.0f} mm an "
            "axis are allowed. Are the voxel sizes in other units than the header says?"
        )
    for channel, path in zip(volume, list(paths) * volume.shape[0], strict=False):
        finite = channel[torch.isfinite(channel)]
        if not len(finite):
            raise InvalidImageError(f"{path}: every voxel is NaN or infinite, there is no image in it.")
        if float(finite.min()) == float(finite.max()):
            raise InvalidImageError(f"{path}: is constant ({float(finite[0]):g} everywhere), there is no image in it.")
    meta = {"filename_or_obj": name, "source": paths[0], "input_affine": affine.clone(), **header}
    return MetaTensor(volume, affine=affine, meta=meta)
