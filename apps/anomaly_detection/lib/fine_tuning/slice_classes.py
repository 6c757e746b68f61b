"""The label of each slice of a study, from what its readers submitted."""

from __future__ import annotations

from typing import Any

from monai.data import MetaTensor

UNKNOWN = -1
"""A slice's label that `scripts.learning.datasets.SliceDataset` leaves out."""


def class_names() -> dict[int, str]:
    """The names of the bundle's classes, by the labels of slices."""
    from scripts import DISEASED, HEALTHY

    return {HEALTHY: "healthy", DISEASED: "diseased"}


def axial_volume(path: str) -> MetaTensor:
    """A file of a volume as ``(C, X, Y, Z)`` in the order left, posterior, superior, with ``input_affine`` in its meta.

    Args:
        path: of a 3D file, or of a 4D file that holds its channels last.

    Raises:
        ValueError: the file can't be read as such.
    """
    from scripts.errors import InvalidImageError
    from scripts.images.geometry import axial
    from scripts.images.volume_files import read_volume

    try:
        volume = read_volume(path)
    except InvalidImageError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path}: can't be read as an image ({reason[0] if reason else type(error).__name__})."
        ) from error
    shape = tuple(volume.voxels.shape)
    if len(shape) not in (3, 4):
        raise ValueError(f"{path}: has {len(shape)} dimensions {shape}; allowed are 3, or 4 with channels.")
    voxels = volume.voxels.reshape(*shape[:3], -1).movedim(-1, 0)
    meta = {"input_affine": volume.affine.clone(), "filename_or_obj": path}
    return axial(MetaTensor(voxels, affine=volume.affine, meta=meta))


def tag_labels(image: str, tag: Any) -> list[int]:
    """The label of each slice of an image from its ``image_label``: "healthy", or a list with 0, 1 or -1 for each slice.

    Args:
        image: path of the image.
        tag: its ``image_label``.

    Raises:
        ValueError: the image can't be read, or the tag doesn't give a label for each slice.
    """
    from scripts import DISEASED, HEALTHY

    depth = axial_volume(image).shape[-1]
    if tag == "healthy":
        return [HEALTHY] * depth
    if isinstance(tag, list) and len(tag) == depth and all(label in (HEALTHY, DISEASED, UNKNOWN) for label in tag):
        return [int(label) for label in tag]
    if tag == "diseased":
        raise ValueError(f'{image}: "diseased" doesn\'t say which slices are; submit a mask, or give 0 or 1 a slice.')
    raise ValueError(
        f'{image}: image_label must be "healthy" or a list with 0, 1 or -1 for each of its {depth} slices, got {tag!r:.60}.'
    )
