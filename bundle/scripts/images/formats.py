"""Which files hold an image, by their names, and which of them a model takes, by its modalities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

NIFTI = (".nii.gz", ".nii")
VOLUMES = (*NIFTI, ".nrrd", ".mha", ".mhd", ".mgz")
"""Files of a volume with its orientation."""
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Files of a picture, which says nothing of the patient."""
LOSSY = (".jpg", ".jpeg")
"""Those whose pixels are not exactly what was saved."""
DICOM = (".dcm", ".dicom", ".ima")
"""DICOM files are also those without an ending, or with a number as one, that begin as the standard says."""
OTHERS = (".mgh", ".nhdr", ".img", ".hdr", ".mnc", ".npy", ".npz", ".bmp", ".gif", ".webp")
"""Files of images that no model takes."""

VOLUMETRIC = ("MR", "CT", "PT", "NM")
"""Modalities (DICOM's words) whose images are volumes; those of all others are single pictures, such as radiographs."""


def takes_volumes(modalities: Sequence[str]) -> bool:
    """Whether a model of these modalities works on volumes."""
    return any(modality in VOLUMETRIC for modality in modalities)


def takes_pictures(modalities: Sequence[str]) -> bool:
    """Whether a model of these modalities works on single pictures, such as radiographs."""
    return any(modality not in VOLUMETRIC for modality in modalities)


def allowed_formats(modalities: Sequence[str]) -> str:
    """The formats that a model of these modalities takes, in words."""
    formats = [f"NIfTI, NRRD, MetaImage and MGZ ({', '.join(VOLUMES)})"]
    if takes_volumes(modalities):
        formats.append("a folder with one series of DICOM images")
    if takes_pictures(modalities):
        formats.append(f"DICOM images ({', '.join(DICOM)}) of the modalities {', '.join(modalities)}")
        formats.append(f"pictures ({', '.join(PICTURES)})")
    return "; ".join(formats)


def stem(path: str) -> str:
    """A path without the suffix of its format, in whatever case that is written."""
    suffix = next((s for s in (*VOLUMES, *PICTURES, *DICOM) if path.lower().endswith(s)), "")
    return path[: len(path) - len(suffix)]


def is_picture(path: str) -> bool:
    """Whether a file is a picture, by its name."""
    return path.lower().endswith(PICTURES)


def is_dicom(path: str | Path) -> bool:
    """Whether a file is a DICOM file, by its name, or where that says nothing by its beginning."""
    path = Path(path)
    if path.suffix.lower() in DICOM:
        return True
    if path.name == "DICOMDIR" or not (path.suffix == "" or path.suffix[1:].isdigit()):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: str | Path) -> list[Path]:
    """The DICOM files that lie in a folder, not deeper and not hidden, by name."""
    return sorted(p for p in Path(folder).iterdir() if p.name[0] != "." and p.is_file() and is_dicom(p))
