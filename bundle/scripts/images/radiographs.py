"""A one-slice volume from a DICOM radiograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydicom.dataset import Dataset

from ..errors import InvalidImageError
from .dicom_pixels import codes_in, display_values, modality_values, read_dicom, stored_values
from .pictures import picture_affine
from .volume_files import Loaded

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_VIEW_CODES = {"postero-anterior": "PA", "posteroanterior": "PA", "antero-posterior": "AP", "anteroposterior": "AP"}


def read_radiograph(
    path: str,
    modalities: Sequence[str],
    body_parts: Sequence[str] = (),
    views: Sequence[str] = (),
    allow_any_image: bool = False,
    doubtful_views: Mapping[str, str] | None = None,
) -> Loaded:
    """A radiograph ``(X, Y, 1)`` as a viewer shows it: bright where little passed, as its VOI LUT or window wants it.

    The Modality LUT or rescale comes first, then the first VOI LUT or else the first window, then MONOCHROME1 is turned.
    Padding is as dark as the darkest pixel. Pixel Intensity Relationship changes nothing.

    The size of a pixel is Pixel Spacing, else Imager Pixel Spacing, which is that at the detector: in the patient a pixel is
    some 5 to 15 % smaller. X goes to the patient's left unless Patient Orientation says otherwise, see `picture_affine`.

    Args:
        path: of the file.
        modalities: those allowed (0008,0060).
        body_parts: words, of which Body Part Examined holds one if it is there; none allows any.
        views: words, of which View Position holds one if it is there; none allows any. Where it is empty, the view code, or
            Patient Position (public sets misuse it so), is taken for it.
        allow_any_image: take another modality, body part or view, with a warning.
        doubtful_views: words likewise, of views that the model takes and does badly on, and why: a file of one gets a warning.

    Raises:
        InvalidImageError: several frames, colours, another modality, body part or view, pixels that are not square and have
            no size, or pixels that can't be decoded.

    Source: PS3.3 C.11.1, C.11.2 (lookup tables), C.7.6.3.1.2 (MONOCHROME1), 10.7.1.3 (pixel spacing), C.7.6.1.1.1 (Patient
    Orientation), C.8.11.1 (Presentation Intent Type).
    """
    dataset = read_dicom(path)
    warnings: list[str] = []
    aspect = [int(v) for v in np.atleast_1d(dataset.get("PixelAspectRatio") or (1, 1))]
    if _spacing(dataset) is None and aspect[0] != aspect[-1]:
        raise InvalidImageError(
            f"{path}: its pixels are not square (PixelAspectRatio {aspect[0]}:{aspect[-1]}), and their size is not known; "
            "resample it to square ones."
        )
    row, column = _directions(dataset)
    view, part = _view(dataset), str(dataset.get("BodyPartExamined") or "").upper()
    checks = [("modality", str(dataset.get("Modality") or "").upper(), modalities)]
    checks += [("body part", part, body_parts), ("view", view, views)]
    for what, value, allowed in checks:
        if not value or not allowed or codes_in(value) & set(allowed):
            continue
        if not allow_any_image:
            raise InvalidImageError(f"{path}: its {what} is {value}; the model takes {' or '.join(allowed)}.")
        warnings.append(f"The {what} is {value}, the model takes {' or '.join(allowed)}.")
    for word, why in (doubtful_views or {}).items():
        if word in codes_in(view):
            warnings.append(f"The view is {word}: {why}.")
    for what, value, allowed in checks[1:]:
        if allowed and not value:
            warnings.append(f"The file doesn't name its {what}; whether it is {' or '.join(allowed)} was not checked.")
    if (row, column) != ("L", "F"):
        warnings.append(
            "The file says that it lies turned or mirrored. The networks saw it upright, the patient's left on the right."
        )
    intent = f"{dataset.get('PresentationIntentType')} {getattr(dataset.get('SOPClassUID'), 'name', '')}"
    if "FOR PROCESSING" in intent.upper():
        warnings.append(
            "The file holds the detector's raw values (FOR PROCESSING), not an image for viewing. The result is probably wrong."
        )
    if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES":
        warnings.append("Text is burned into the pixels; the networks see it too.")
    voxels = np.ascontiguousarray(_shown(path, dataset).T[:, :, None], dtype=np.float32)
    has_size = _spacing(dataset) is not None
    return Loaded(torch.from_numpy(voxels), radiograph_affine(dataset), tuple(warnings), has_size=has_size)


def radiograph_affine(dataset: Dataset) -> torch.Tensor:
    """The affine ``(4, 4)``, RAS in mm, of a radiograph as `read_radiograph` gives it; see `picture_affine`."""
    return picture_affine(_spacing(dataset) or (1.0, 1.0), *_directions(dataset))


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """That of columns and of rows in mm; None where the file doesn't say it."""
    for keyword in _SPACINGS:
        values: Sequence[float] = np.atleast_1d(dataset[keyword].value) if dataset.get(keyword) else ()
        if len(values) == 2 and min(map(float, values)) > 0:
            return float(values[1]), float(values[0])
    return None


def _shown(path: str, dataset: Dataset) -> np.ndarray:
    stored = stored_values(dataset)
    try:
        values = display_values(dataset, modality_values(dataset, stored)).astype(np.float32)
    except Exception as error:
        raise InvalidImageError(f"{path}: its lookup tables or its window can't be used ({error}).") from error
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values
    if dataset.get("PixelPaddingValue") is not None:
        ends = [dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue)]
        padded = (stored >= min(ends)) & (stored <= max(ends))
        if not padded.all():
            values[padded] = values[~padded].min()
    return values


def _view(dataset: Dataset) -> str:
    """View Position in capitals, or what stands for it; "" if nothing does."""
    view = str(dataset.get("ViewPosition") or "").upper().strip()
    if not view and dataset.get("ViewCodeSequence"):
        meaning = str(dataset.ViewCodeSequence[0].get("CodeMeaning") or "").lower()
        view = next((short for words, short in _VIEW_CODES.items() if words in meaning), meaning.upper())
    if not view and str(dataset.get("PatientPosition") or "").upper() in ("AP", "PA", "LL", "RL", "LATERAL"):
        view = dataset.PatientPosition.upper()
    along = [str(letters)[:1] for letters in dataset.get("PatientOrientation") or ()]
    return view or ("LATERAL" if set(along) & {"A", "P"} else "")


def _directions(dataset: Dataset) -> tuple[str, str]:
    """Where rows and columns go by Patient Orientation; to the left and to the feet where it doesn't say or is lateral."""
    along = [str(letters)[:1].upper() for letters in dataset.get("PatientOrientation") or ()]
    if len(along) == 2 and set(along) & set("LR") and set(along) & set("FH"):
        return along[0], along[1]
    return "L", "F"
