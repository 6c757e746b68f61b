"""One evaluated slice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import DISEASED, HEALTHY

Array = NDArray[Any]


Domain = Literal["foreground", "image"]


@dataclass(eq=False)
class SliceCase:
    """One evaluated slice. Arrays are ``(H, W)``, axes to the left and to posterior, as preprocessing leaves them.

    Args:
        subject: the patient; the unit of the bootstrap.
        slice: its number in the input file.
        image: the normalised image, for display.
        foreground: bool.
        truth: bool, the known lesion, nothing in a healthy slice; None in a diseased slice without a mask.
        diseased: the image-level label, 0 or 1.
        maps: an anomaly map for each method, finite float32, higher is more anomalous.
        scores: an image-level score for each method, higher is more anomalous.
        counterfactual: on the image's intensity scale, for display.
        volume: that it is a slice of; by default the subject's only one.
        parts: uint8, the values of a mask, see `parts.parts_of`; None where they are no parts, or there is no mask.
        voxel_ml: of a pixel, as deep as the volume's slices are apart; None of a picture, and where the judged slices don't
            show how large a lesion is, see `lesions.cut`.
        boxes: around the lesions, int ``(N, 4)``: first row and column, and those behind the last; None where not known.

    Raises:
        ValueError: shapes differ, the foreground is empty, the label is neither 0 nor 1, or is 0 though there is a lesion.
    """

    subject: str
    slice: int
    image: Array
    foreground: Array
    truth: Array | None
    diseased: int
    maps: dict[str, Array] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    counterfactual: Array | None = None
    volume: str = ""
    boxes: Array | None = None
    parts: Array | None = None
    voxel_ml: float | None = None

    def __post_init__(self) -> None:
        self.volume = self.volume or self.subject
        self.foreground = np.asarray(self.foreground, bool)
        if self.truth is not None:
            self.truth = np.asarray(self.truth, bool)
        arrays = {
            "foreground": self.foreground,
            "truth": self.truth,
            "counterfactual": self.counterfactual,
            "parts": self.parts,
            **self.maps,
        }
        for name, array in arrays.items():
            if array is not None and np.shape(array) != np.shape(self.image):
                raise ValueError(f"{self}: {name} has shape {np.shape(array)}, the image {np.shape(self.image)}.")
        if not self.foreground.any():
            raise ValueError(f"{self}: its foreground is empty; leave such slices out.")
        if self.diseased not in (HEALTHY, DISEASED):
            raise ValueError(f"{self}: diseased must be {HEALTHY} or {DISEASED}, got {self.diseased!r}.")
        if self.diseased == HEALTHY:
            if self.truth is not None and self.truth.any():
                raise ValueError(f"{self}: is labelled healthy but has {self.truth.sum()} lesion pixels.")
            if self.boxes is not None and len(self.boxes):
                raise ValueError(f"{self}: is labelled healthy but has {len(self.boxes)} boxes.")

    def __str__(self) -> str:
        return f"{self.subject}, slice {self.slice}"

    def inside(self, domain: Domain) -> Array:
        """Bool ``(H, W)``: the pixels of the domain."""
        if domain not in ("foreground", "image"):
            raise ValueError(f"domain must be 'foreground' or 'image', got {domain!r}.")
        return self.foreground if domain == "foreground" else np.ones_like(self.foreground)

    def values(self, method: str, domain: Domain) -> Array:
        """The map's values, float32 ``(P,)``, within the domain."""
        if method not in self.maps:
            raise ValueError(f"{self}: has no map of method {method!r}; it has {', '.join(self.maps) or 'none'}.")
        values = np.asarray(self.maps[method], np.float32)[self.inside(domain)]
        if not np.isfinite(values).all():
            raise ValueError(f"{self}: the map of {method!r} holds NaN or infinity within the {domain}.")
        return values

    def lesion(self, domain: Domain) -> Array | None:
        """The truth, bool ``(P,)``, within the domain; None where it is not known."""
        return None if self.truth is None else self.truth[self.inside(domain)]

    def in_boxes(self) -> Array:
        """Bool ``(N, H, W)``: what lies in each of the boxes."""
        boxes = np.zeros((0, 4), int) if self.boxes is None else self.boxes
        rows, columns = np.ogrid[: self.foreground.shape[0], : self.foreground.shape[1]]
        top, left, bottom, right = np.moveaxis(boxes, 1, 0)[:, :, None, None]
        inside: Array = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        return inside
