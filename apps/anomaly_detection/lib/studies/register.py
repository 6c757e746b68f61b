"""What is known of the studies: read and changed whole, by one process at a time."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from pydantic import BaseModel

logger = logging.getLogger(__name__)


def stamp_of(path: Path) -> list[Any]:
    """Size and time of change (ns) of a file, and a pair of them for each file of voxels that it names.

    Another content has another stamp. `state` of the bundle is the same where all files are there.

    Raises:
        OSError: one of them is not there, or can't be read.
    """
    from scripts.sources import data_files

    states = [os.stat(file) for file in (str(path), *data_files(str(path)))]
    first, *others = [[status.st_size, status.st_mtime_ns] for status in states]
    return [*first, *others]


def sync(path: Path) -> None:
    """Wait until a file is on the disk: what is renamed before may be empty after a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _check_places(datastore: LocalDatastoreModel) -> None:
    """See to it that what is known leads to no file beside the studies.

    Raises:
        ValueError: it does.
    """
    names = [datastore.images_dir, datastore.labels_dir]
    for image_id, obj in datastore.objects.items():
        names += [image_id, obj.image.ext, *obj.labels, *(label.ext for label in obj.labels.values())]
    if elsewhere := [name for name in names if "/" in name or name == ".."]:
        raise ValueError(f"{elsewhere[0]!r} leads elsewhere")


def _read(text: str) -> LocalDatastoreModel:
    """What is known, from JSON as `json` writes it: pydantic's own reader refuses half an emoji, and deep lists.

    Raises:
        ValueError: it is none, or it leads elsewhere.
        RecursionError: it is nested too deeply.
    """
    datastore: LocalDatastoreModel = LocalDatastoreModel.model_validate(json.loads(text))
    _check_places(datastore)
    return datastore


def exclusively(method: Callable[..., Any]) -> Callable[..., Any]:
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


def unwritable(error: OSError) -> str:
    """A sentence that says so of the studies' disk, and why."""
    return f"The studies' disk can't be written to ({error.strerror or type(error).__name__})."


class Register(LocalDatastore):
    """MONAI Label's file of what is known of the studies, beside their own files.

    What is written is complete beside its place before it is renamed to it: a full disk or a kill leaves the old or the new.
    """

    _version_read: tuple[int, int, int] | None = None
    """Of the file that says what is known of the studies."""

    @exclusively
    def _read_again(self) -> None:
        """Read what another process wrote; never in the middle of a change, which an older content would undo."""

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        path = Path(self._datastore_config_path)
        try:
            with path.open(encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                version = status.st_ino, status.st_mtime_ns, status.st_size
                if version == self._version_read:
                    return
                datastore = _read(file.read())
        except FileNotFoundError:
            return
        except (ValueError, RecursionError) as error:
            kept = path.with_name(f"{path.name}.{time.time_ns()}.broken")
            os.replace(path, kept)
            logger.error(
                "%s can't be read (%s). It is kept as %s; scores, and what was entered about images, are gone until they are "
                "made or entered again.",
                path,
                error,
                kept,
            )
            return
        datastore.base_path = self._datastore_path
        self._datastore, self._version_read = datastore, version

    def _content_of(self, objects: Mapping[str, ImageLabelModel]) -> str:
        """What is known, as JSON, with these of the images."""
        known = {**vars(self._datastore), "objects": objects}
        del known["base_path"]
        # not pydantic's own dictionaries: to copy what is known of many studies takes longer than to write it
        return json.dumps(known, default=lambda part: vars(part) if isinstance(part, BaseModel) else str(part))

    def _staged_info(self, changed: str | None) -> Path:
        part = Path(f"{self._datastore_config_path}.part")
        objects = self._datastore.objects
        try:
            content = self._content_of(objects)
            # what the next process can't read, it would set aside, with all that is known
            _read(content if changed is None else self._content_of({changed: objects[changed]}))
        except (ValueError, RecursionError) as error:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"This can't be kept ({error}). Nothing was stored."
            ) from error
        part.write_text(content, encoding="utf-8")
        sync(part)
        return part

    def _publish_info(self, part: Path) -> None:
        status = part.stat()
        os.replace(part, self._datastore_config_path)
        self._version_read = status.st_ino, status.st_mtime_ns, status.st_size

    def _update_datastore_file(self, lock: bool = True) -> None:
        self._replace({}, lambda parts: None)

    def _replace(
        self,
        writers: Mapping[Path, Callable[[Path], Any]],
        change: Callable[[Mapping[Path, Path]], None],
        changed: str | None = None,
    ) -> None:
        """Write files and change what is known of the studies: all of it, or nothing.

        Args:
            writers: what writes a file, by the file's place.
            change: changes what is known; it is given the places of the new files while they lie aside.
            changed: the id of the one image of which it does; the others need not be checked again. None is any.

        Raises:
            MONAILabelException: SERVER_ERROR, the disk is full or can't be written to.
        """
        parts = {place: place.with_name(f".part.{place.name}") for place in writers}
        info = Path(f"{self._datastore_config_path}.part")
        try:
            for place, write in writers.items():
                place.parent.mkdir(parents=True, exist_ok=True)
                write(parts[place])
                sync(parts[place])
            change(parts)
            self._staged_info(changed)
            for place, part in parts.items():
                os.replace(part, place)
            self._publish_info(info)
        except OSError as error:
            raise MONAILabelException(
                MONAILabelError.SERVER_ERROR,
                f"{unwritable(error)} Nothing was stored.",
            ) from error
        finally:
            for part in (*parts.values(), info):
                with suppress(OSError):  # what could not be written may not be removed either: too long a name
                    part.unlink()
