"""The field of a coil, taken out of an image."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import downscale_local_mean

from .polynomials import Polynomials

Array = NDArray[Any]

PATTERN: dict[str, Any] = json.loads(Path(__file__).with_name("flair_pattern.json").read_text())
"""How bright normal FLAIR brains are by nature, ``coefficients`` of `polynomials.Polynomials` for the logarithm; which
``volumes`` it was taken from, and the ``span`` of their fields. ``benchmarks/flair_pattern.py`` writes it."""


class CorrectFieldd(MapTransform, ABC):
    """Divide by the field of the coil, and keep it as ``bias_field``.

    A subclass says in `find` what the field of a channel is. It is scaled to a median of 1 within the brain. Its *span* is
    the ratio of its 95th to its 5th percentile there.

    Args:
        keys: images on the networks' grid.
        mask_key: the foreground's coverage in [0, 1].
        min_span: a field that spans less is left in.
        warned_span: from this span on the reader is warned.

    ``bias_field`` is ``(C, H, W, D)``, 1 where nothing was corrected; an image times it is the image before.
    """

    def __init__(self, keys: KeysCollection, mask_key: str, min_span: float, warned_span: float) -> None:
        super().__init__(keys)
        self.mask_key = mask_key
        self.min_span = min_span
        self.warned_span = warned_span

    @abstractmethod
    def find(self, x: Array, brain: Array, pixdim: Sequence[float]) -> Array | None:
        """The field ``(H, W, D)`` of a channel, float32 above 0 on any scale, or None where it can't be known.

        Args:
            x: ``(H, W, D)``.
            brain: bool ``(H, W, D)``, where there is a signal.
            pixdim: in mm.
        """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        brain = d[self.mask_key].as_tensor()[0].numpy() >= 0.5
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            fields = np.ones(image.shape, np.float32)
            for field, x in zip(fields, image.as_tensor().numpy(), strict=True):
                found = self.find(x, brain & (x > 0), image.pixdim.tolist())
                if found is None:
                    continue
                low, high = np.percentile(found[brain], [5, 95])
                if high < self.min_span * low:
                    continue
                field[brain] = found[brain] / np.median(found[brain])
                if high > self.warned_span * low:
                    d.setdefault("warnings", []).append(
                        f"The brain is shaded {high / low:.1f}-fold from its dark to its bright side, as by a surface coil. "
                        "This was corrected before the analysis."
                    )
            d["bias_field"] = MetaTensor(torch.from_numpy(fields), affine=image.affine)
            d[key] = image / d["bias_field"].as_tensor()
        return d


class FittedFieldd(CorrectFieldd):
    """The field of FLAIR: a polynomial of third degree, fitted to normal tissue.

    The logarithm of the field is a sum of Legendre polynomials over the brain, as in Styner et al. 2000. It is fitted to
    the logarithms of intensities on a coarse grid, less the `PATTERN` that brains have by nature. Lesions must not be taken
    for the field, so the fit is robust. A voxel's weight is a Gaussian of its residual. One that is brighter counts as
    `BRIGHTER` times as far away. The Gaussian's width falls from the first of `WIDTHS` to the second, and terms of
    first, second and third degree enter one after another, so that the fit settles on the tissue that most of the brain is of.

    Every image is corrected. Of the field of two surface coils, 1.5 over the brain, on fifteen validation volumes, it leaves a
    span of 1.02 of 1.39 (medians), where N4 leaves 1.12. ``docs/notebook.md`` has more. A lesion that takes much of the brain
    is taken for the field in part.

    Args:
        keys, mask_key, warned_span: see `CorrectFieldd`.
        grid: in mm.
    """

    WIDTHS = (0.2, 0.08)
    """Of the logarithm of intensities, when the fit begins and at its end."""
    BRIGHTER = 1.5
    RIDGE = 0.003
    """Of each coefficient, as a part of what the data would weigh if every voxel counted fully."""
    STEPS = 40

    def __init__(
        self, keys: KeysCollection, mask_key: str = "foreground", warned_span: float = 2.0, grid: float = 7.0
    ) -> None:
        super().__init__(keys, mask_key, 1.0, warned_span)
        self.grid = grid

    def find(self, x: Array, brain: Array, pixdim: Sequence[float]) -> Array | None:
        """See `CorrectFieldd`."""
        found = self.coefficients(x, brain, pixdim, np.array(PATTERN["coefficients"]), self.RIDGE)
        if found is None:
            return None
        # of no use outside the brain, where polynomials may be huge
        logs = np.where(brain, Polynomials.over(brain).sum(found, brain.shape), 0)
        field: Array = np.exp(logs).astype(np.float32)
        return field

    def coefficients(
        self, x: Array, brain: Array, pixdim: Sequence[float], pattern: Array, ridge: float
    ) -> Array | None:
        """Of the logarithm of the field, as `Polynomials` orders them; see `find`."""
        factors = [max(1, min(round(self.grid / p), n)) for p, n in zip(pixdim, x.shape, strict=True)]
        chosen = _means(brain.astype(np.float32), factors) > 0.9
        if np.count_nonzero(chosen) < 100:
            return None
        polynomials = Polynomials.over(brain)
        terms = polynomials.at(np.argwhere(chosen) * factors + (np.array(factors) - 1) / 2)
        logs = np.log(_means(x, factors)[chosen]) - terms @ pattern
        terms = np.column_stack([np.ones(len(terms)), terms])
        # of one slice, terms of its place are 0 everywhere
        held = ridge * len(logs) * np.diag([0.0, *np.maximum((terms[:, 1:] ** 2).mean(axis=0), 1e-6)])
        b = np.zeros(terms.shape[1])
        b[0] = _mode(logs)
        degrees = np.array([0, *polynomials.degrees])
        for step in range(self.STEPS):
            done = step / self.STEPS
            first, last = self.WIDTHS
            width = max(last, first * (last / first) ** (done / 0.6))
            used = degrees <= (1 if done <= 0.2 else 2 if done <= 0.4 else 3)
            rest = logs - terms @ b
            weights = np.exp(-0.5 * (np.where(rest > 0, self.BRIGHTER * rest, rest) / width) ** 2)
            weighted = terms[:, used].T * weights
            b[used] = np.linalg.solve(weighted @ terms[:, used] + held[np.ix_(used, used)], weighted @ logs)
        return b[1:]


class N4Fieldd(CorrectFieldd):
    """The field of any sequence, by N4 (Tustison et al. 2010) in SimpleITK on a coarse grid.

    In scans as they come from a scanner it spans 1.0 to 1.35 (48 volumes of TCGA-LGG and BraTS), part of it
    taken from large lesions, and the networks were trained with it: those are left as they are.

    Args:
        keys, mask_key, min_span: see `CorrectFieldd`; the reader is warned of all that is corrected.
        grid: in mm, of the grid on which the field is estimated.
    """

    def __init__(
        self, keys: KeysCollection, mask_key: str = "foreground", min_span: float = 1.6, grid: float = 7.0
    ) -> None:
        super().__init__(keys, mask_key, min_span, min_span)
        self.grid = grid

    def find(self, x: Array, brain: Array, pixdim: Sequence[float]) -> Array | None:
        """See `CorrectFieldd`."""

        def volume(array: np.ndarray) -> sitk.Image:
            out = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
            out.SetSpacing([float(p) for p in pixdim])
            return out

        image = volume(x)
        # N4's splines need more than three points an axis
        factors = [max(1, min(round(self.grid / p), n // 4)) for p, n in zip(pixdim, x.shape, strict=True)]
        small = sitk.BinShrink(image, factors)
        mask = sitk.Cast(sitk.BinShrink(volume(brain.astype(np.float32)), factors) > 0.9, sitk.sitkUInt8)
        if np.count_nonzero(sitk.GetArrayViewFromImage(mask)) < 100 or min(small.GetSize()) < 2:
            return None
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations([50, 20])
        n4.SetConvergenceThreshold(1e-3)
        n4.Execute(small, mask)
        log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
        return np.exp(log_field).astype(np.float32)


def _means(values: Array, factors: Sequence[int]) -> Array:
    """Of blocks of so many voxels an axis; a rest at the end of an axis is left out."""
    sizes = [n // f * f for n, f in zip(values.shape, factors, strict=True)]
    means: Array = downscale_local_mean(values[tuple(map(slice, sizes))], tuple(factors))
    return means


def _mode(logs: Array) -> float:
    """The commonest of values, sought within 1 of their median, to about 0.06."""
    middle = float(np.median(logs))
    counts, edges = np.histogram(logs, 200, (middle - 1, middle + 1))
    highest = int(ndimage.gaussian_filter1d(counts.astype(float), 6).argmax())
    return float(edges[highest : highest + 2].mean())
