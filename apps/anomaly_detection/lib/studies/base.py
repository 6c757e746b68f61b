"""What both kinds of studies share: images, labels and results that are whole or not there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

from lib.grids import grid_of, reordered
from lib.studies.labels import check_header, checked_label
from lib.studies.names import FORMATS, plain, split_ending
from lib.studies.register import Register, exclusively, stamp_of
from lib.studies.tags import (
    COUNTERFACTUAL_TAG,
    DIGEST,
    FINAL,
    IDENTITY,
    MAP_TAG,
    ORIGINAL,
    P_DISEASED,
    SCORE,
    STAMP,
    slices_file,
)
from lib.studies.unchanged import check_unchanged
from lib.studies.uploads import holds_itself, small_enough

if TYPE_CHECKING:
    from scripts.images.sequences import Candidate

logger = logging.getLogger(__name__)

OWN = frozenset(
    ("name", "path", "ts", "stored", "sent", "outdated", "params", "made_with", STAMP, DIGEST)
    + ("StudyInstanceUID", "SeriesInstanceUID", "Modality", IDENTITY)
)
"""Keys in what is known of an image or a label that say where it is and what was done: no client changes them."""

TOLD = frozenset(("strategy", "id", "score", "unread", SCORE))
"""Keys in an image's info that a client is told with the next sample, and doesn't enter: they decide which one that is."""


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _without_slices(params: Any) -> Any:
    return {k: v for k, v in params.items() if k != "slices"} if isinstance(params, Mapping) else params


def _check_own(info: Mapping[str, Any], known: Mapping[str, Any], own: frozenset[str] = OWN) -> None:
    """See to it that `info` changes none of the `own` keys of what is known; to say the same again is allowed."""
    changed = sorted(key for key in own & info.keys() if known and info[key] != known.get(key))
    if changed:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f"{', '.join(changed)} can't be changed: the server goes by that. Nothing was stored.",
        )


class Studies(Register):
    """What both kinds of studies share; see `LocalDatastore` for the rest."""

    channels: Sequence[Sequence[str]] = ()
    """What each model takes, in its order."""
    references: Sequence[str] = ()
    """On the grid of which of its channels each model's results lie; the first channels where none are given."""
    version = ""
    """Of the software, for DICOM objects."""

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        # among hidden files are what lies aside while it is written, and what macOS puts beside every file
        return {k: v for k, v in super()._list_files(path, patterns).items() if not k.startswith(".")}

    def _to_id(self, file: str) -> tuple[str, str]:
        return split_ending(file)

    def _file_of(self, image_id: str) -> Path:
        """Where an image's file is: in the folder of the images, or where a link in it leads."""
        obj = self._datastore.objects.get(image_id)
        if obj is None:
            raise ImageNotFoundException(f"There is no image {image_id!r} among the studies.")
        name = Path(str(obj.image.info.get("name") or f"{image_id}{obj.image.ext}"))
        if name.is_absolute() or ".." in name.parts:
            raise ImageNotFoundException(f"There is no image {image_id!r} among the studies: its name leads elsewhere.")
        return Path(self._datastore.image_path()) / name

    @exclusively
    def _reconcile_datastore(self) -> None:
        super()._reconcile_datastore()

    @exclusively
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        name, ext = self._to_id(os.path.basename(image_filename))
        image_id = plain(image_id or name, "image id")
        holds_itself(image_filename)
        small_enough(image_filename)
        place = Path(self._datastore.image_path()) / f"{image_id}{ext}"
        info = {key: value for key, value in (image_info or {}).items() if key not in OWN | TOLD}
        info |= {"ts": int(time.time()), "name": place.name}

        def change(parts: Mapping[Path, Path]) -> None:
            self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=ext))

        self._replace({place: lambda part: shutil.copyfile(image_filename, part)}, change, image_id)
        return image_id

    @exclusively
    def remove_image(self, image_id: str) -> None:
        super().remove_image(plain(image_id, "image id"))

    @exclusively
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label: whole, on its image's grid, in the order of its voxels, or not at all.

        Raises:
            ImageNotFoundException: no such image.
            MONAILabelException: INVALID_INPUT, the label is not fit, see `checked_label`; SERVER_ERROR, the disk is full.
        """
        holds_itself(label_filename)
        # what was done with a label is the server's to say, see `mark_done`
        info = {key: value for key, value in (label_info or {}).items() if key not in ("made_with", "stored")}
        self._keep(plain(image_id, "image id"), {plain(label_tag, "label tag"): (label_filename, info)}, {})
        return image_id

    def _keep(
        self,
        image_id: str,
        labels: Mapping[str, tuple[str, dict[str, Any]]],
        image_info: Mapping[str, Any],
        whole: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Keep labels (a file and its info, by their tags) and something about their image: all of it, or nothing.

        `whole` has the params of labels with the scores of slices, by their tags. It goes into a file beside each label: in the
        register, which is written whole for every study, the slices of all studies would be most of it.
        """
        places = {tag: self._place(image_id, tag, file) for tag, (file, _) in labels.items()}
        writers = {places[tag]: self._writer(image_id, tag, file) for tag, (file, _) in labels.items()}
        for tag, params in (whole or {}).items():
            content = json.dumps(params, default=str)
            writers[self._slices_of(image_id, tag)] = partial(Path.write_text, data=content, encoding="utf-8")

        def change(parts: Mapping[Path, Path]) -> None:
            obj = self._datastore.objects[image_id]
            obj.image.info.update(image_info)
            for tag, (_, label_info) in labels.items():
                place = places[tag]
                info = {**(label_info or {}), "ts": int(time.time()), "name": place.name, STAMP: stamp_of(parts[place])}
                obj.labels[tag] = DataModel(info=info, ext=self._to_id(place.name)[1])

        self._replace(writers, change, image_id)
        for tag, place in places.items():  # what this label was in another format, and the slices of another
            if self._slices_of(image_id, tag) not in writers:
                self._slices_of(image_id, tag).unlink(missing_ok=True)
            for ext in FORMATS:
                old = place.with_name(f"{image_id}{ext}")
                if old != place:
                    old.unlink(missing_ok=True)

    def _place(self, image_id: str, tag: str, file: str) -> Path:
        ext = self._to_id(file)[1] if tag in (MAP_TAG, COUNTERFACTUAL_TAG) else ".nii.gz"
        return Path(self._datastore.label_path(tag)) / f"{image_id}{ext}"

    def _slices_of(self, image_id: str, tag: str) -> Path:
        return slices_file(Path(self._datastore.label_path(tag)), image_id)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is known of a label; with the scores of its slices, where they are of what it was made with."""
        self._read_again()
        info = dict(super().get_label_info(label_id, label_tag))
        if isinstance(info.get("params"), Mapping):
            with suppress(OSError, ValueError):
                params = json.loads(self._slices_of(label_id, label_tag).read_text("utf-8"))
                if _as_json(_without_slices(params)) == _as_json(info["params"]):
                    info["params"] = params
        return info

    def _writer(self, image_id: str, tag: str, file: str) -> Callable[[Path], Any]:
        """What writes a label, once it was checked."""
        from scripts.errors import InvalidImageError

        image = self._file_of(image_id)
        try:
            if tag not in (MAP_TAG, COUNTERFACTUAL_TAG):
                mask = checked_label(file, image, self._allowed(tag))
                label = nib.Nifti1Image(mask, grid_of(image)[1])
                label.header.set_xyzt_units("mm")
                return lambda part: nib.save(label, part)
            if not file.lower().endswith(FORMATS) or not os.path.getsize(file):
                raise ValueError(f"must be an image file of {', '.join(FORMATS)}.")
            there, target = grid_of(image)
            check_header(file, there, max([1, *map(len, self.channels)]))
            shape, affine = grid_of(file)
            if reordered(np.empty(shape, bool), affine, target, there) is None:
                raise ValueError("lies on another grid than its image.")
        except MONAILabelException:
            raise
        except Exception as error:
            # the bundle puts the path before what is wrong with a file, which is no one's business but the server's
            cause = error.__cause__ if isinstance(error, InvalidImageError) else error
            what = str(cause) if isinstance(cause, ValueError) else "can't be read as an image."
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"The label {tag!r} of {image_id} {what} Nothing was stored."
            ) from error
        return lambda part: shutil.copyfile(file, part)

    def _allowed(self, tag: str) -> tuple[int, ...] | None:
        from scripts.images.restoring import LESION, NOT_ASSESSED

        return (0, LESION, NOT_ASSESSED) if tag in (FINAL, ORIGINAL) else None

    @exclusively
    def remove_label(self, label_id: str, label_tag: str) -> None:
        super().remove_label(plain(label_id, "label"), plain(label_tag, "label tag"))
        self._slices_of(label_id, label_tag).unlink(missing_ok=True)

    def check_entered(self, image_id: str, info: Mapping[str, Any]) -> None:
        """See to it that a client enters nothing about an image that this server finds out.

        Raises:
            MONAILabelException: INVALID_INPUT, it does.
        """
        _check_own(info, self.get_image_info(plain(image_id, "image id")), OWN | TOLD)

    @exclusively
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        _check_own(info, self.get_image_info(plain(image_id, "image id")))
        super().update_image_info(image_id, info)

    @exclusively
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        _check_own(info, self.get_label_info(plain(label_id, "label"), plain(label_tag, "label tag")))
        entered = {key: value for key, value in info.items() if key not in OWN}  # the others are known, and not changed
        super().update_label_info(label_id, label_tag, entered)

    def get_image_uri(self, image_id: str) -> str:
        uri = super().get_image_uri(plain(image_id, "image id"))
        if not uri or not os.path.exists(uri):
            raise ImageNotFoundException(f"There is no image {image_id!r} among the studies.")
        return uri

    def fails_alone(self, image_id: str, error: MONAILabelException) -> bool:
        """Whether an error of the server's with an image, of `get_image_uri`, is that image's alone.

        Raises:
            MONAILabelException: SERVER_ERROR, the DICOM server doesn't answer on anything else either.
        """
        return False

    def input_of(self, image_id: str) -> str:
        """The path of what a model reads of an image."""
        return str(self.get_image_uri(image_id))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        self._read_again()
        return LocalDatastore.get_label_uri(self, plain(label_id, "label"), plain(label_tag, "label tag"))

    @property
    def sequences(self) -> list[str]:
        """The models' `references`: images that are named as something else are left out of the worklist; [] takes all."""
        return list(self.references) or [channels[0] for channels in self.channels if channels]

    def named(self, image_id: str) -> str | None:
        """The sequence that an image is named as; None if its name says nothing."""
        raise NotImplementedError

    def modality(self, image_id: str) -> str | None:
        """The Modality of an image, in DICOM's words; None where nothing says it."""
        return None

    def taken_by(self, images: Sequence[str], modalities: Sequence[str]) -> list[str]:
        """Those of these images that may be of one of the modalities, in DICOM's words."""
        raise NotImplementedError

    def siblings(self, image_id: str, channels: Sequence[str]) -> list[str]:
        """The images of the same study that hold `channels`, in that order; `image_id` is one of them.

        Of several images of a sequence, the first by `in_order` is taken; see `choices`.

        Raises:
            MONAILabelException: INVALID_INPUT, one is missing.
        """
        if len(channels) <= 1:
            return [image_id]
        found = self._sequences(image_id)
        missing = [c for c in channels if c not in found]
        if missing:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"{image_id}: the model takes {', '.join(channels)}; {', '.join(missing)} is missing in this study. Found: "
                f"{', '.join(f'{c} ({ids[0].place})' for c, ids in found.items()) or 'none'}. The rules are in the bundle's "
                "scripts/images/sequences.json.",
            )
        return [found[c][0].place for c in channels]

    def choices(self, image_id: str, channels: Sequence[str]) -> list[str]:
        """A sentence for each of `channels` that the study has several images of: which one `siblings` takes."""
        from scripts.images.sequences import choice

        found = self._sequences(image_id) if len(channels) > 1 else {}
        return [choice(c, found[c]) for c in channels if len(found.get(c, [])) > 1]

    def _sequences(self, image_id: str) -> dict[str, list[Candidate]]:
        """The images of a study by their sequences, those to take first; an image is the first of its own sequence."""
        raise NotImplementedError

    @exclusively
    def save_results(
        self,
        image_id: str,
        tag: str,
        labels: str,
        results: Mapping[str, Path],
        params: Mapping[str, Any],
        read: Mapping[str, list[Any]] | None = None,
        made_with: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep what a model gave for an image, and of its original the image's score for the worklist.

        Args:
            image_id: of the image.
            tag: to keep the label map under.
            labels: the file of the label map.
            results: the files of the float results, by their tags.
            params: the scores and what they were made with, see `AnomalyInferTask`.
            read: the stamps of the files that it was made of, see `stamps_of`.
            made_with: all that they depend on, by which a DICOM server's studies tell what was sent.

        Raises:
            MONAILabelException: SERVER_ERROR, they are others now, or the disk is full.
        """
        check_unchanged(image_id, read)
        scores = {SCORE: params["score"], P_DISEASED: params["p_diseased"]} if tag == ORIGINAL else {}
        kept = {tag: labels, **{name: str(path) for name, path in results.items()}}
        known = {name: (file, {"params": _without_slices(params)}) for name, file in kept.items()}
        self._keep(image_id, known, scores, {tag: params})

    @exclusively
    def mark_done(self, image_id: str, tag: str, params: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
        """Say of a result that it is complete, also where it was sent to; unless another one has taken its place.

        Args:
            image_id: of the image.
            tag: of the result.
            params: that it was kept with.
            made_with: all that it depends on.
        """
        label = self._datastore.label(image_id, tag)
        # versions before kept the scores of slices in the register
        if label and _as_json(_without_slices(label.info.get("params"))) == _as_json(_without_slices(params)):
            self._replace({}, lambda parts: label.info.update(made_with=dict(made_with)), image_id)
