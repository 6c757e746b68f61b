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
        truth: bool, the radiologist's lesion mask.
        diseased: the image-level label, 0 or 1.
        maps: an anomaly map for each method, finite float32, higher is more anomalous.
        scores: an image-level score for each method, higher is more anomalous.
        counterfactual: on the image's intensity scale, for display.

    Raises:
        ValueError: shapes differ, the foreground is empty, the label is neither 0 nor 1, or is 0 though there is a lesion.
    """

    subject: str
    slice: int
    image: Array
    foreground: Array
    truth: Array
    diseased: int
    maps: dict[str, Array] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    counterfactual: Array | None = None

    def __post_init__(self) -> None:
        self.foreground, self.truth = np.asarray(self.foreground, bool), np.asarray(self.truth, bool)
        arrays = {
            "foreground": self.foreground,
            "truth": self.truth,
            "counterfactual": self.counterfactual,
            **self.maps,
        }
        for name, array in arrays.items():
            if array is not None and np.shape(array) != np.shape(self.image):
                raise ValueError(f"{self}: {name} has shape {np.shape(array)}, the image {np.shape(self.image)}.")
        if not self.foreground.any():
            raise ValueError(f"{self}: its foreground is empty; leave such slices out.")
        if self.diseased not in (HEALTHY, DISEASED):
            raise ValueError(f"{self}: diseased must be {HEALTHY} or {DISEASED}, got {self.diseased!r}.")
        if self.diseased == HEALTHY and self.truth.any():
            raise ValueError(f"{self}: is labelled healthy but has {self.truth.sum()} lesion pixels.")

    def __str__(self) -> str:
        return f"{self.subject}, slice {self.slice}"

    def inside(self, domain: Domain) -> Array:
        """Bool ``(H, W)``: the pixels of the domain."""
        if domain not in ("foreground", "image"):
            raise ValueError(f"domain must be 'foreground' or 'image', got {domain!r}.")
        return self.foreground if domain == "foreground" else np.ones_like(self.foreground)

    def pixels(self, method: str, domain: Domain) -> tuple[Array, Array]:
        """The map's values, float32 ``(P,)``, and the truth, bool ``(P,)``, within the domain."""
        if method not in self.maps:
            raise ValueError(f"{self}: has no map of method {method!r}; it has {', '.join(self.maps) or 'none'}.")
        inside = self.inside(domain)
        values = np.asarray(self.maps[method], np.float32)[inside]
        if not np.isfinite(values).all():
            raise ValueError(f"{self}: the map of {method!r} holds NaN or infinity within the {domain}.")
        return values, self.truth[inside]
