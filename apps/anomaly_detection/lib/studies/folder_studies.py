"""Studies in a folder."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

from lib.studies.archiving import archived
from lib.studies.base import Studies
from lib.studies.folder_files import ALL_TAGS, image_files, label_files, labels_there, labels_unread, may_come_back
from lib.studies.labels import checked_label
from lib.studies.names import FORMATS, plain, split_ending
from lib.studies.register import exclusively, stamp_of
from lib.studies.replaced import digest_at, is_another, is_of_header_alone, set_aside
from lib.studies.tags import DIGEST, FINAL, STAMP

if TYPE_CHECKING:
    from scripts.images.sequences import Candidate

logger = logging.getLogger(__name__)

Objects = dict[str, ImageLabelModel]
"""What is known of images, by their ids."""


class FolderStudies(Studies):
    """Studies in a folder: every image file in it and in its subfolders is one, its path without the ending its id.

    In ids "-" stands for the slashes of the path. The folder is looked at whenever studies are listed. What is in it and is no
    study (hidden files, labels, other sequences, masks, other formats) is said in the log and counted in the status. While a
    subfolder can't be read, its studies are not listed, but what is known of them stays.

    Args:
        folder: of the studies; labels and scores are kept in it.
        channels, references: see `Studies`.
        pictures: whether a model takes pictures and radiographs, so that their files are studies too.
        auto_reload: look for files that came or went later.
    """

    def __init__(
        self,
        folder: str,
        channels: Sequence[Sequence[str]] = (),
        pictures: bool = False,
        auto_reload: bool = True,
        references: Sequence[str] = (),
    ) -> None:
        from scripts.images.formats import DICOM, PICTURES

        self.channels, self.references = channels, references
        self._cases: tuple[Any, int, dict[str, list[str]]] = (None, 0, {})
        self._formats = (*FORMATS, *((*PICTURES, *DICOM) if pictures else ()))
        self._live = auto_reload
        self._unfit: dict[Path, list[Any]] = {}
        self._left_out: dict[str, list[str]] = {}
        self._away: set[str] = set()
        self._said = ""
        # no watcher of files: it lists the whole folder again for every file that comes, and misses those of a network
        super().__init__(folder, extensions=[f"*{e}" for e in self._formats], auto_reload=False)

    def _to_id(self, file: str) -> tuple[str, str]:
        return split_ending(file, self._formats)

    def _look(self) -> None:
        if self._live:
            self._reconcile_datastore()
        else:
            self._read_again()

    @exclusively
    def _reconcile_datastore(self) -> None:
        known = dict(self._datastore.objects)
        left_out: defaultdict[str, list[str]] = defaultdict(list)
        unread: set[str] = set()
        names = {i: str(old.image.info.get("name") or f"{i}{old.image.ext}") for i, old in known.items()}
        objects, stuck = self._find_images(known, names, unread, left_out)
        missing = {i: old for i, old in known.items() if i not in objects}
        self._away = stuck | {i for i in missing if may_come_back(self._root, names[i], unread)}
        # what is known of an image that is gone stays beside its labels: they are not those of the next one of that name
        gone = {i for i in missing.keys() - self._away if any(labels_there(self._labels, i, missing[i]))}
        objects |= {i: missing[i] for i in self._away | gone}
        self._find_labels(objects, known, gone, left_out)
        for image_id in objects.keys() - self._away - gone:
            if FINAL in objects[image_id].labels or "image_label" in objects[image_id].image.info:
                self._identify(objects[image_id])
        self._away |= gone
        self._left_out = dict(left_out)
        if objects != known:
            # at once, as other threads read it
            self._datastore.objects = objects
            try:
                self._update_datastore_file()
            except MONAILabelException as error:  # what is there can be listed all the same
                logger.warning("%s", error.msg)
        self._say()

    def _find_images(
        self, known: Objects, names: Mapping[str, str], unread: set[str], left_out: Mapping[str, list[str]]
    ) -> tuple[Objects, set[str]]:
        """The images that are there, without labels, and the ids of those that changed and can't be read or set aside now.

        Where another file took an image's place, what was known is set aside, in `known` too. `names` are the known paths.
        """
        ours = (os.path.basename(self._datastore_config_path), os.path.basename(self._lock_file))
        files = list(image_files(self._root, self._labels, ours, left_out, unread, self._formats))
        there_now = {name for name, _ in files}
        objects: Objects = {}
        stuck: set[str] = set()
        for name, stamp in files:
            stem, ext = self._to_id(name)
            image_id = stem.replace("/", "-")
            old = known.get(image_id)
            is_other = old is not None and names[image_id] != name
            # of files whose paths give one id, the one that has it keeps it
            if image_id in objects or (
                is_other and (names[image_id] in there_now or may_come_back(self._root, names[image_id], unread))
            ):
                left_out["with the id of another"].append(name)
                continue
            try:
                plain(image_id, "")
            except MONAILabelException:
                left_out["with too long a path or one with signs that a name can't have"].append(name)
                continue
            if old is None:
                old = ImageLabelModel(image=DataModel(info={"ts": int(time.time())}))
            else:
                try:
                    if is_another(old.image.info, self._root / name, stamp, not is_other):
                        old = known[image_id] = set_aside(image_id, old, self._labels)
                except OSError as error:
                    left_out[f"that changed and can't be read or set aside now ({error.strerror})"].append(name)
                    stuck.add(image_id)
                    continue
            info = {**old.image.info, "name": name, STAMP: stamp}
            if is_of_header_alone(old.image.info.get(STAMP, []), stamp):  # and so is its digest
                info.pop(DIGEST, None)
            objects[image_id] = ImageLabelModel(image=DataModel(ext=ext, info=info))
        return objects, stuck

    def _find_labels(self, objects: Objects, known: Objects, gone: set[str], left_out: Mapping[str, list[str]]) -> None:
        """Enter the labels of the images that are there, from their files; while these can't be read, as they are known."""
        unread_tags: set[str] = set()
        for tag, file in label_files(self._labels, left_out, unread_tags):
            image_id, ext = self._to_id(file.name)
            if image_id in self._away:
                continue
            if not ext or file.name.startswith(".") or image_id not in objects.keys() - gone:
                left_out["in labels that belong to no image"].append(f"{tag}/{file.name}")
                continue
            before = known[image_id].labels.get(tag) if image_id in known else None
            if before is None or before.info.get("name") != file.name:
                if tag in objects[image_id].labels:
                    continue
                before = None
            label = before or DataModel(ext=ext, info={"ts": int(time.time()), "name": file.name})
            try:
                label = self._whole(self._root / objects[image_id].image.info["name"], tag, file, label)
                if label is None:
                    left_out["labels that are broken, empty or of another image"].append(f"{tag}/{file.name}")
            except OSError as error:  # what is known of it stays
                left_out[labels_unread(error)].append(f"{tag}/{file.name}")
                label = before
            if label is not None:
                objects[image_id].labels[tag] = label
        for image_id in objects.keys() & known.keys() if unread_tags else ():
            stay = {t: label for t, label in known[image_id].labels.items() if unread_tags & {t, ALL_TAGS}}
            objects[image_id].labels.update(stay)

    @property
    def _root(self) -> Path:
        return Path(self._datastore.image_path())

    @property
    def _labels(self) -> Path:
        return Path(self._datastore.label_path(None))

    def _keep(
        self,
        image_id: str,
        labels: Mapping[str, tuple[str, dict[str, Any]]],
        image_info: Mapping[str, Any],
        whole: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if FINAL in labels and image_id in self._datastore.objects:
            self._identify(self._datastore.objects[image_id])
        super()._keep(image_id, labels, image_info, whole)

    def _identify(self, known: ImageLabelModel) -> None:
        """Enter by what an image's file is known again wherever it was copied to, as a reader says something about it."""
        info = known.image.info
        if STAMP in info and DIGEST not in info:
            with suppress(OSError):  # it changes: the next time
                info[DIGEST] = digest_at(self._root / info["name"], info[STAMP])

    def _whole(self, image: Path, tag: str, file: Path, label: DataModel) -> DataModel | None:
        """What is known of a label if its file is fit to be one; a reader's is read, once for every change.

        Raises:
            OSError: the file can't be read now.
        """
        stamp = stamp_of(file)
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

    def _reasons(self) -> dict[str, list[str]]:
        """The names of what is no study, by the reason."""
        reasons = {reason: list(names) for reason, names in self._left_out.items() if names}
        listed = set(self._listed())
        for image_id, obj in self._datastore.objects.items():
            if image_id not in listed | self._away:
                reasons.setdefault(f"named as {self._named(image_id)[0]}", []).append(obj.image.info["name"])
        return reasons

    def _say(self) -> None:
        from scripts.wording import some

        reasons = self._reasons()
        said = "; ".join(f"{len(names)} {reason} ({some(names)})" for reason, names in reasons.items())
        said = f"{len(self._listed())} studies in {self._datastore_path}. Not studies: {said or 'nothing'}."
        said = said.encode(errors="backslashreplace").decode()  # a name on the disk may be in another encoding
        if said != self._said:
            logger.info(said)
            self._said = said

    def _named(self, image_id: str) -> tuple[str | None, str]:
        from scripts.images.sequences import named_as

        channels = tuple(channel for channels in self.channels for channel in channels)
        return named_as(self._datastore.objects[image_id].image.info["name"], channels)

    def named(self, image_id: str) -> str | None:
        if plain(image_id, "image id") not in self._datastore.objects:
            self._look()
        return self._named(image_id)[0] if image_id in self._datastore.objects else None

    def taken_by(self, images: Sequence[str], modalities: Sequence[str]) -> list[str]:
        from scripts.images.formats import takes_pictures, takes_volumes

        pictures, volumes = takes_pictures(modalities), takes_volumes(modalities)
        files = [(image, str(self._file_of(image)).lower()) for image in images]
        return [image for image, file in files if (volumes if file.endswith(FORMATS) else pictures)]

    def _listed(self) -> list[str]:
        wanted = (None, *self.sequences)
        there = [i for i in self._datastore.objects if i not in self._away]
        return [i for i in there if not self.sequences or self._named(i)[0] in wanted]

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
        self._read_again()
        info = super().get_image_info(image_id)
        return {**info, "path": os.path.abspath(self._file_of(image_id))} if info else info

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        labeled = self.get_labeled_images()
        pairs = [{"image": self.get_image_uri(i), "label": self.get_label_uri(i, FINAL)} for i in labeled]
        if full_path:
            return pairs
        return [{k: os.path.relpath(p, self._root) for k, p in pair.items()} for pair in pairs]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """The path of a new zip of the images that a reader labelled, with their labels and what is known of them.

        Raises:
            MONAILabelException: INVALID_INPUT, there are none, or one can't be in an archive, see `archived`.
        """
        labeled = self.get_labeled_images()[: limit_cases or None]
        if not labeled:
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "No study has a label of a reader.")
        handle, path = tempfile.mkstemp(suffix=".zip")
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                for image_id in labeled:
                    # by their ids: files in different folders may have one name
                    for what, source in (
                        ("image", self.get_image_uri(image_id)),
                        ("label", self.get_label_uri(image_id, FINAL)),
                    ):
                        for name, part in archived(f"{what}/{image_id}", self._to_id(source)[1], source).items():
                            archive.write(part, name)
                known = self._datastore.model_dump(exclude={"base_path"})
                for image_id, of_image in known["objects"].items():
                    for tag, label in of_image["labels"].items():
                        label["info"] = self.get_label_info(image_id, tag)
                # not pydantic's JSON, see `Register`
                archive.writestr("metadata.json", json.dumps(known, default=str))
        except BaseException:
            os.unlink(path)
            raise
        return path

    @exclusively
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take in an image.

        Raises:
            MONAILabelException: INVALID_INPUT, it is no image file, or there is another image of that id.
        """
        name, ext = self._to_id(os.path.basename(image_filename))
        image_id = plain(image_id or name, "image id")
        if ext.lower() not in self._formats or ext.lower() == ".mhd" or not os.path.getsize(image_filename):
            formats = ", ".join(e for e in self._formats if e != ".mhd")  # which is a header alone
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"{image_id}: an image must be a file of {formats} that is not empty."
            )
        self._look()
        if image_id in self._datastore.objects:
            path = self._file_of(image_id)
            if path.is_file() and filecmp.cmp(image_filename, path, shallow=False):
                return image_id
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"There is another image {image_id!r} among the studies. Give this one another id, or remove that one first.",
            )
        return str(super().add_image(image_id, image_filename, image_info))

    @exclusively
    def remove_image(self, image_id: str) -> None:
        path = self._file_of(plain(image_id, "image id"))
        for tag in list(self._datastore.objects[image_id].labels):
            self.remove_label(image_id, tag)
        path.unlink(missing_ok=True)
        self._reconcile_datastore()

    def _sequences(self, image_id: str) -> dict[str, list[Candidate]]:
        from scripts.images.sequences import Candidate, in_order

        found: defaultdict[str, list[Candidate]] = defaultdict(list)
        for name in self._images_of(self._named(image_id)[1]):
            sequence = self._named(name)[0]
            if sequence:
                found[sequence].append(Candidate(name, 0, name))
        return {s: sorted(in_order(c), key=lambda one: one.place != image_id) for s, c in found.items()}

    def _images_of(self, case: str) -> list[str]:
        """The images of one study, by what their names have in common; all names are looked at once, not for each study."""
        objects = self._datastore.objects
        if self._cases[0] is not objects or self._cases[1] != len(objects):
            cases: defaultdict[str, list[str]] = defaultdict(list)
            for name in objects:
                cases[self._named(name)[1]].append(name)
            self._cases = (objects, len(objects), cases)
        return self._cases[2].get(case, [])
