"""The studies: MONAI Label's datastores, made safe against bad names, half-written files and a DICOM server that goes away."""

from __future__ import annotations

import filecmp
import json
import logging
import mmap
import os
import re
import shutil
import tempfile
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
import torch
from filelock import FileLock
from highdicom.seg import Segmentation
from monai.transforms import LoadImage
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.datastore.utils.convert import binary_to_image, dicom_to_nifti
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset
from retrying import RetryError

from lib.dicom import check_on_series, parametric_map, read_series, segmentation, store

logger = logging.getLogger(__name__)

MAP_TAG, COUNTERFACTUAL_TAG = "anomaly_map", "counterfactual"
"""Label tags under which the float results of an image are kept, for clients that can show them."""
FINAL, ORIGINAL = DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value
SCORE = "anomaly_score"
"""Key in an image's info: the score that orders the worklist."""
READERS = ("MANUAL", "SEMIAUTOMATIC")
"""Segment Algorithm Types of what a reader drew or corrected."""
UID = re.compile(r"[0-9]+(\.[0-9]+)+")
FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
"""Of images and labels, in any case: one volume with its orientation."""
OTHER_FORMATS = (
    ".mgz",
    ".mgh",
    ".img",
    ".hdr",
    ".nhdr",
    ".mnc",
    ".dcm",
    ".npy",
    ".npz",
    ".jpg",
    ".jpeg",
    ".png",
    ".tif",
)
_ELSEWHERE = re.compile(rb"ElementDataFile\s*[=:](?!\s*LOCAL\s*\n)|\bdata ?file:", re.IGNORECASE)
STAMP = "stamp"
"""Key in a label's info: size and time of change (ns) of the file that was found to be whole."""
_FINAL_OF = "final-of-"
"""Begins the tag of a reader's label of a series that had other images then."""


def plain(name: str, what: str) -> str:
    """`name`, if it can be a file's name and nothing else.

    Raises:
        MONAILabelException: INVALID_INPUT, it holds a path.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\\x00-\x1f]{1,200}", name) or name.startswith("."):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"{what} {name!r} is not allowed: a name without slashes, not beginning with a dot.",
        )
    return name


@lru_cache(maxsize=1 << 16)
def named_as(name: str) -> tuple[str | None, str]:
    """The sequence that an image file is named as, and its name without that, the same for all sequences of a study.

    Where a file's name says nothing, its folder's does if that is one word: "FLAIR", "T1w", "labelsTr".

    Args:
        name: its path in the folder of the studies.
    """
    from scripts.images.sequences import RULES, sequence_of

    path = Path(name)
    stem = split_ending(path.name)[0]
    sequence = sequence_of(stem)
    if sequence:
        return sequence, str(path.parent / re.sub(f"(?:{RULES[sequence]})[a-z0-9]*", "", stem, flags=re.IGNORECASE))
    folder = path.parent.name
    # "lesion" may well be a folder of patients
    spoken = re.fullmatch("(?!lesion)[a-z0-9]+", folder, re.IGNORECASE)
    sequence = sequence_of(folder) if spoken else None
    return sequence, str(path.parent.parent / stem) if sequence else str(path.parent / stem)


def holds_itself(path: str | Path) -> None:
    """Refuse an upload whose header names another file for the voxels: it would be read from this server's disk.

    Raises:
        MONAILabelException: INVALID_INPUT, it does.
    """
    with open(path, "rb") as file:
        # the last two lines of the headers of MetaImage and NRRD files, but a reader may find them anywhere
        elsewhere = os.path.getsize(path) and _ELSEWHERE.search(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if elsewhere:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, "The voxels must be in the file itself; its header names another file."
        )


def split_ending(file: str) -> tuple[str, str]:
    """A file's name without and with only the ending of its format, "" if that is none of `FORMATS`."""
    end = next((len(e) for e in FORMATS if file.lower().endswith(e)), 0)
    return (file[:-end], file[-end:]) if end else (file, "")


def result_tag(tag: Any, model: str, is_original: bool) -> str:
    """The tag under which what a model gave is kept.

    Args:
        tag: that a request asked for; none is "original".
        model: its name, the tag of what is not the mask that readers correct.
        is_original: whether it is that mask.

    Raises:
        MONAILabelException: INVALID_INPUT, the tag holds a path, or what is kept under it is no model's mask.
    """
    tag = plain(tag or ORIGINAL, "label tag")
    if tag.casefold() in (FINAL, MAP_TAG, COUNTERFACTUAL_TAG):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"label_tag {tag!r} is not allowed for what a model gives: {FINAL!r} is the label of a reader, {MAP_TAG!r} and "
            f"{COUNTERFACTUAL_TAG!r} are kept beside the mask. Allowed are {ORIGINAL!r} (the default), {model!r}, other names.",
        )
    return model if tag == ORIGINAL and not is_original else tag


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The array ``(X, Y, Z)`` of an image file and its affine ``(4, 4)``, RAS."""
    image = LoadImage(image_only=True)(path)
    return image.numpy(), image.affine.numpy()


def grid_of(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape ``(X, Y, Z)`` and the affine ``(4, 4)``, RAS in mm, of an image file; of a NIfTI, its voxels are not read."""
    from scripts.images.geometry import load_nifti, millimetres

    if str(path).lower().endswith((".nii", ".nii.gz")):
        image = load_nifti(str(path))
        mm = millimetres(image.header)
        return image.shape[:3], np.diag([mm, mm, mm, 1.0]) @ image.affine
    array, affine = read_volume(path)
    return array.shape[:3], affine


def reordered(array: np.ndarray, affine: np.ndarray, target: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """The bundle's `reordered` of an array ``(X, Y, Z)``: in the order of another affine's axes, None on another grid."""
    from scripts.images.masks import reordered as reordered_tensor

    if not np.isfinite([affine, target]).all():
        return None
    array = np.ascontiguousarray(array)
    voxels = reordered_tensor(torch.from_numpy(array)[None], torch.tensor(affine), torch.tensor(target), shape)
    return None if voxels is None else voxels[0].numpy()


def checked_label(path: str | Path, image: str | Path, allowed: Sequence[int] | None = None) -> np.ndarray:
    """A label map's voxels in the order of its image's.

    Args:
        path: of the label map; its file may hold the voxels in another order of the axes.
        image: path of the image.
        allowed: values; None is 0 to 255.

    Returns:
        uint8 ``(X, Y, Z)``.

    Raises:
        ValueError: it can't be read, is not 3D, holds other values or lies on another grid; the message has no path.
    """
    if not str(path).lower().endswith(FORMATS):
        raise ValueError(
            f"must be a file of {', '.join(FORMATS)}, got {''.join(Path(path).suffixes) or 'no ending'!r}."
        )
    if not os.path.getsize(path):
        raise ValueError("is empty: 0 bytes.")
    try:
        array, affine = read_volume(path)[0], grid_of(path)[1]
    except Exception as error:
        raise ValueError("can't be read as an image.") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise ValueError(f"must be one 3D volume, has the shape {array.shape}.")
    values = np.unique(array)
    others = [v for v in values.tolist() if not (v in allowed if allowed else 0 <= v <= 255 and v == int(v))]
    if others:
        what = ", ".join(map(str, allowed)) if allowed else "whole numbers from 0 to 255"
        raise ValueError(f"holds the value {others[0]:g}; allowed are {what}.")
    try:
        shape, target = grid_of(image)
    except Exception as error:
        raise ValueError("has an image that can't be read, so that its grid is unknown.") from error
    result = reordered(array, affine, target, shape)
    if result is None:
        raise ValueError(
            f"lies on another grid than its image: its shape is {array.shape}, the image's {tuple(shape)}, "
            f"or their affines differ; save it on the image's grid."
        )
    return result.astype(np.uint8)


def _spoken(series: Mapping[str, Any] | Dataset) -> str | None:
    """The sequence that a series' description speaks of, or where it is empty its protocol's name."""
    from scripts.images.sequences import sequence_of

    return sequence_of(str(series.get("SeriesDescription") or series.get("ProtocolName") or ""))


def _instances(folder: Path) -> set[str]:
    """The SOPInstanceUIDs of the images in a folder; none where it is not there."""
    return {path.name.removesuffix(".dcm") for path in folder.glob("*.dcm")}


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _sync(path: Path) -> None:
    """Wait until a file is on the disk: what is renamed before may be empty after a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def predicted(series: Sequence[Dataset], mask: str, params: Mapping[str, Any]) -> Segmentation:
    """The mask in a file, as a model gave it for a series, as a DICOM Segmentation.

    Raises:
        MONAILabelException: INVALID_INPUT, it is no mask of lesions, or the series has other images by now.
    """
    array, affine = read_volume(mask)
    try:
        return segmentation(series, array.astype(np.uint8), affine, label="anomaly", **_said_of(params))
    except ValueError as error:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"No Segmentation can be made of this result: {error}"
        ) from error


def _said_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the descriptions of a result's DICOM objects are made of."""
    kept = {name: params[name] for name in ("score", "version")}
    return {**kept, "warnings": params.get("warnings", ()), "options": params.get("changed_options", "")}


def _exclusive(method: Callable[..., Any]) -> Callable[..., Any]:
    """Batch inference runs in a process of its own: read what it wrote before changing anything, one process at a time.

    Of a change that fails nothing stays.
    """

    @wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with FileLock(f"{self._datastore_config_path}.lock", is_singleton=True):
            self._init_from_datastore_file()
            try:
                return method(self, *args, **kwargs)
            except BaseException:
                self._version_read = None
                self._init_from_datastore_file()
                raise

    return locked


class _Studies(LocalDatastore):
    """What both kinds of studies share; see `LocalDatastore` for the rest.

    What is written is complete beside its place before it is renamed to it: a full disk or a kill leaves the old or the new.
    """

    sequence: str | None = None
    """What the model takes first; images that are named as another sequence are left out of the worklist."""
    version = ""
    """Of the software, for DICOM objects."""
    _version_read: tuple[int, int, int] | None = None
    """Of the file that says what is known of the studies."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._auto_reload:
            # the file is replaced, not written into, so watchers see it move
            self._handler.on_moved = lambda event: self._init_from_datastore_file()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        path = Path(self._datastore_config_path)
        try:
            with path.open(encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                version = status.st_ino, status.st_mtime_ns, status.st_size
                if version == self._version_read:
                    return
                datastore = LocalDatastoreModel.model_validate_json(file.read())
        except FileNotFoundError:
            return
        except ValueError as error:
            kept = path.with_name(f"{path.name}.{time.time_ns()}.broken")
            os.replace(path, kept)
            logger.error(
                "%s can't be read (%s). It is kept as %s; scores are gone until they are made again.", path, error, kept
            )
            return
        datastore.base_path = self._datastore_path
        self._datastore, self._version_read = datastore, version

    def _staged_info(self) -> Path:
        part = Path(f"{self._datastore_config_path}.part")
        content = self._datastore.model_dump(exclude={"base_path"})
        part.write_text(json.dumps(content, default=str), encoding="utf-8")
        _sync(part)
        return part

    def _publish_info(self, part: Path) -> None:
        status = part.stat()
        os.replace(part, self._datastore_config_path)
        self._version_read = status.st_ino, status.st_mtime_ns, status.st_size

    def _update_datastore_file(self, lock: bool = True) -> None:
        self._replace({}, lambda parts: None)

    def _replace(
        self, writers: Mapping[Path, Callable[[Path], Any]], change: Callable[[Mapping[Path, Path]], None]
    ) -> None:
        """Write files and change what is known of the studies: all of it, or nothing.

        Args:
            writers: what writes a file, by the file's place.
            change: changes what is known; it is given the places of the new files while they lie aside.

        Raises:
            MONAILabelException: SERVER_ERROR, the disk is full or can't be written to.
        """
        parts = {place: place.with_name(f".part.{place.name}") for place in writers}
        info = Path(f"{self._datastore_config_path}.part")
        try:
            for place, write in writers.items():
                place.parent.mkdir(parents=True, exist_ok=True)
                write(parts[place])
                _sync(parts[place])
            change(parts)
            self._staged_info()
            for place, part in parts.items():
                os.replace(part, place)
            self._publish_info(info)
        except OSError as error:
            raise MONAILabelException(
                MONAILabelError.SERVER_ERROR,
                f"The studies' disk can't be written to ({error.strerror or type(error).__name__}). Nothing was stored.",
            ) from error
        finally:
            for part in (*parts.values(), info):
                part.unlink(missing_ok=True)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        # among hidden files are what lies aside while it is written, and what macOS puts beside every file
        return {k: v for k, v in super()._list_files(path, patterns).items() if not k.startswith(".")}

    def _to_id(self, file: str) -> tuple[str, str]:
        return split_ending(file)

    def _file_of(self, image_id: str) -> Path:
        """Where an image's file is."""
        obj = self._datastore.objects.get(image_id)
        if obj is None:
            raise ImageNotFoundException(f"There is no image {image_id!r} among the studies.")
        return Path(self._datastore.image_path()) / (obj.image.info.get("name") or f"{image_id}{obj.image.ext}")

    @_exclusive
    def _reconcile_datastore(self) -> None:
        super()._reconcile_datastore()

    @_exclusive
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        name, ext = self._to_id(os.path.basename(image_filename))
        image_id = plain(image_id or name, "image id")
        holds_itself(image_filename)
        place = Path(self._datastore.image_path()) / f"{image_id}{ext}"
        info = {**(image_info or {}), "ts": int(time.time()), "name": place.name}

        def change(parts: Mapping[Path, Path]) -> None:
            self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=ext))

        self._replace({place: lambda part: shutil.copyfile(image_filename, part)}, change)
        return image_id

    @_exclusive
    def remove_image(self, image_id: str) -> None:
        super().remove_image(plain(image_id, "image id"))

    @_exclusive
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label: whole, on its image's grid, in the order of its voxels, or not at all.

        Raises:
            ImageNotFoundException: no such image.
            MONAILabelException: INVALID_INPUT, the label is not fit, see `checked_label`; SERVER_ERROR, the disk is full.
        """
        holds_itself(label_filename)
        self._keep(plain(image_id, "image id"), {plain(label_tag, "label tag"): (label_filename, label_info)}, {})
        return image_id

    def _keep(
        self, image_id: str, labels: Mapping[str, tuple[str, dict[str, Any]]], image_info: Mapping[str, Any]
    ) -> None:
        """Keep labels (a file and its info, by their tags) and something about their image: all of it, or nothing."""
        places = {tag: self._place(image_id, tag, file) for tag, (file, _) in labels.items()}
        writers = {places[tag]: self._writer(image_id, tag, file) for tag, (file, _) in labels.items()}

        def change(parts: Mapping[Path, Path]) -> None:
            obj = self._datastore.objects[image_id]
            obj.image.info.update(image_info)
            for tag, (_, label_info) in labels.items():
                place = places[tag]
                info = {**(label_info or {}), "ts": int(time.time()), "name": place.name, STAMP: _stamp(parts[place])}
                obj.labels[tag] = DataModel(info=info, ext=self._to_id(place.name)[1])

        self._replace(writers, change)
        for place in places.values():  # what this label was in another format
            for ext in FORMATS:
                old = place.with_name(f"{image_id}{ext}")
                if old != place:
                    old.unlink(missing_ok=True)

    def _place(self, image_id: str, tag: str, file: str) -> Path:
        ext = self._to_id(file)[1] if tag in (MAP_TAG, COUNTERFACTUAL_TAG) else ".nii.gz"
        return Path(self._datastore.label_path(tag)) / f"{image_id}{ext}"

    def _writer(self, image_id: str, tag: str, file: str) -> Callable[[Path], Any]:
        """What writes a label, once it was checked."""
        image = self._file_of(image_id)
        try:
            if tag not in (MAP_TAG, COUNTERFACTUAL_TAG):
                mask = checked_label(file, image, self._allowed(tag))
                label = nib.Nifti1Image(mask, grid_of(image)[1])
                label.header.set_xyzt_units("mm")
                return lambda part: nib.save(label, part)
            if not file.lower().endswith(FORMATS) or not os.path.getsize(file):
                raise ValueError(f"must be an image file of {', '.join(FORMATS)}.")
            shape, affine = grid_of(file)
            if reordered(np.empty(shape, bool), affine, grid_of(image)[1], grid_of(image)[0]) is None:
                raise ValueError("lies on another grid than its image.")
        except MONAILabelException:
            raise
        except Exception as error:
            what = str(error) if isinstance(error, ValueError) else "can't be read as an image."
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"The label {tag!r} of {image_id} {what} Nothing was stored."
            ) from error
        return lambda part: shutil.copyfile(file, part)

    def _allowed(self, tag: str) -> tuple[int, ...] | None:
        from scripts.images.restoring import LESION, NOT_ASSESSED

        return (0, LESION, NOT_ASSESSED) if tag in (FINAL, ORIGINAL) else None

    @_exclusive
    def remove_label(self, label_id: str, label_tag: str) -> None:
        super().remove_label(plain(label_id, "label"), plain(label_tag, "label tag"))

    @_exclusive
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        super().update_image_info(plain(image_id, "image id"), info)

    @_exclusive
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        super().update_label_info(plain(label_id, "label"), plain(label_tag, "label tag"), info)

    def get_image_uri(self, image_id: str) -> str:
        uri = super().get_image_uri(plain(image_id, "image id"))
        if not uri or not os.path.exists(uri):
            raise ImageNotFoundException(f"There is no image {image_id!r} among the studies.")
        return uri

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        return LocalDatastore.get_label_uri(self, plain(label_id, "label"), plain(label_tag, "label tag"))

    def named(self, image_id: str) -> str | None:
        """The sequence that an image is named as; None if its name says nothing."""
        raise NotImplementedError

    def siblings(self, image_id: str, channels: Sequence[str]) -> list[str]:
        """The images of the same study that hold `channels`, in that order; `image_id` is one of them.

        Raises:
            MONAILabelException: INVALID_INPUT, one is missing.
        """
        if len(channels) == 1:
            return [image_id]
        found = self._sequences(image_id)
        missing = [c for c in channels if c not in found]
        if missing:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image_id}: the model takes {', '.join(channels)}; {', '.join(missing)} is missing in this study. Found: "
                f"{', '.join(f'{c} ({i})' for c, i in found.items()) or 'none'}. The rules are in the bundle's "
                "scripts/images/sequences.json.",
            )
        return [found[c] for c in channels]

    def _sequences(self, image_id: str) -> dict[str, str]:
        raise NotImplementedError

    @_exclusive
    def save_results(
        self, image_id: str, tag: str, labels: str, results: Mapping[str, Path], params: Mapping[str, Any]
    ) -> None:
        """Keep what a model gave for an image, and the image's score for the worklist.

        Args:
            image_id: of the image.
            tag: to keep the label map under.
            labels: the file of the label map.
            results: the files of the float results, by their tags.
            params: the scores and what they were made with, see `AnomalyInferTask`.
        """
        files = {tag: labels, **results}
        scores = {SCORE: params["score"], "p_diseased": params["p_diseased"]}
        self._keep(image_id, {name: (str(path), {"params": dict(params)}) for name, path in files.items()}, scores)

    @_exclusive
    def mark_done(self, image_id: str, tag: str, params: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
        """Say of a result that it is complete, also where it was sent to; unless another one has taken its place.

        Args:
            image_id: of the image.
            tag: of the result.
            params: that it was kept with.
            made_with: all that it depends on.
        """
        label = self._datastore.label(image_id, tag)
        if label and _as_json(label.info.get("params")) == _as_json(params):
            super().update_label_info(image_id, tag, {"made_with": dict(made_with)})


class FolderStudies(_Studies):
    """Studies in a folder: every image file in it and in its subfolders is one, its path without the ending its id.

    In ids "-" stands for the slashes of the path. The folder is looked at whenever studies are listed. What is in it and is no
    study (hidden files, labels, other sequences, masks, other formats) is said in the log and counted in the status.

    Args:
        folder: of the studies; labels and scores are kept in it.
        sequence: see `_Studies.sequence`.
        auto_reload: look for files that came or went later.
    """

    def __init__(self, folder: str, sequence: str | None = None, auto_reload: bool = True) -> None:
        self.sequence = sequence
        self._live = auto_reload
        self._unfit: dict[Path, list[int]] = {}
        self._left_out: dict[str, list[str]] = {}
        self._said = ""
        # no watcher of files: it lists the whole folder again for every file that comes, and misses those of a network
        super().__init__(folder, extensions=[f"*{e}" for e in FORMATS], auto_reload=False)

    def _look(self) -> None:
        if self._live:
            self._reconcile_datastore()
        else:
            self._init_from_datastore_file()

    @_exclusive
    def _reconcile_datastore(self) -> None:
        known = self._datastore.objects
        left_out: defaultdict[str, list[str]] = defaultdict(list)
        objects: dict[str, ImageLabelModel] = {}
        for name in self._files(left_out):
            stem, ext = self._to_id(name)
            image_id = stem.replace("/", "-")
            if image_id in objects:
                left_out["with the id of another"].append(name)
                continue
            try:
                plain(image_id, "")
            except MONAILabelException:
                left_out["with too long a path or one with signs that a name can't have"].append(name)
                continue
            old = known.get(image_id)
            if old is None or old.image.info.get("name") != name:
                old = ImageLabelModel(image=DataModel(ext=ext, info={"ts": int(time.time()), "name": name}))
            objects[image_id] = ImageLabelModel(image=old.image)
        labels = Path(self._datastore.label_path(None))
        for part in labels.glob("*/.part.*"):  # of a process that was killed
            part.unlink(missing_ok=True)
        for tag in sorted(p.name for p in labels.glob("[!.]*/")):
            for file in sorted(labels.joinpath(tag).iterdir()):
                image_id, ext = self._to_id(file.name)
                if not ext or file.name.startswith(".") or image_id not in objects:
                    left_out["in labels that belong to no image"].append(f"{tag}/{file.name}")
                    continue
                label = known[image_id].labels.get(tag) if image_id in known else None
                if label is None or label.info.get("name") != file.name:
                    if tag in objects[image_id].labels:
                        continue
                    label = DataModel(ext=ext, info={"ts": int(time.time()), "name": file.name})
                label = self._whole(self._root / objects[image_id].image.info["name"], tag, file, label)
                if label is None:
                    left_out["labels that are broken, empty or of another image"].append(f"{tag}/{file.name}")
                else:
                    objects[image_id].labels[tag] = label
        self._left_out = dict(left_out)
        if objects != known:
            # at once, as other threads read it
            self._datastore.objects = objects
            try:
                self._update_datastore_file()
            except MONAILabelException as error:  # what is there can be listed all the same
                logger.warning("%s", error.msg)
        self._say()

    @property
    def _root(self) -> Path:
        return Path(self._datastore.image_path())

    def _whole(self, image: Path, tag: str, file: Path, label: DataModel) -> DataModel | None:
        """What is known of a label if its file is fit to be one; a reader's is read, once for every change."""
        stamp = _stamp(file)
        if not stamp[0] or self._unfit.get(file) == stamp:
            return None
        if tag != FINAL or label.info.get(STAMP) == stamp:
            return label
        try:
            checked_label(file, image, self._allowed(tag))
        except ValueError as error:
            logger.warning("labels/%s/%s is not used and its study counts as unread: it %s", tag, file.name, error)
            self._unfit[file] = stamp
            return None
        return DataModel(ext=label.ext, info={**label.info, STAMP: stamp})

    def _files(self, left_out: Mapping[str, list[str]]) -> Iterator[str]:
        """The paths of the image files in the folder, relative to it; what else there is goes into `left_out`."""
        seen: set[tuple[int, int]] = set()
        labels = os.path.realpath(self._datastore.label_path(None))

        def unreadable(error: OSError) -> None:
            left_out[f"that can't be read ({error.strerror})"].append(f"{Path(error.filename).name}/")

        for folder, folders, files in os.walk(self._root, onerror=unreadable, followlinks=True):
            below = Path(folder).relative_to(self._root)
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                left_out["in a folder that was read already"].append(below.as_posix() + "/")
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            left_out["hidden"].extend((below / d).as_posix() + "/" for d in folders if d.startswith("."))
            folders[:] = [
                d
                for d in sorted(folders, key=lambda d: (os.path.islink(os.path.join(folder, d)), d))
                if not d.startswith(".") and os.path.realpath(os.path.join(folder, d)) != labels
            ]
            ours = (os.path.basename(self._datastore_config_path), os.path.basename(self._lock_file))
            for file in sorted(files):
                name = (below / file).as_posix()
                if below == Path() and file.startswith(ours):
                    continue
                if file.startswith("."):
                    left_out["hidden"].append(name)
                elif file.lower().endswith(OTHER_FORMATS):
                    left_out[f"of a format that is not read (read are {', '.join(FORMATS)})"].append(name)
                elif not file.lower().endswith(FORMATS):
                    left_out["other files"].append(name)
                elif not os.path.isfile(os.path.join(folder, file)):
                    left_out["links that lead nowhere"].append(name)
                else:
                    yield name

    def _reasons(self) -> dict[str, list[str]]:
        """The names of what is no study, by the reason."""
        reasons = {reason: list(names) for reason, names in self._left_out.items() if names}
        listed = set(self._listed())
        for image_id, obj in self._datastore.objects.items():
            if image_id not in listed:
                reasons.setdefault(f"named as {self._named(image_id)[0]}", []).append(obj.image.info["name"])
        return reasons

    def _say(self) -> None:
        reasons = self._reasons()
        said = "; ".join(
            f"{len(names)} {reason} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for reason, names in reasons.items()
        )
        said = f"{len(self._listed())} studies in {self._datastore_path}. Not studies: {said or 'nothing'}."
        if said != self._said:
            logger.info(said)
            self._said = said

    def _named(self, image_id: str) -> tuple[str | None, str]:
        return named_as(self._datastore.objects[image_id].image.info["name"])

    def named(self, image_id: str) -> str | None:
        if plain(image_id, "image id") not in self._datastore.objects:
            self._look()
        return self._named(image_id)[0] if image_id in self._datastore.objects else None

    def _listed(self) -> list[str]:
        if self.sequence is None:
            return list(self._datastore.objects)
        return [i for i in self._datastore.objects if self._named(i)[0] in (None, self.sequence)]

    def list_images(self) -> list[str]:
        self._look()
        return self._listed()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return [i for i in self.list_images() if FINAL in self._datastore.objects[i].labels]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return [i for i in self.list_images() if FINAL not in self._datastore.objects[i].labels]

    def status(self) -> dict[str, Any]:
        listed, objects = self.list_images(), self._datastore.objects
        tags = [tag for obj in objects.values() for tag in obj.labels]
        return {
            "total": len(listed),
            "completed": sum(FINAL in objects[i].labels for i in listed),
            "label_tags": {tag: tags.count(tag) for tag in sorted(set(tags))},
            "left_out": {reason: len(names) for reason, names in self._reasons().items()},
        }

    def json(self) -> dict[str, Any]:
        self._look()
        return dict(super().json())

    def get_image_uri(self, image_id: str) -> str:
        if plain(image_id, "image id") not in self._datastore.objects:
            self._look()
        path = self._file_of(image_id)
        if not path.is_file():
            raise ImageNotFoundException(f"There is no image {image_id!r} among the studies.")
        return os.path.abspath(path)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        self._init_from_datastore_file()
        info = super().get_image_info(image_id)
        return {**info, "path": os.path.abspath(self._file_of(image_id))} if info else info

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        self._init_from_datastore_file()
        return super().get_label_uri(label_id, label_tag, image_id)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        labeled = self.get_labeled_images()
        pairs = [{"image": self.get_image_uri(i), "label": self.get_label_uri(i, FINAL)} for i in labeled]
        if full_path:
            return pairs
        return [{k: os.path.relpath(p, self._root) for k, p in pair.items()} for pair in pairs]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """The path of a new zip of the images that a reader labelled, with their labels and what is known of them.

        Raises:
            MONAILabelException: INVALID_INPUT, there are none.
        """
        labeled = self.get_labeled_images()[: limit_cases or None]
        if not labeled:
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "No study has a label of a reader.")
        handle, path = tempfile.mkstemp(suffix=".zip")
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for image_id in labeled:
                # by their ids: files in different folders may have one name
                for what, source in (
                    ("image", self.get_image_uri(image_id)),
                    ("label", self.get_label_uri(image_id, FINAL)),
                ):
                    archive.write(source, f"{what}/{image_id}{split_ending(source)[1]}")
            archive.writestr("metadata.json", self._datastore.model_dump_json(exclude={"base_path"}))
        return path

    @_exclusive
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take in an image.

        Raises:
            MONAILabelException: INVALID_INPUT, it is no image file, or there is another image of that id.
        """
        name, ext = self._to_id(os.path.basename(image_filename))
        image_id = plain(image_id or name, "image id")
        if ext.lower() not in FORMATS or ext.lower() == ".mhd" or not os.path.getsize(image_filename):
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image_id}: an image must be a file of {', '.join(e for e in FORMATS if e != '.mhd')} that is not empty.",
            )
        self._look()
        if image_id in self._datastore.objects:
            if filecmp.cmp(image_filename, self._file_of(image_id), shallow=False):
                return image_id
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"There is another image {image_id!r} among the studies. Give this one another id, or remove that one first.",
            )
        return str(super().add_image(image_id, image_filename, image_info))

    @_exclusive
    def remove_image(self, image_id: str) -> None:
        path = self._file_of(plain(image_id, "image id"))
        for tag in list(self._datastore.objects[image_id].labels):
            self.remove_label(image_id, tag)
        path.unlink(missing_ok=True)
        self._reconcile_datastore()

    def _sequences(self, image_id: str) -> dict[str, str]:
        mine = self._named(image_id)[1]
        named = {name: self._named(name) for name in sorted(self._datastore.objects)}
        return {sequence: name for name, (sequence, case) in named.items() if sequence and case == mine}


class DICOMwebStudies(_Studies, DICOMWebDatastore):
    """Studies on a DICOMweb server: every series of the search filter is an image, its SeriesInstanceUID the id.

    Series are fetched whole or not at all, and again when their images on the server are others. Predicted masks and maps go
    back to the server, in series of their own.
    """

    def __init__(self, *args: Any, store_results: bool = True, **kwargs: Any) -> None:
        self._store_results = store_results
        super().__init__(*args, **kwargs)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (requests.exceptions.RequestException, RetryError, RuntimeError, OSError) as error:
            raise MONAILabelException(
                MONAILabelError.SERVER_ERROR,
                f"The DICOM server {self._client.base_url} doesn't answer as it should ({type(error).__name__}: {error}). "
                "Is it running? Nothing was changed; try again.",
            ) from error

    def _series(self, **filters: Any) -> list[Dataset]:
        with self._answering():
            fields = ["SeriesDescription", "ProtocolName", "NumberOfSeriesRelatedInstances", "SeriesNumber"]
            return [Dataset.from_json(d) for d in self._client.search_for_series(search_filters=filters, fields=fields)]

    def _one_series(self, image_id: str) -> Dataset:
        if not UID.fullmatch(image_id):
            raise ImageNotFoundException(f"{image_id!r} is no SeriesInstanceUID.")
        for series in self._series(SeriesInstanceUID=image_id):
            if str(series.SeriesInstanceUID) == image_id:
                return series
        raise ImageNotFoundException(f"There is no series {image_id} on {self._client.base_url}.")

    def status(self) -> dict[str, Any]:
        """As for a folder; while the DICOM server is away, what is wrong: studies that were fetched can still be read."""
        try:
            return super().status()
        except MONAILabelException as error:
            return {"total": 0, "completed": 0, "label_tags": {}, "error": error.msg}

    def list_images(self) -> list[str]:
        found = self._series(**self._search_filter)
        wanted = (None, self.sequence)
        return [str(s.SeriesInstanceUID) for s in found if not self.sequence or _spoken(s) in wanted]

    def named(self, image_id: str) -> str | None:
        known = self._datastore.objects.get(plain(image_id, "image id"))
        return _spoken(known.image.info if known else self._one_series(image_id))

    def _labeled(self) -> set[str]:
        """Series with a segmentation that a reader drew or corrected; those of an algorithm don't count."""
        labeled = {image_id for image_id, obj in self._datastore.objects.items() if FINAL in obj.labels}
        # a search doesn't return what is in sequences, so each is looked into, once
        path = Path(self._datastore_path) / "segmentations.json"
        try:
            known = dict(json.loads(path.read_text()))
        except (OSError, ValueError):
            known = {}
        now: dict[str, list[str]] = {}
        try:
            for seg in self._series(Modality="SEG"):
                uid = str(seg.SeriesInstanceUID)
                key = f"{uid} {seg.get('NumberOfSeriesRelatedInstances') or ''}"
                now[key] = known[key] if key in known else self._read_by(str(seg.StudyInstanceUID), uid)
        finally:
            if now.keys() - known.keys():
                part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
                part.write_text(json.dumps({**known, **now}))
                os.replace(part, path)
        return labeled.union(*now.values())

    def _read_by(self, study: str, series: str) -> list[str]:
        """The series that a series of segmentations shows to be read, by its Segment Algorithm Types (PS3.3 C.8.20.4)."""
        with self._answering():
            instances = [Dataset.from_json(d) for d in self._client.retrieve_series_metadata(study, series)]
        return sorted(
            {
                str(reference.SeriesInstanceUID)
                for instance in instances
                if any(s.get("SegmentAlgorithmType") in READERS for s in instance.get("SegmentSequence", []))
                for reference in instance.get("ReferencedSeriesSequence", [])
            }
        )

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labeled = self._labeled()
        return [image_id for image_id in self.list_images() if image_id in labeled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labeled = self._labeled()
        return [image_id for image_id in self.list_images() if image_id not in labeled]

    def get_image_uri(self, image_id: str) -> str:
        plain(image_id, "image id")
        path = Path(self._datastore.image_path()) / f"{image_id}.nii.gz"
        if self._is_fetched(image_id) and self._is_complete(image_id):
            return str(path.resolve())
        series = self._one_series(image_id)
        modality, wanted = str(series.get("Modality", "")), self._search_filter.get("Modality")
        if wanted and modality != wanted:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image_id}: is {modality or 'of no modality'}; the model takes {wanted}.",
            )
        expected = int(series.get("NumberOfSeriesRelatedInstances") or 0)
        with tempfile.TemporaryDirectory(dir=self._datastore_path, prefix=".fetch-") as partial:
            fetched = Path(partial) / "series"
            fetched.mkdir()
            with self._answering():
                # as they are stored: not every server can decompress
                instances = self._client.retrieve_series(
                    str(series.StudyInstanceUID), image_id, media_types=(("application/dicom", "*"),)
                )
            for instance in instances:
                instance.save_as(fetched / f"{plain(str(instance.SOPInstanceUID), 'SOPInstanceUID')}.dcm")
            if not instances and not expected:
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"Series {image_id} holds no image.")
            if len(instances) < expected:
                raise MONAILabelException(
                    MONAILabelError.SERVER_ERROR,
                    f"{image_id}: {len(instances)} of {expected} instances came from {self._client.base_url}; try again.",
                )
            nifti = self._volume_of(image_id, fetched)
            try:
                info = {k: str(series.get(k, "")) for k in ("StudyDate", "StudyTime", "Modality", "PatientID")}
                names = ("SeriesDescription", "ProtocolName", "StudyInstanceUID", "RetrieveURL")
                info |= {k: str(series.get(k, "")) for k in names}
                self._take_in(image_id, fetched, nifti, {**info, "SeriesInstanceUID": image_id})
            finally:
                os.unlink(nifti)
        return str(path.resolve())

    def _folder_of(self, image_id: str) -> Path:
        """Where the images of a series are, each named by its SOPInstanceUID."""
        return Path(self._datastore.image_path()) / image_id

    def _is_fetched(self, image_id: str) -> bool:
        folder = self._folder_of(image_id)
        return (
            image_id in self._datastore.objects and folder.is_dir() and folder.with_name(f"{image_id}.nii.gz").is_file()
        )

    def _is_complete(self, image_id: str) -> bool:
        """Whether a series that was fetched has the same images on the server; while that can't be told, it is used."""
        study = self._datastore.objects[image_id].image.info.get("StudyInstanceUID")
        try:
            with self._answering():
                rows = self._client.search_for_instances(study, image_id, fields=["SOPInstanceUID"])
        except MONAILabelException as error:
            logger.warning(
                "%s: whether more images have come can't be told, those of before are used: %s", image_id, error.msg
            )
            return True
        there = {str(Dataset.from_json(row).SOPInstanceUID) for row in rows}
        return there == _instances(self._folder_of(image_id))

    @_exclusive
    def _take_in(self, image_id: str, fetched: Path, nifti: str, info: Mapping[str, Any]) -> None:
        """Put fetched images in the place of those of before.

        If they are not the same, results of those go, and a reader's label is kept under a tag that says of what it is.

        Args:
            image_id: of the series.
            fetched: folder of the images; it is moved.
            nifti: the volume that they make.
            info: on the series.
        """
        folder = self._folder_of(image_id)
        known = self._datastore.objects.get(image_id) or ImageLabelModel(image=DataModel(info={}))
        before = _instances(folder)
        changed = bool(before or known.labels) and before != _instances(fetched)
        name = f"{image_id}.nii.gz"
        writers = {folder.with_name(name): lambda part: shutil.copyfile(nifti, part)}
        kept, gone = dict(known.labels), {}
        old_info = dict(known.image.info)
        if changed:
            for key in (SCORE, "p_diseased", "stored", "dice"):
                old_info.pop(key, None)
            gone = {tag: label for tag, label in known.labels.items() if not tag.startswith(_FINAL_OF)}
            kept = {tag: label for tag, label in known.labels.items() if tag not in gone}
            if FINAL in gone:
                tag, label = f"{_FINAL_OF}{len(before)}-images", gone[FINAL]
                source = self._place(image_id, FINAL, name)
                writers[self._place(image_id, tag, name)] = lambda part: shutil.copyfile(source, part)
                kept[tag] = label
            logger.warning(
                "%s: has other images than before (%d then, %d now) and was fetched again. Results of before are gone%s.",
                image_id,
                len(before),
                len(_instances(fetched)),
                f"; the reader's label is kept under the tag {tag!r}" if FINAL in gone else "",
            )

        def change(parts: Mapping[Path, Path]) -> None:
            image = DataModel(info={**old_info, **info, "ts": int(time.time()), "name": name}, ext=".nii.gz")
            self._datastore.objects[image_id] = ImageLabelModel(image=image, labels=kept)

        self._replace(writers, change)
        for tag, label in gone.items():
            (Path(self._datastore.label_path(tag)) / f"{image_id}{label.ext}").unlink(missing_ok=True)
        # last: while the folder holds other images than the server, all this is done again
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fetched, folder)

    def _volume_of(self, image_id: str, folder: Path) -> str:
        """The path of a new NIfTI of fetched images, on whose grid objects can be written for them.

        Raises:
            MONAILabelException: INVALID_INPUT, they are no volume; the message says why.
        """
        series, nifti = [], None
        try:
            series = read_series(folder)
            nifti = dicom_to_nifti(str(folder))
            check_on_series(series, *grid_of(nifti))
        except Exception as error:
            if nifti:
                os.unlink(nifti)
            message = str(error).replace(f"{folder}{os.sep}", "").removeprefix(f"{folder}: ")
            compressed = {d.file_meta.TransferSyntaxUID for d in series} if series and not nifti else set()
            names = sorted(str(uid.name) for uid in compressed if uid.is_compressed)
            if names:
                message = f"its transfer syntax {', '.join(names)} can't be decoded; let the server send another one."
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"Series {image_id} can't be read as a volume: {message}"
            ) from error
        return str(nifti)

    def _sequences(self, image_id: str) -> dict[str, str]:
        mine = self._one_series(image_id)
        found: dict[str, str] = {}
        study = self._series(StudyInstanceUID=str(mine.StudyInstanceUID), Modality=str(mine.Modality))
        # the series that was asked for speaks for its own sequence, the first one for every other
        for series in [mine, *sorted(study, key=lambda s: int(s.get("SeriesNumber") or 0))]:
            sequence = _spoken(series)
            if sequence:
                found.setdefault(sequence, str(series.SeriesInstanceUID))
        return found

    def series(self, image_id: str) -> list[Dataset]:
        """The instances of a series, in order, as `get_image_uri` fetched them before."""
        if not self._is_fetched(image_id):
            self.get_image_uri(image_id)
        return read_series(self._folder_of(image_id))

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        holds_itself(label_filename)
        image = self.get_image_uri(image_id)
        converted = None
        try:
            if label_filename.endswith(".bin"):
                converted = binary_to_image(image, label_filename)
            file = converted or label_filename
            # refuses what is not fit before anything is sent
            self._writer(image_id, plain(label_tag, "label tag"), file)
            if label_tag == FINAL:
                mask, affine = read_volume(file)
                seg = segmentation(
                    self.series(image_id), mask == 1, affine, label="anomaly", version=self.version, algorithm=False
                )
                with self._answering():
                    store(self._client, seg)
                label_info = {**label_info, "SeriesInstanceUID": str(seg.SeriesInstanceUID)}
            return _Studies.save_label(self, image_id, file, label_tag, label_info)
        except ValueError as error:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"The label {label_tag!r} of {image_id} does not fit its images ({error}). Nothing was stored.",
            ) from error
        finally:
            if converted:
                os.unlink(converted)

    def segmentation_of(self, image_id: str, mask: str, params: Mapping[str, Any]) -> Segmentation:
        """A predicted mask of a series as a DICOM Segmentation."""
        return predicted(self.series(image_id), mask, params)

    def save_results(
        self, image_id: str, tag: str, labels: str, results: Mapping[str, Path], params: Mapping[str, Any]
    ) -> None:
        """As for a folder; a mask and its map go to the DICOM server first, once for every setting that made them.

        Of two that are sent the second may fail; then the next time only that one is sent.
        """
        if self._store_results and tag == ORIGINAL:
            self._send(image_id, labels, results[MAP_TAG], params)
        super().save_results(image_id, tag, labels, results, params)

    def _send(self, image_id: str, mask: str, anomaly_map: Path, params: Mapping[str, Any]) -> None:
        made_with = json.dumps([params[k] for k in ("options", "weights", "version")])
        known = self._datastore.objects.get(image_id)
        stored = dict(known.image.info.get("stored", {})) if known else {}
        sent = list(stored.get(made_with, []))
        if len(sent) == 2:
            return
        series = self.series(image_id)
        pair = [predicted(series, mask, params), parametric_map(series, *read_volume(anomaly_map), **_said_of(params))]
        for dataset in pair[len(sent) :]:
            with self._answering():
                store(self._client, dataset)
            sent.append(str(dataset.SeriesInstanceUID))
            self.update_image_info(image_id, {"stored": {**stored, made_with: sent}})

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        return LocalDatastore.datalist(self, full_path)
