"""How large an image gets in memory: by its header, before its voxels are read. A few KiB may unpack to many GiB."""

from __future__ import annotations

import bz2
import gzip
import math
import zlib
from pathlib import Path
from typing import IO, Any

import nibabel as nib

FLOAT32, WIDEST = 4, 16
"""Bytes of a voxel as it is computed with, and in the widest type of a file."""
LARGEST_MIB = 512
"""Of a request, and of a volume in it as float32; ``max_upload_mb`` sets another."""
_NIFTI_2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
largest = {"voxels": LARGEST_MIB * 2**20 // FLOAT32}
"""That a client's upload may hold, see `set_largest`."""


def set_largest(mib: float) -> None:
    """Let uploads hold as many voxels as fit into so many MiB as float32."""
    largest["voxels"] = int(mib * 2**20) // FLOAT32


def shape_of(path: str | Path) -> tuple[int, ...]:
    """The shape in a file's header, all its dimensions; () where the file or its format is not understood."""
    name = str(path).lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            return _nifti_shape(Path(path))
        if name.endswith((".mgz", ".mgh")):
            return tuple(map(int, nib.load(path).shape))
        if name.endswith((".nrrd", ".mha", ".mhd")):
            import SimpleITK

            reader = SimpleITK.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            components = reader.GetNumberOfComponents()
            return (*reader.GetSize(), *([components] if components > 1 else []))
        if name.endswith((".png", ".jpg", ".jpeg", ".tif", ".tiff")):
            from PIL import Image

            with Image.open(path) as picture:
                return picture.size
        import pydicom

        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        sides = ("Columns", "Rows", "NumberOfFrames", "SamplesPerPixel")
        return tuple(int(dataset.get(side) or 1) for side in sides)
    except Exception:  # whoever reads the voxels says what is wrong
        return ()


def _nifti_shape(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if head[:4] in _NIFTI_2 else nib.Nifti1Header
    header = kind(head[: kind.sizeof_hdr], check=False)
    return tuple(map(int, header.get_data_shape()))


def _packed(path: Path) -> IO[bytes] | None:
    """What is unpacked whole, whatever the header says: NIfTI not named as gzip, the data of NRRD."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nrrd")):
        return None
    file = path.open("rb")
    if name.endswith(".nrrd"):
        while file.readline(1 << 16).strip():
            pass
    place, begin = file.tell(), file.read(3)
    file.seek(place)
    unpack: Any = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}.get(begin[:2])
    if unpack is None:
        file.close()
        return None
    return unpack(file)


def check_size(path: str | Path, voxels: int) -> None:
    """See to it that a file holds no more voxels than so many.

    Raises:
        ValueError: it does.
    """
    shape = shape_of(path)
    too_large = math.prod(shape) > voxels
    try:
        packed = None if too_large else _packed(Path(path))
        if packed is not None:
            with packed:
                left = WIDEST * voxels + 2**16
                while left >= 0 and (part := packed.read(1 << 20)):
                    left -= len(part)
            too_large = left < 0
    except (OSError, EOFError, zlib.error):  # whoever reads the voxels says what is wrong
        return
    if too_large:
        raise ValueError(f"is too large once it is unpacked: its shape is {shape}, allowed are {voxels} voxels in all.")
