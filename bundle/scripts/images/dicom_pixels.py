"""What a DICOM image's pixels mean: decoded, with the modality's and the display's lookup tables."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixel_data_handlers.util import apply_windowing
from pydicom.uid import RLELossless

from ..errors import InvalidImageError

_PIXEL_MODULE = (
    "SOPClassUID SOPInstanceUID SamplesPerPixel Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation"
).split()


def read_dicom(path: str | Path) -> Dataset:
    """A DICOM file whose one frame has one value a pixel.

    Raises:
        InvalidImageError: it is no DICOM file, is broken, has no pixels, several frames, or colours, also by a palette.
    """
    try:
        dataset = pydicom.dcmread(path)
        has_pixels = "PixelData" in dataset and all(k in dataset for k in ("Rows", "Columns", "BitsAllocated"))
        frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    except InvalidDicomError as error:
        raise InvalidImageError(f"{path}: is not a DICOM file.") from error
    except Exception as error:
        raise InvalidImageError(
            f"{path}: can't be read as a DICOM file ({error or type(error).__name__}); is it complete?"
        ) from error
    if not has_pixels:
        raise InvalidImageError(f"{path}: is a DICOM object without pixels; give an image.")
    if frames > 1:
        raise InvalidImageError(f"{path}: holds {frames} frames; allowed are images of one frame each.")
    if samples != 1:
        raise InvalidImageError(f"{path}: is a colour picture; allowed is an image with one value a pixel.")
    shown = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if shown not in ("MONOCHROME1", "MONOCHROME2"):
        raise InvalidImageError(
            f"{path}: its pixels are {shown}, such as numbers of colours in a table; allowed are MONOCHROME1 and MONOCHROME2."
        )
    return dataset


def codes_in(value: str) -> set[str]:
    """The codes in an attribute such as Modality, in capitals; some files write them small, or several."""
    return set(re.split("[^A-Z0-9]+", value.upper()))


def stored_values(dataset: Dataset) -> np.ndarray:
    """The pixels as they are stored, integers ``(rows, columns)``, without what else lies in their unused bits.

    Decoded by pydicom, or where it lacks the decoder by ITK: JPEG, JPEG-LS, JPEG 2000 and RLE.

    Raises:
        InvalidImageError: the pixels end early, neither can decode them, or it is not known which bits they are.
    """
    name, syntax = dataset.filename, dataset.file_meta.get("TransferSyntaxUID")
    try:
        values: Any = dataset.pixel_array
    except (RuntimeError, AttributeError):  # no decoder
        try:
            values = _decoded_by_itk(dataset)
        except (RuntimeError, ValueError) as error:
            what = getattr(syntax, "name", None) or syntax or "no transfer syntax"
            raise InvalidImageError(
                f"{name}: its pixels can't be decoded ({what}); write it uncompressed, such as with `gdcmconv --raw`."
            ) from error
    except Exception as error:
        raise InvalidImageError(f"{name}: its pixels can't be read ({error}); is the file complete?") from error
    if values.shape != (dataset.Rows, dataset.Columns):
        raise InvalidImageError(f"{name}: its pixels have the shape {values.shape}; is the file complete?")
    # RLE keeps the bits as they are
    compressed = syntax is not None and syntax.is_compressed and syntax != RLELossless
    used, high = int(dataset.get("BitsStored") or dataset.BitsAllocated), dataset.get("HighBit")
    unused = 8 * values.dtype.itemsize - used
    if not compressed and high is not None and int(high) != used - 1:
        # a wrong number can't be told from values that lie in the upper bits, as they could in old files
        raise InvalidImageError(
            f"{name}: its HighBit is {high} and its BitsStored {used}, so it is not sure which bits are the values; allowed is "
            f"{used - 1}."
        )
    if not compressed and values.dtype.kind in "iu" and 0 < unused < 8 * values.dtype.itemsize:
        values = (values << unused) >> unused  # sign and overlays
    return values


def _decoded_by_itk(dataset: Dataset) -> np.ndarray:
    """Stored values: ITK gets the pixels alone, as it would invert MONOCHROME1 and rescale."""
    plain = Dataset()
    for keyword in _PIXEL_MODULE:
        if keyword in dataset:
            plain[keyword] = dataset[keyword]
    plain.PhotometricInterpretation = "MONOCHROME2"
    plain["PixelData"] = dataset["PixelData"]
    plain.file_meta = dataset.file_meta
    plain.is_little_endian, plain.is_implicit_VR = dataset.is_little_endian, dataset.is_implicit_VR
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.dcm")
        plain.save_as(path, write_like_original=False)
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).reshape(dataset.Rows, dataset.Columns)


def modality_values(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Stored values in the modality's own unit: after the Modality LUT, or rescaled (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored, dataset.ModalityLUTSequence[0])
    slope, intercept = (dataset.get(k) for k in ("RescaleSlope", "RescaleIntercept"))
    return stored if slope is None and intercept is None else stored * float(slope or 1) + float(intercept or 0)


def display_values(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """The modality's values as the file wants them shown: after its first VOI LUT, or else its first window (C.11.2)."""
    if dataset.get("VOILUTSequence"):
        return _looked_up(values, dataset.VOILUTSequence[0])
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return values
    if "VOILUTFunction" in dataset and not dataset.VOILUTFunction:
        del dataset.VOILUTFunction  # pydicom takes one that is missing for LINEAR, and no empty one
    return apply_windowing(values, dataset)


def _looked_up(values: np.ndarray, table: Dataset) -> np.ndarray:
    """Values through a lookup table; pydicom 2's own wraps in long tables of 8 bits."""
    length, first, _ = (int(v) for v in table.LUTDescriptor)
    length = length or 1 << 16
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * length else "<u2")
    entries = np.asarray(data)[:length]
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)]
