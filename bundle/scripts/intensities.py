"""Intensities as a scanner would have given them: no holes in the air, a zero where no signal is, no strong shading."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from .loading import InvalidImageError


def in_plane_border(volume: np.ndarray) -> np.ndarray:
    """The values on the four sides of ``(X, Y, Z)``, axial: air, unless the head is cut off."""
    return np.concatenate([volume[[0, -1]].ravel(), volume[:, [0, -1]].ravel()])


def stripped_foreground(volume: np.ndarray, pixdim: Sequence[float], max_area: float = 250.0) -> np.ndarray | None:
    """The brain of an image whose skull was removed, or None if it is a whole head.

    Around a brain that was cut out the image is exactly constant, and what is not constant has at most a brain's area. Whole
    heads may have such air too, but the largest slice of a head takes 320 cm2 and more, that of a brain 160 to 200. Of
    whole heads in TCGA-LGG and of other people none was taken for stripped, of BraTS none for a whole head: see
    ``benchmarks/sequence_check.json``.

    Args:
        volume: finite, ``(X, Y, Z)``, axial.
        pixdim: voxel size in mm.
        max_area: of the largest slice, in cm2.

    Returns:
        bool ``(X, Y, Z)``: the largest part that is not constant, its holes filled.
    """
    border = in_plane_border(volume)
    values, counts = np.unique(border, return_counts=True)
    background = values[counts.argmax()]
    if counts.max() < 0.8 * border.size:
        return None
    parts, number = ndimage.label(volume != background)
    if not number:
        return None
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    filled = ndimage.binary_fill_holes(largest)
    area = filled.sum(axis=(0, 1)).max() * pixdim[0] * pixdim[1] / 100
    return filled if area <= max_area else None


def _padding(x: np.ndarray) -> np.ndarray:
    """Where a channel has a padding value: the lowest or highest of many voxels, far from all others."""
    padding = np.zeros(x.shape, bool)
    finite = np.isfinite(x)
    for sign in (1, -1):
        values = sign * x[finite & ~padding]
        lowest = values.min()
        rest = values[values > lowest]
        if rest.size < 2 or values.size - rest.size < 0.01 * x.size:
            continue
        nearest, high = rest.min(), np.percentile(rest, 99)
        # a value below 0 under an image that begins at 0, or one that is further off than the image is wide
        if (sign == 1 and lowest < 0 <= nearest) or (high > nearest and nearest - lowest > 2 * (high - nearest)):
            padding |= x == sign * lowest
    return padding


def _missing(x: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Where a channel holds no measurement: not finite, or a spike."""
    values = np.abs(x[np.isfinite(x) & ~padding])
    # one of a thousand voxels lies in the brightest vessels; none is twenty times as bright as that
    limit = 20 * np.percentile(values, 99.9)
    return ~(np.abs(x) <= limit) & ~padding if limit > 0 else ~np.isfinite(x)


class RepairIntensitiesd(MapTransform):
    """Make an image finite and put its zero where no signal is; tell a skull-stripped image from a whole head.

    NaN, infinity, padding values and spikes become background. Where air is not at 0, as after an offset or a z-score, its
    level is taken off. Adds ``missing``, bool ``(1, X, Y, Z)``, what was not finite or a spike, and ``foreground``,
    likewise, where the image was stripped before, see `stripped_foreground`.

    Args:
        keys: images, axial.

    Raises:
        InvalidImageError: the image is CT, a mask or a label map, unless the item allows any image.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        warnings: list[str] = d.setdefault("warnings", [])
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            name = image.meta["filename_or_obj"]
            array = image.as_tensor().numpy().copy()
            padding = np.stack([_padding(x) for x in array])
            missing = np.stack([_missing(x, p) for x, p in zip(array, padding, strict=True)])
            for x, absent in zip(array, padding | missing, strict=True):
                finite = x[np.isfinite(x)]
                what = "a mask or a label map" if is_label_map(finite) else "a CT image" if is_ct(x) else None
                if what:
                    if not d.get("allow_any_image"):
                        raise InvalidImageError(f"{name}: is {what}; allowed is an MR image of a head.")
                    warnings.append(f"This is {what}, not an MR image: the result means nothing.")
                if np.isinf(x).any():
                    warnings.append(f"{int(np.isinf(x).sum())} voxels are infinite. They were taken as background.")
                x[absent] = min(0.0, float(x[~absent].min(initial=0)))
            pixdim = image.pixdim.tolist()
            foreground = stripped_foreground(array[0], pixdim)
            for x in array:
                level = _zero(x, foreground, warnings)
                if foreground is not None:
                    x[~foreground] = level
                x -= level
            d[key] = MetaTensor(torch.from_numpy(array), meta=image.meta)
            d["missing"] = torch.from_numpy(missing.any(axis=0))[None]
            if foreground is not None:
                d["foreground"] = torch.from_numpy(foreground)[None]
        d["warnings"] = list(dict.fromkeys(warnings))
        return d


def is_label_map(values: np.ndarray) -> bool:
    """Whether voxels hold labels: two values, or few small whole numbers."""
    some = np.unique(values[:: max(1, values.size // 100_000)])
    if len(some) > 64:
        return False
    distinct = np.unique(values)
    small = len(distinct) <= 64 and distinct[0] >= 0 and distinct[-1] < 100
    return len(distinct) <= 2 or (small and bool((distinct % 1 == 0).all()))


def is_ct(x: np.ndarray) -> bool:
    """Whether ``(X, Y, Z)`` is CT, where by definition water is 1000 above air; soft tissue is a little more, all alike."""
    above = x[np.isfinite(x)] - np.median(in_plane_border(np.nan_to_num(x)))
    body = above[above > 200]
    if body.size < 0.01 * x.size:
        return False
    low, median, high = np.percentile(body, [30, 50, 70])
    return bool(990 < median < 1090 and high - low < 100)


def _zero(x: np.ndarray, foreground: np.ndarray | None, warnings: list[str]) -> float:
    """The value at which a channel has no signal, with a warning where that is not 0 or not known."""
    air = in_plane_border(x)
    if foreground is not None:
        inside = x[foreground]
        level = float(np.median(air))
        if (inside < level).mean() < 0.01:
            moved = abs(level) > 0.05 * (np.median(inside) - level)
        else:
            level, moved = float(np.percentile(inside, 0.1)), True
            warnings.append(
                "The intensities lie around 0, as after a z-score within the brain, so where no signal is can't be known. "
                "The darkest of the brain was taken for it: scores and volumes are approximate."
            )
            return level
    else:
        level = float(np.median(air))
        tissue = float(np.percentile(x, 90))
        spread = float(np.subtract(*np.percentile(air, [75, 25])))
        moved = level < tissue and (
            level < -0.05 * (tissue - level) or (level > 0.3 * tissue and spread < 0.1 * (tissue - level))
        )
    if not moved:
        return 0.0
    warnings.append(
        f"Air has the value {level:.4g} instead of 0, as after an offset or a z-score. It was taken off before the analysis."
    )
    return level


class CorrectFieldd(MapTransform):
    """Divide by the field of the coil where it shades the brain strongly, and keep it as ``bias_field``.

    The field comes from N4 (Tustison et al. 2010) in SimpleITK on a coarse grid within the brain. In scans as they come from
    a scanner it spans 1.0 to 1.35 (95th to 5th percentile within the brain, 48 volumes of TCGA-LGG and BraTS), part of it
    taken from large lesions, and the networks were trained with it: those are left as they are.

    Args:
        keys: images on the networks' grid.
        mask_key: the brain's coverage in [0, 1].
        min_span: from this ratio of the 95th to the 5th percentile of the field on it is corrected.
        grid: in mm, of the grid on which the field is estimated.

    ``bias_field`` is ``(C, H, W, D)``, 1 everywhere where nothing was corrected; an image times it is the image before.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain", min_span: float = 1.6, grid: float = 7.0) -> None:
        super().__init__(keys)
        self.mask_key = mask_key
        self.min_span = min_span
        self.grid = grid

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        brain = d[self.mask_key].as_tensor()[0].numpy() >= 0.5
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            fields = np.ones(image.shape, np.float32)
            for field, x in zip(fields, image.as_tensor().numpy(), strict=True):
                found = self._field(x, brain & (x > 0), image.pixdim.tolist())
                if found is None:
                    continue
                low, high = np.percentile(found[brain], [5, 95])
                if high > self.min_span * low:
                    field[:] = found / np.median(found[brain])
                    d.setdefault("warnings", []).append(
                        f"The brain is shaded {high / low:.1f}-fold from its dark to its bright side, as by a surface coil. "
                        "This was corrected before the analysis."
                    )
            d["bias_field"] = MetaTensor(torch.from_numpy(fields), affine=image.affine)
            d[key] = image / d["bias_field"].as_tensor()
        return d

    def _field(self, x: np.ndarray, inside: np.ndarray, pixdim: Sequence[float]) -> np.ndarray | None:
        def volume(array: np.ndarray) -> sitk.Image:
            out = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
            out.SetSpacing([float(p) for p in pixdim])
            return out

        image = volume(x)
        # N4's splines need more than three points an axis
        factors = [max(1, min(round(self.grid / p), n // 4)) for p, n in zip(pixdim, x.shape, strict=True)]
        small = sitk.BinShrink(image, factors)
        mask = sitk.Cast(sitk.BinShrink(volume(inside.astype(np.float32)), factors) > 0.9, sitk.sitkUInt8)
        if np.count_nonzero(sitk.GetArrayViewFromImage(mask)) < 100 or min(small.GetSize()) < 2:
            return None
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations([50, 20])
        n4.SetConvergenceThreshold(1e-3)
        n4.Execute(small, mask)
        log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
        return np.exp(log_field).astype(np.float32)
