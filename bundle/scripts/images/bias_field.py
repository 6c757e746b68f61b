"""The field of a coil, taken out where it is strong."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - as its own documents call it
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform


class CorrectFieldd(MapTransform):
    """Divide by the field of the coil where it shades the brain strongly, and keep it as ``bias_field``.

    The field comes from N4 (Tustison et al. 2010) in SimpleITK on a coarse grid within the brain. In scans as they come from
    a scanner it spans 1.0 to 1.35 (95th to 5th percentile within the brain, 48 volumes of TCGA-LGG and BraTS), part of it
    taken from large lesions, and the networks were trained with it: those are left as they are.

    Args:
        keys: images on the networks' grid.
        mask_key: the foreground's coverage in [0, 1].
        min_span: from this ratio of the 95th to the 5th percentile of the field on it is corrected.
        grid: in mm, of the grid on which the field is estimated.

    ``bias_field`` is ``(C, H, W, D)``, 1 everywhere where nothing was corrected; an image times it is the image before.
    """

    def __init__(
        self, keys: KeysCollection, mask_key: str = "foreground", min_span: float = 1.6, grid: float = 7.0
    ) -> None:
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
