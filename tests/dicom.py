"""DICOM images made by the tests: a radiograph, and a series of slices, each with what a test wants otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, MRImageStorage, generate_uid


def image(pixels: np.ndarray, **attributes: Any) -> Dataset:
    """A DX image of ``(rows, columns)``, 8 or 16 bits; `attributes` are added, or left out where None."""
    d = Dataset()
    d.SOPClassUID, d.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    d.StudyInstanceUID, d.SeriesInstanceUID = generate_uid(), generate_uid()
    d.Modality, d.ViewPosition, d.BodyPartExamined = "DX", "PA", "CHEST"
    d.Rows, d.Columns = pixels.shape[:2]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 8 * pixels.dtype.itemsize
    d.HighBit, d.PixelRepresentation = d.BitsStored - 1, int(pixels.dtype.kind == "i")
    d.PixelData = np.ascontiguousarray(pixels).tobytes()
    d["PixelData"].VR = "OW"
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.is_little_endian, d.is_implicit_VR = True, False
    for keyword, value in attributes.items():
        if value is None:
            delattr(d, keyword)
        else:
            setattr(d, keyword, value)
    return d


def save(dataset: Dataset, path: Path) -> str:
    """Write a dataset as a DICOM file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, write_like_original=False)
    return str(path)


def series(volume: np.ndarray, affine: np.ndarray, **attributes: Any) -> list[Dataset]:
    """MR images, one for each slice of ``(X, Y, Z)`` along its third axis; its affine has perpendicular axes, RAS."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    slices = []
    for k in range(volume.shape[2]):
        about = {"Modality": "MR", "SOPClassUID": MRImageStorage, "ViewPosition": None, "SeriesInstanceUID": uid}
        about |= {"StudyInstanceUID": study, "FrameOfReferenceUID": frame}
        about |= {"InstanceNumber": k + 1, "SeriesDescription": "t2_flair_tra"}
        about |= {"PixelSpacing": [float(spacing[1]), float(spacing[0])], "SliceThickness": float(spacing[2])}
        about |= {"ImageOrientationPatient": [float(v) for v in (lps[:3, :2] / spacing[:2]).T.ravel()]}
        about |= {"ImagePositionPatient": [round(float(v), 6) for v in lps[:3, 3] + k * lps[:3, 2]]}
        slices.append(image(volume[:, :, k].T, **{**about, **attributes}))
    return slices


def save_series(slices: list[Dataset], folder: Path) -> str:
    """Write them in an order that is not theirs; return the folder."""
    for k, dataset in enumerate(slices):
        save(dataset, folder / f"IM{(7 * k) % 1000:04d}.dcm")
    return str(folder)
