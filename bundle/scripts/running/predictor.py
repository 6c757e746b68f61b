"""The bundle from Python: a path or an array in, a typed result out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import parsed
from ..command import check_option
from ..errors import InvalidImageError, cause_of
from ..method.slices import each
from ..weights import digests_of, in_use, not_together
from .array_input import save_array
from .records import measured


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one image; all arrays lie on its grid. Not for clinical use."""

    affine: NDArray[np.float64]
    """``(4, 4)``, of voxels to mm to the right, anterior and superior, as in NIfTI."""
    mask: NDArray[np.uint8]
    """``(X, Y, Z)``: 1 lesion, 2 not assessed, 0 all else."""
    anomaly_map: NDArray[np.float32]
    """``(X, Y, Z)``, 0 or more, NaN where not assessed."""
    counterfactual: NDArray[np.float32] | None
    """The healthy counterpart ``(C, X, Y, Z)`` in the input's intensities; None where an inferer of one's own gives none."""
    slices: list[dict[str, Any]]
    """For each slice ``slice`` (its number in the input), ``assessed``, ``score`` and ``p_diseased``."""
    warnings: list[str]
    """Sentences for whoever reads the result."""
    score: float | None
    """The highest of the slices; None if none was assessed."""
    p_diseased: float | None
    """Likewise the classifier's probability."""
    lesion_ml: float | None
    """None of a picture, which has no thickness."""
    not_assessed_ml: float | None


class Predictor:
    """A model with its networks loaded, called with one image after the other.

    Args:
        overlays: names of configs that go over ``configs/inference.json``, in their order, such as "preview".
        overrides: values of ids, as on the command line, such as ``device="cpu"`` or
            ``{"displayable_configs#threshold": 0.4}``.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: there is no such option, or its value is out of its range.
    """

    def __init__(self, *overlays: str, **overrides: Any) -> None:
        config = parsed(*overlays)
        for name, value in overrides.items():
            check_option(name, value, config.get())
        config.update({"inferer#progress": False, **overrides})
        names = ("device", "network", "preprocessing", "inferer", "postprocessing")
        try:
            self.device, self.network, self.preprocessing, self.inferer, self.postprocessing = (
                config.get_parsed_content(name) for name in names
            )
            networks = {name: config.get_parsed_content(name) for name in ("network", "classifier", "student")}
            manifest = config.get_parsed_content("manifest")
            parts = ("displayable_configs", "report#other_settings")
            settings = in_use(*(config.get_parsed_content(name) for name in parts))
        except RuntimeError as error:  # MONAI's, around what a component raises
            raise cause_of(error) from error
        self._warnings = not_together(manifest, digests_of(networks), settings) if manifest else []

    def __call__(
        self, image: str | Path | Sequence[str | Path] | NDArray[Any], affine: NDArray[Any] | None = None
    ) -> Prediction:
        """What is found in an image.

        Args:
            image: a path, one path a channel, or an array ``(X, Y, Z)`` or ``(X, Y, Z, C)``.
            affine: of an array, ``(4, 4)`` in mm as in NIfTI.

        Raises:
            InvalidImageError: the image, or the affine of an array, can't be used; the message says why.
            TypeError: neither a path nor an array; an array without an affine, or a path with one.
        """
        if not isinstance(image, np.ndarray):
            paths = list(image) if isinstance(image, (list, tuple)) else [image]
            if not paths or not all(isinstance(path, (str, Path)) for path in paths):
                kinds = ", ".join(type(path).__name__ for path in paths) or "nothing"
                raise TypeError(f"image must be a path, a list of paths or a NumPy array, got {kinds}.")
        if isinstance(image, np.ndarray) != (affine is not None):
            raise TypeError("an array needs its affine, and a file has its own.")
        if not isinstance(image, np.ndarray):
            names = [str(path) for path in paths]
            return self._predict(names if isinstance(image, (list, tuple)) else names[0])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "array.nii")
            save_array(image, affine, path)
            try:
                return self._predict(str(path))
            except InvalidImageError as error:
                raise InvalidImageError(str(error).replace(str(path), "the array")) from error

    def _predict(self, image: str | list[str]) -> Prediction:
        try:
            data = self.preprocessing({"image": image})
        except RuntimeError as error:  # MONAI's, around what a transform raises
            raise cause_of(error) from error
        inputs, foreground = (data[key].as_tensor()[None].to(self.device) for key in ("image", "foreground"))
        data["pred"] = each(self.inferer(inputs, self.network, foreground), lambda values: values[0].cpu())
        result = self.postprocessing(data)
        found = measured(result)

        def array(key: str) -> NDArray[Any]:
            values: NDArray[Any] = result[key].as_tensor().numpy()
            return values

        return Prediction(
            affine=result["pred"].affine.numpy(),
            mask=array("pred")[0],
            anomaly_map=array("anomaly_map")[0],
            counterfactual=array("counterfactual") if "counterfactual" in result else None,
            slices=result["slices"],
            warnings=[*self._warnings, *data["warnings"]],
            **{key: found.get(key) for key in ("score", "p_diseased", "lesion_ml", "not_assessed_ml")},
        )
