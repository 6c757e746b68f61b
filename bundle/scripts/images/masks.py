"""Masks from files, on the grid of the image that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from monai.data import MetaTensor

from .formats import LOSSY, PICTURES, VOLUMES, is_picture
from .geometry import check_affine, difference, on_grid
from .pictures import read_picture
from .volume_files import read_volume

FORMATS = tuple(suffix for suffix in VOLUMES + PICTURES if suffix not in LOSSY)

SAME_GRID = 0.1
"""Two grids are one if no corner of theirs lies further apart than this, in voxels: headers are rounded."""


def reordered(
    voxels: torch.Tensor, affine: torch.Tensor, target: torch.Tensor, size: Sequence[int]
) -> torch.Tensor | None:
    """The same voxels in the order of another affine's axes, exactly; None where the two are not one grid.

    Args:
        voxels: ``(C, ...)`` of three dimensions.
        affine: of their grid, ``(4, 4)``.
        target: of the grid wanted.
        size: of the grid wanted, ``(X, Y, Z)``.
    """
    affine, target = (torch.as_tensor(a, dtype=torch.float64) for a in (affine, target))
    try:
        to_source = torch.linalg.solve(affine, target)
    except RuntimeError:  # a singular affine
        return None
    axes = to_source[:3, :3].abs().argmax(dim=0).tolist()
    if not bool(torch.isfinite(to_source).all()) or sorted(axes) != [0, 1, 2]:
        return None
    flipped = [n for n, axis in enumerate(axes) if to_source[axis, n] < 0]
    result = voxels.permute(0, *(axis + 1 for axis in axes))
    if tuple(result.shape[1:]) != tuple(size):
        return None
    for corner in product(*((0, n - 1) for n in size)):
        place = to_source @ torch.tensor([*corner, 1], dtype=torch.float64)
        for n, axis in enumerate(axes):
            there = size[n] - 1 - corner[n] if n in flipped else corner[n]
            if abs(float(place[axis]) - there) > SAME_GRID:
                return None
    # an axis of one voxel has no second corner to show its length
    lengths, wanted = (torch.linalg.norm(a[:3, :3], dim=0) for a in (affine[:, axes], target))
    if not torch.allclose(lengths, wanted, rtol=0.01):
        return None
    return result.flip([n + 1 for n in flipped])


def _read(path: str, like: MetaTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A file's voxels, and its affine in mm; a picture lies as the file of the image does."""
    if path.lower().endswith(LOSSY):
        raise ValueError("JPEG doesn't keep a mask's pixels; save it as PNG")
    if is_picture(path):
        return read_picture(path).voxels, torch.as_tensor(like.meta.get("input_affine", like.affine))
    loaded = read_volume(path)
    return loaded.voxels, loaded.affine


def load_mask(path: str | Path, like: MetaTensor) -> MetaTensor:
    """Where a mask is above 0, bool ``(1, X, Y, Z)``; see `load_values`."""
    values = load_values(path, like)
    return on_grid(values.as_tensor() > 0, values.affine, like)


def load_values(path: str | Path, like: MetaTensor) -> MetaTensor:
    """A mask by its own affine, in the order of an image's voxels.

    Its file may hold the voxels in any order of the axes. Other grids are refused rather than resampled: whether two files
    share one space can't be told from their headers. Where the image's voxel sizes were replaced by an item's ``spacing``, a
    mask may have the header's or the true ones.

    Args:
        path: of a file of a volume or a picture.
        like: the image ``(C, X, Y, Z)``, not resampled, in the order of its file or in another.

    Returns:
        ``(1, X, Y, Z)`` with the affine of `like`.

    Raises:
        ValueError: the file is missing, unreadable, not one volume, of a singular affine, or lies on another grid.
    """
    if not isinstance(path, (str, Path)):
        raise ValueError(f"{path!r}: a mask is one file.")
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file.")
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder; a mask is one file ({', '.join(FORMATS)}).")
    try:
        voxels, own = _read(str(path), like)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ValueError(f"{path}: can't be read as a mask ({lines[0] if lines else type(error).__name__}).") from error
    check_affine(str(path), own)
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    while voxels.ndim < 3:
        voxels = voxels[..., None]
    if voxels.ndim > 3:
        raise ValueError(f"{path}: a mask is one 3D volume, got {tuple(voxels.shape)} voxels.")
    affine = torch.as_tensor(like.affine, dtype=torch.float64)
    grids = [affine]
    if "header_affine" in like.meta:
        # as the file has it, then in the order that the axes have now
        order = torch.linalg.solve(torch.as_tensor(like.meta["input_affine"], dtype=torch.float64), affine)
        grids.append(torch.as_tensor(like.meta["header_affine"], dtype=torch.float64) @ order)
    for grid in grids:
        mask = reordered(voxels[None], own, grid, like.shape[1:])
        if mask is not None:
            return on_grid(mask.contiguous(), affine, like)
    image, has_size = like.meta.get("filename_or_obj", "the image"), like.meta.get("unit") != "pixels"
    how = difference(voxels.shape, own, like.shape[1:], affine, has_size)
    raise ValueError(f"{path}: lies on another grid than {image} ({how}); resample the mask to the image's grid first.")
