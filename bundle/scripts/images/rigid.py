"""How a head moved from one series to the next: rigid registration of two volumes, with SimpleITK."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813 - as its own documents call it
import torch
from monai.data import MetaTensor

from .volume_files import TO_RAS

LEVELS = (8.0, 4.0, 2.0)
"""mm of a voxel, from coarse to fine. Voxels that are larger stay as they are."""
SAMPLES = 30_000
"""Voxels of each level that are compared, drawn with a fixed seed; all give no better motion, in ten times the time."""
RADIUS = 70.0
"""mm around the middle of an image, about that of a brain: how far it moved is how far points there did."""
MOST_SAMPLES = 1 << 26
"""Voxels at most that a volume is resampled to before it is averaged."""


class Motion(NamedTuple):
    """From where a point of the fixed volume lies to where it lies in the moving one, and how sure that is.

    `residual` is how far points at `RADIUS` come back from where they were, at most, by the registration there and that back:
    in mm, of two that start anew and know nothing of each other. `moved` is how far those points moved, at most, in mm, and
    `turned` by what angle, in degrees.
    """

    transform: sitk.Euler3DTransform
    moved: float
    turned: float
    residual: float


def to_itk(image: MetaTensor) -> sitk.Image:
    """The one channel of an image ``(1, X, Y, Z)`` as ITK has it, 0 where it is not finite."""
    affine = TO_RAS @ image.affine.numpy().astype(np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    volume = sitk.GetImageFromArray(np.ascontiguousarray(image.as_tensor()[0].float().nan_to_num(0, 0, 0).numpy().T))
    volume.SetSpacing(lengths.tolist())
    volume.SetDirection((affine[:3, :3] / lengths).ravel().tolist())
    volume.SetOrigin(affine[:3, 3].tolist())
    return volume


def motion(fixed: sitk.Image, moving: sitk.Image) -> Motion:
    """Register a volume to another: three angles and three shifts, from the scanner's coordinates on.

    Mattes' mutual information on ever finer grids, see `LEVELS`, made largest by Powell's method; one thread and a fixed seed,
    so that it gives the same each time. Source: Mattes et al., IEEE TMI 22(1), 2003.

    Raises:
        RuntimeError: they don't overlap.
    """
    fixed, moving = _clipped(fixed), _clipped(moving)
    there, back = _registered(fixed, moving), _registered(moving, fixed)
    middle = np.array(_middle(fixed))
    corners = np.array([c for c in product((-1, 0, 1), repeat=3) if any(c)], dtype=np.float64)
    points = middle + RADIUS * corners / np.linalg.norm(corners, axis=1, keepdims=True)
    moved = np.array([there.TransformPoint(p) for p in points.tolist()])
    returned = np.array([back.TransformPoint(p) for p in moved.tolist()])
    rotation = np.reshape(there.GetMatrix(), (3, 3))
    turned = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    farthest, residual = (float(np.linalg.norm(x - points, axis=1).max()) for x in (moved, returned))
    return Motion(there, farthest, float(turned), residual)


def _clipped(volume: sitk.Image) -> sitk.Image:
    """Without the few brightest voxels, which would take the histogram's bins."""
    low, high = np.percentile(sitk.GetArrayViewFromImage(volume), [0.5, 99.5])
    return sitk.Clamp(volume, lowerBound=float(low), upperBound=float(high))


def _middle(volume: sitk.Image) -> list[float]:
    return list(volume.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in volume.GetSize()]))


def _registered(fixed: sitk.Image, moving: sitk.Image) -> sitk.Euler3DTransform:
    transform = sitk.Euler3DTransform()
    transform.SetCenter(_middle(fixed))
    for size in LEVELS:
        coarse = _coarse(fixed, size)
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMattesMutualInformation(32)
        if coarse.GetNumberOfPixels() > SAMPLES:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(SAMPLES / coarse.GetNumberOfPixels(), seed=1)
        method.SetInterpolator(sitk.sitkLinear)
        # on made-up heads, steps along the gradient ended 1 to 5 mm off, in more time
        method.SetOptimizerAsPowell(
            stepLength=size / 4, stepTolerance=0.02, valueTolerance=1e-4, maximumLineIterations=20
        )
        method.SetOptimizerScales([RADIUS] * 3 + [1.0] * 3)
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(coarse, _coarse(moving, size))
    return transform


def _coarse(volume: sitk.Image, size: float) -> sitk.Image:
    # a level needs some voxels an axis
    factors = [max(1, min(round(size / s), n // 8)) for s, n in zip(volume.GetSpacing(), volume.GetSize(), strict=True)]
    return sitk.BinShrink(volume, factors)


def resampled(
    moving: MetaTensor, like: MetaTensor, transform: sitk.Euler3DTransform
) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume on the grid of another, by a transform of that one's points: the mean over each of its voxels, trilinear.

    Args:
        moving: ``(1, ...)``.
        like: ``(1, X, Y, Z)``.
        transform: see `Motion`.

    Returns:
        float32 ``(1, X, Y, Z)``, NaN where a voxel of the moving volume is not finite, and beyond its edge as at it; and bool
        likewise, where it reaches.
    """
    volume, target = to_itk(moving), to_itk(like)
    finer = _finer(target, volume, transform)
    grid = sitk.Image([n * k for n, k in zip(target.GetSize(), finer, strict=True)], sitk.sitkUInt8)
    grid.SetSpacing([s / k for s, k in zip(target.GetSpacing(), finer, strict=True)])
    grid.SetDirection(target.GetDirection())
    first = [(1 - k) / (2 * k) for k in finer]  # in voxels of the target, from the middle of its first
    grid.SetOrigin(target.TransformContinuousIndexToPhysicalPoint(first))
    values = sitk.BinShrink(sitk.Resample(volume, grid, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32, True), finer)
    everywhere = sitk.Image(volume.GetSize(), sitk.sitkUInt8) + 1
    everywhere.CopyInformation(volume)
    reached = sitk.Resample(everywhere, target, transform, sitk.sitkNearestNeighbor, 0)
    lost = sitk.GetImageFromArray((~moving.as_tensor()[0].isfinite()).numpy().astype(np.float32).T)
    lost.CopyInformation(volume)
    holes = sitk.BinShrink(sitk.Resample(lost, grid, transform, sitk.sitkNearestNeighbor, 0.0), finer)
    x, inside, hole = (torch.from_numpy(sitk.GetArrayFromImage(v).T.copy())[None] for v in (values, reached, holes))
    x[hole > 0] = torch.nan  # what comes next refuses it in the brain, and takes it for background elsewhere
    return x, inside > 0


def _finer(target: sitk.Image, moving: sitk.Image, transform: sitk.Euler3DTransform) -> list[int]:
    """How often each axis of the target is sampled in one of its voxels: as densely as the moving volume's voxels lie."""
    axes, rotation, own = (
        np.reshape(m, (3, 3)) for m in (target.GetDirection(), transform.GetMatrix(), moving.GetDirection())
    )
    steps = np.linalg.norm(
        own.T @ rotation @ axes * target.GetSpacing() / np.array(moving.GetSpacing())[:, None], axis=0
    )
    finer = [max(1, round(step)) for step in steps]
    while np.prod([n * k for n, k in zip(target.GetSize(), finer, strict=True)]) > MOST_SAMPLES and max(finer) > 1:
        finer[int(np.argmax(finer))] -= 1
    return finer
