"""Where voxels lie: grids, and the slices of a file."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, SpatialResample
from monai.utils import convert_to_tensor

from ..checks import check_number
from ..errors import InvalidImageError

MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
"""How many mm a unit of length is, by NIfTI's code: unknown, metre, mm, micrometre."""


def load_nifti(path: str) -> nib.Nifti1Image:
    """A NIfTI file, compressed or not whatever its name says: some tools write the one under the other's name.

    Raises:
        OSError, ValueError, nibabel.filebasedimages.ImageFileError: it is none.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped == path.lower().endswith(".gz"):
        return nib.load(path)
    content = Path(path).read_bytes()
    content = gzip.decompress(content) if zipped else content
    kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
    return kind.from_bytes(content)


def millimetres(header: nib.Nifti1Header) -> float:
    """How many mm one unit of a NIfTI's affine is.

    Raises:
        ValueError: the header has a code of no unit.
    """
    # the bits above are of the unit of time
    code = int(header["xyzt_units"]) % 8
    if code not in MILLIMETRES:
        raise ValueError(
            f"its unit of length is {code} (xyzt_units); allowed are 0 (unknown), 1 (m), 2 (mm) and 3 (micrometres)"
        )
    return MILLIMETRES[code]


def check_affine(path: str, affine: torch.Tensor) -> None:
    """Refuse a file whose affine ``(4, 4)`` says of no voxel where it lies.

    Raises:
        InvalidImageError: it is singular, or holds NaN or infinity.
    """
    directions = torch.as_tensor(affine, dtype=torch.float64)[:3, :3]
    least = 1e-6 * float(torch.linalg.norm(directions, dim=0).max()) ** 3
    finite = bool(torch.isfinite(affine).all())
    if not finite or abs(float(torch.linalg.det(directions))) <= least:
        wrong = "is singular" if finite else "holds NaN or infinity"
        raise InvalidImageError(f"{path}: its affine {wrong}, so position and orientation are unknown.")


def same_grid(
    shape: Sequence[int], affine: torch.Tensor, other_shape: Sequence[int], other_affine: torch.Tensor
) -> bool:
    """Whether the voxels of two grids lie at the same places, but for what headers round: 0.001 mm.

    Args:
        shape: of one, ``(X, Y, Z)``.
        affine: of it, ``(4, 4)`` in mm.
        other_shape: of the other.
        other_affine: of the other.
    """
    close = torch.allclose(torch.as_tensor(affine).double(), torch.as_tensor(other_affine).double(), atol=1e-3)
    return tuple(shape) == tuple(other_shape) and close


def difference(
    shape: Sequence[int], affine: torch.Tensor, like: Sequence[int], target: torch.Tensor, has_size: bool = True
) -> str:
    """In which way a grid differs from the one wanted, in words: in number or size of its voxels, in place, or in direction.

    What is told of its axes is in the order of those wanted.

    Args:
        shape: of the grid, ``(X, Y, Z)``.
        affine: of the grid, ``(4, 4)`` in mm.
        like: the shape wanted.
        target: the affine wanted.
        has_size: whether both files say how large a voxel is.
    """
    affine, target = affine.double(), target.double()
    sizes, wanted = (torch.linalg.norm(a[:3, :3], dim=0) for a in (affine, target))
    cosines = (target[:3, :3] / wanted).T @ (affine[:3, :3] / sizes)
    axes = cosines.abs().argmax(dim=1).tolist()
    if sorted(axes) == [0, 1, 2]:
        shape, sizes, affine = [shape[axis] for axis in axes], sizes[axes], affine[:, [*axes, 3]]
    if tuple(shape) != tuple(like):
        return f"{_by(shape)} voxels against {_by(like)}"
    if not has_size:
        return "their affines differ, and not both files say how large a voxel is"
    if not torch.allclose(sizes, wanted, rtol=1e-4):
        return f"voxels of {_by(sizes.tolist())} against {_by(wanted.tolist())} mm"
    centres = [a[:3, 3] + a[:3, :3] @ (torch.tensor(like).double() - 1) / 2 for a in (affine, target)]
    apart = float(torch.linalg.norm(centres[0] - centres[1]))
    return f"their centres are {apart:.3f} mm apart" if apart > 1e-3 else "their axes have other directions"


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)


def affine_like(affine: np.ndarray, source: nib.Nifti1Image) -> np.ndarray:
    """An affine in mm in the units of a NIfTI; exactly that file's own where they are the same.

    Args:
        affine: ``(4, 4)``.
        source: whose header a result takes over.
    """
    in_its_units = np.array(affine, dtype=np.float64)
    in_its_units[:3] /= millimetres(source.header)
    return source.affine if np.allclose(in_its_units, source.affine, rtol=1e-6, atol=1e-9) else in_its_units


def on_grid(tensor: torch.Tensor, affine: torch.Tensor, like: MetaTensor) -> MetaTensor:
    """`tensor` on the grid of `affine`, with the meta of another image but its affine."""
    return MetaTensor(tensor, affine=affine, meta={k: v for k, v in like.meta.items() if k != "affine"})


def axial(image: MetaTensor) -> MetaTensor:
    """``(C, X, Y, Z)`` in the order left, posterior, superior ("LPS")."""
    return Orientation("LPS", labels=None)(image)


def checked_spacing(spacing: Any) -> torch.Tensor:
    """Three voxel sizes in mm, float64 ``(3,)``.

    Raises:
        ValueError: other than three numbers from 0.01 to 100.
    """
    if not isinstance(spacing, (list, tuple, np.ndarray)) or len(spacing) != 3:
        raise ValueError(f"spacing must be three voxel sizes in mm, got {spacing!r}.")
    for size in spacing:
        check_number("spacing", size, 0.01, 100, "three voxel sizes in mm from 0.01 to 100")
    return torch.tensor([float(size) for size in spacing], dtype=torch.float64)


def to_grid(
    tensor: torch.Tensor, affine: torch.Tensor, target: torch.Tensor, size: Sequence[int], mode: str = "bilinear"
) -> torch.Tensor:
    """Resample ``(C, H, W, D)`` from the grid of one affine to that of another, 0 outside.

    Args:
        tensor: values.
        affine: of its grid, ``(4, 4)``.
        target: of the new grid.
        size: of the new grid, ``(X, Y, Z)``.
        mode: "bilinear" (in three dimensions, trilinear), which fades to 0 from half a voxel within the edges on, or "nearest".

    Returns:
        float32 ``(C, X, Y, Z)`` on the CPU.
    """
    resample = SpatialResample(mode=mode, padding_mode="zeros", align_corners=False, dtype=torch.float32)
    source = MetaTensor(convert_to_tensor(tensor).float().cpu(), affine=affine)
    return resample(source, dst_affine=target, spatial_size=tuple(size)).as_tensor()


def slice_axis(affine: np.ndarray) -> tuple[int, bool]:
    """The axis of a file nearest to superior-inferior, as `axial` takes it, and whether it goes up.

    Args:
        affine: of the file, ``(4, 4)``.
    """
    orientation = nib.io_orientation(affine)
    axis = int(np.flatnonzero(orientation[:, 0] == 2)[0])
    return axis, bool(orientation[axis, 1] > 0)


def slice_numbers(image: MetaTensor) -> list[int]:
    """The slice of the input file, counted from 0 along its axis nearest to superior-inferior, behind every slice.

    Args:
        image: preprocessed ``(C, H, W, D)`` with ``input_affine`` in its meta.
    """
    to_file = torch.linalg.inv(image.meta["input_affine"]) @ torch.as_tensor(image.affine, dtype=torch.float64)
    axis = int(to_file[:3, 2].abs().argmax())
    centre = torch.tensor([(image.shape[1] - 1) / 2, (image.shape[2] - 1) / 2, 0.0, 1.0], dtype=torch.float64)
    return [int(torch.round((to_file @ (centre + torch.tensor([0, 0, z, 0])))[axis])) for z in range(image.shape[3])]


def axial_index(number: int, affine: torch.Tensor, depth: int) -> int:
    """Where a slice of the file, as `slice_numbers` counts, lies once the volume is in the order left, posterior, superior.

    Args:
        number: of the slice.
        affine: of the file, ``(4, 4)``.
        depth: number of slices.
    """
    return number if slice_axis(affine.numpy())[1] else depth - 1 - number
