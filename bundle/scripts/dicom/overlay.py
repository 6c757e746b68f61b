"""A result over its radiograph, as a picture that every viewer shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pydicom
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from ..images.radiographs import read_radiograph
from ..images.restoring import COLOURS
from .describing import NUMBERS, SHORT_TEXT, dated, described, new_series
from .placing import on_images

_SOURCE = Code("121322", "DCM", "Source Image for Image Processing Operation")
_LINES = 400
"""An outline is one pixel thick for so many pixels of the picture's longer side."""


def overlay(
    images: Sequence[pydicom.Dataset],
    mask: NDArray[np.uint8],
    affine: NDArray[np.floating],
    *,
    version: str,
    score: float | None,
    warnings: Sequence[str] = (),
    options: str = "",
) -> SCImage:
    """A radiograph with the outlines of a mask drawn into it, as a colour Secondary Capture in a series of its own.

    A Segmentation of a radiograph has no place in space, only a reference to the image, and many viewers don't draw such a
    one. This picture is for eyes; the Segmentation is for software. It has as many pixels as the radiograph, shown as its
    file wants it shown; `COLOURS` are those of the outlines. That it is research software's is written into it. The Modality
    is OT, as with the radiograph's own a server's worklist would hold it.

    Args:
        images: the one radiograph, as `read_images` gives it.
        mask: ``(X, Y, 1)``, 1 marked, 2 not assessed, else 0, on the radiograph's pixels.
        affine: ``(4, 4)`` from the mask's indices to mm, RAS.
        version: of the software.
        score: of the radiograph, 0 or more; None where it was not assessed.
        warnings: the description then begins with CHECK, and its text is the Derivation Description.
        options: other ones than the default, short.

    Raises:
        ValueError: the mask doesn't lie on the radiograph's pixels.

    Source: PS3.3 A.8.1 (Secondary Capture Image IOD), C.7.6.1.1.4 (Source Image).
    """
    source = images[0]
    labels = on_images(images, np.asarray(mask), affine)[0]
    description = described("overlay", images, score, warnings, options)
    spacing = source.get("PixelSpacing")
    dataset = SCImage.from_ref_dataset(
        source,
        pixel_array=_drawn(_shown(str(source.filename)), labels, score, bool(warnings)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        pixel_spacing=tuple(map(float, spacing)) if spacing else None,
        series_description=description,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **new_series(NUMBERS["overlay"], version),
    )
    dataset.PatientOrientation = source.get("PatientOrientation")  # radiographs may have none, and highdicom wants one
    for keyword in ("BodyPartExamined", "Laterality"):
        if source.get(keyword):
            setattr(dataset, keyword, source[keyword].value)
    dataset.BurnedInAnnotation = source.get("BurnedInAnnotation") or "NO"
    dataset.DerivationDescription = " ".join([f"{description}.", *warnings])[:SHORT_TEXT]
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(_SOURCE)]
    dataset.SourceImageSequence = [reference]
    return dated(dataset)


def _shown(path: str) -> NDArray[np.uint8]:
    """A radiograph's grey ``(rows, columns)``, but for a spike in its whole range."""
    values = read_radiograph(path, ()).voxels[:, :, 0].T.numpy()
    low, high = np.percentile(values, [0.5, 99.5])
    return np.rint((values - low).clip(0, high - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def _drawn(grey: NDArray[np.uint8], labels: NDArray[np.uint8], score: float | None, warned: bool) -> NDArray[np.uint8]:
    """Colours ``(rows, columns, 3)``: the outlines lie within what they enclose, so that they cover nothing outside."""
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    width = max(1, round(max(grey.shape) / _LINES))
    for label, colour in COLOURS.items():
        inside = labels == label
        picture[inside & ~ndimage.binary_erosion(inside, iterations=width)] = colour
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    value = "not assessed" if score is None else f"score {score:.3f}"
    text = f"AI {value}{', CHECK' if warned else ''}. Research software, not for clinical use"
    font = ImageFont.load_default(size=max(8, min(grey.shape[0] // 40, grey.shape[1] // 32)))
    draw.rectangle(draw.textbbox((0, 0), text, font=font), fill="black")
    draw.text((0, 0), text, fill="white", font=font)
    return np.asarray(image)
