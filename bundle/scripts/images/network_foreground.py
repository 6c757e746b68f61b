"""What a segmentation network marks as the foreground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from scipy import ndimage
from skimage.morphology import convex_hull_image

from ..checks import check_number
from ..weights import weights_digest
from .foregrounds import Foregroundd
from .resampling import resized_in_plane


class ByNetworkd(Foregroundd):
    """What a segmentation network marks in each slice of the first channel, such as the lungs; see `Foregroundd`.

    The network gets slices ``(B, 1, *size)``, resampled to its size whatever their proportions, with their percentiles 1 and
    99 at -1 and 1. It gives logits, of one channel, or of two of which the second is foreground.

    Args:
        keys: the image; its first channel counts.
        network: with its weights, such as `weights.load_weights` gives it, on the device that it runs on.
        size: the network's input size, two whole numbers.
        threshold: probability from which on a pixel is foreground.
        parts: keep so many of a slice's largest connected parts, as there are two lungs; 0 keeps all.
        below: how far below what is marked each part is extended along the second axis, as a share of the length of all of it
            there. In a radiograph that is to the feet, as fluid hides the lowest part of a lung, of one or of both.
        convex_hull: then take the convex hull of each part, as ribs and vessels are no border of a lung.
        dilation: how far the foreground is then widened, as a part of the slice's longer side, so that what hides the border of
            an organ, as fluid does in the costophrenic angles, is foreground. It is no length in mm, as many radiographs don't
            say how large a pixel is, but all show about the same field.
        name: see `Foregroundd`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: torch.nn.Module,
        size: Sequence[int],
        threshold: float = 0.5,
        parts: int = 0,
        below: float = 0.0,
        convex_hull: bool = False,
        dilation: float = 0.0,
        name: str = "foreground",
    ) -> None:
        super().__init__(keys, name)
        check_number("threshold", threshold, 0, 1)
        check_number("parts", parts, 0, 100, whole=True)
        check_number("below", below, 0, 1)
        check_number("dilation", dilation, 0, 1)
        self.network = network.eval()
        self.weights = weights_digest(network)  # by which what was computed before is found again
        self.size = tuple(size)
        self.threshold = threshold
        self.parts = parts
        self.below = below
        self.convex_hull = convex_hull
        self.dilation = dilation

    def find(self, image: MetaTensor) -> torch.Tensor:
        x = resized_in_plane(image[:1], self.size).as_tensor()[0].movedim(-1, 0)[:, None].nan_to_num()
        low, high = (x.flatten(1).quantile(q, dim=1).view(-1, 1, 1, 1) for q in (0.01, 0.99))
        x = (2 * (x - low) / (high - low).clamp_min(1e-6) - 1).clamp(-1, 1)
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits = torch.cat([self.network(one[None].to(device)).float().cpu() for one in x])
        p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)[:, 1:2]
        p = F.interpolate(p, image.shape[1:3], mode="bilinear")
        mask = (p[:, 0] >= self.threshold).movedim(0, -1).numpy()
        for z in np.flatnonzero(mask.any(axis=(0, 1))):
            mask[..., z] = self._extended(mask[..., z], [float(s) for s in image.pixdim[:2]])
        return torch.from_numpy(mask)

    def _extended(self, marked: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """What is foreground where a slice is marked, bool ``(X, Y)``, not all false."""
        labels, number = ndimage.label(marked)
        sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:]
        parts = [labels == 1 + n for n in np.argsort(-sizes, kind="stable")[: self.parts or None]]
        rows = [np.flatnonzero(part.any(axis=0)) for part in parts]
        top, bottom = min(r[0] for r in rows), max(r[-1] for r in rows)
        lowest = min(bottom + round(self.below * (bottom + 1 - top)), marked.shape[1] - 1)
        extended = np.zeros_like(marked)
        for part, own in zip(parts, rows, strict=True):
            reaching = part.copy()
            for step in range(1, lowest + 1 - own[-1]):
                reaching[:, step:] |= part[:, :-step]
            extended |= convex_hull_image(reaching) if self.convex_hull else reaching
        if self.dilation > 0:
            reach_mm = self.dilation * max(n * s for n, s in zip(marked.shape, spacing, strict=True))
            extended = ndimage.distance_transform_edt(~extended, sampling=spacing) <= reach_mm
        return extended
