"""The folders of results: written whole or not at all, and nothing in them is ever removed that this program did not write."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from filelock import FileLock, Timeout

from ..digests import digest_of, source_digest
from ..files import replacing, write
from ..ranks import of_first
from ..wording import some
from .records import FILES, MADE_BY, RECORD, identify, intact, paths_in, read_record, strangers_in

MAX_NAME = 120
"""Bytes; leaves room on file systems that encrypt names, which take 143."""


class Results:
    """The folders of volumes in one output folder, and the summary of them all.

    Args:
        output_dir: made when there is something to write.
        recipe: the digest of all that results depend on besides their input.
        overwrite: compute again what was computed before.

    Each volume has a folder with its files and `RECORD`. Several runs may write into one output folder at once. Of several
    ranks of a run, the first chooses the names and writes the summary for all.
    """

    interval = 30.0
    """Seconds, at least, from one summary to the next while volumes are computed."""

    def __init__(self, output_dir: str, recipe: str, overwrite: bool = False) -> None:
        if not isinstance(output_dir, str) or not output_dir:
            raise ValueError(f"output_dir must be a path, got {output_dir!r}; of a number, write ./{output_dir}")
        self.output_dir = Path(output_dir)
        self.recipe = recipe
        self.overwrite = overwrite
        self._lock = FileLock(self.output_dir / ".summary.lock")
        self._table = _csv([])
        self._part: Path | None = None
        self._next = 0.0
        self._outdated: list[Path] = []

    def prepare(self, items: Sequence[dict[str, Any]]) -> None:
        """Give every item the name of its folder, and make sure that all can be written; called before anything is computed.

        A name that another input's results have already is made longer by the names of the folders that the input lies in.
        An image whose results are there under another name, as it was run by itself and now by its folder, keeps that one.

        Raises:
            ValueError: with a line for each file or folder that is in the way.
            OSError: nothing can be written in `output_dir`.
        """
        for item, name in zip(items, of_first(lambda: self._named(items)), strict=True):
            item["name"] = name
        self._open()

    def _named(self, items: Sequence[dict[str, Any]]) -> list[str]:
        problems = self._summary_problems()
        if self.output_dir.exists() and not self.output_dir.is_dir():
            problems = [f"{self.output_dir}: is a file; give another --output_dir."]
        inputs = {
            parent: path
            for item in items
            for key in FILES
            for path in paths_in(item, key)
            for place in (Path(os.path.abspath(path)), Path(path).resolve())
            for parent in (place, *place.parents)
        }
        known = self._known()
        taken: set[str] = set()
        renamed, kept = list[str](), list[str]()
        for item in items:
            item["name"] = wanted = _safe(item["name"])
            # a digest is asked for only where there is one to compare: to read all images may take hours
            records = known.get(_places(item), [])
            held = _digests(item) if records else []
            before = [r["name"] for r in records if r.get("image_sha256") == held]
            item["name"], problem = self._choose(item, taken, before)
            if item["name"] != wanted:
                (kept if item["name"] in before else renamed).append(f"{wanted} to {item['name']}")
            taken.add(item["name"].casefold())
            folder = self.output_dir / item["name"]
            if problem is None and folder.exists() and folder.resolve() in inputs:
                problem = f"holds the input {inputs[folder.resolve()]}"
            if problem is not None and not self.done(item):
                problems.append(f"{folder}: {problem}; move it away, or give another --output_dir.")
        if problems:
            more = [f"... and {len(problems) - 20} more."] if len(problems) > 20 else []
            raise ValueError("\n".join(["nothing was computed, as this would be overwritten:", *problems[:20], *more]))
        if renamed:
            print(f"Named otherwise, as the name is another image's: {some(renamed)}.")
        if kept:
            print(f"Named otherwise, as the image has results of that name already: {some(kept)}.")
        return [item["name"] for item in items]

    def _known(self) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        """The records of what was run of each place of an image, whatever it was called and held then."""
        known: defaultdict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for record in self.records() if self.output_dir.is_dir() else ():
            if paths := paths_in(record, "image"):
                known[tuple(paths)].append(record)
        return known

    def _summary_problems(self) -> list[str]:
        path, wrong = self.output_dir / "summary.json", "can't be read as one of this version"
        try:
            ours = json.loads(path.read_text("utf-8")).get("made_by") == MADE_BY
        except FileNotFoundError:
            ours = True
        except NotADirectoryError:
            return []
        except (OSError, ValueError, AttributeError):
            ours = False
        if ours and self.output_dir.is_dir():
            with self._lock if path.exists() else nullcontext():  # of another run, which may write both
                ours = self._csv_is_ours()
            if not ours:
                path, wrong = path.with_suffix(".csv"), "is not as it was written by this program"
        return [] if ours else [f"{path}: {wrong}; move it away, or give another --output_dir."]

    def _csv_is_ours(self) -> bool:
        """Whether ``summary.csv`` is missing, or holds what was written beside ``summary.json`` and no note of a reader's."""
        path = self.output_dir / "summary.csv"
        try:
            there = path.read_bytes()
        except OSError:
            return not path.exists()
        written: bytes | None = None
        try:
            written = _csv(json.loads(path.with_suffix(".json").read_text("utf-8"))["volumes"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass
        # a run that was killed between the two files left the table of the records, as they were when this one began
        if there in (written, self._table) or there == _csv(self.records()):
            self._table = there
        return there == self._table

    def _open(self) -> None:
        """Make the hidden folder that this run writes in, and remove those of runs that were killed."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with self._lock:
            for left in self.output_dir.glob(".run-*.part"):
                self._remove(left)
            self._part = Path(tempfile.mkdtemp(prefix=".run-", suffix=".part", dir=self.output_dir))
            self._alive = FileLock(self._part / "lock")
            self._alive.acquire()
            for folder in self._outdated:
                record = read_record(folder)
                if record and record["status"] == "failed" and os.listdir(folder) == [RECORD]:
                    shutil.rmtree(folder)

    def _remove(self, left: Path) -> None:
        """Remove what a run left behind; leave what a living one needs, or what is not ours.

        Older results come back that were moved aside when it was stopped between two renames.
        """
        if left.is_symlink() or not left.is_dir() or not (left / "lock").is_file():
            return
        if not {entry.name for entry in os.scandir(left)} <= {"lock", "volume", "old"}:
            return
        try:
            with FileLock(left / "lock", timeout=0):  # its run lives as long as this is locked
                record = read_record(left / "old")
                if record and not (self.output_dir / record["name"]).exists():
                    os.replace(left / "old", self.output_dir / record["name"])
                elif record and strangers_in(left / "old", record):
                    return
                shutil.rmtree(left)
        except Timeout:
            pass

    def close(self) -> None:
        """Write the summary, once all ranks are done, and remove what this run no longer needs."""
        if self._part is None:
            return
        part, self._part = self._part, None
        with self._lock:
            self._alive.release()
            self._remove(part)
        idist.barrier()
        if idist.get_rank() == 0:
            self.compose()
            with self._lock:
                ours = self._csv_is_ours()
            if not ours:
                path = self.output_dir / "summary.csv"
                print(f"{path}: was changed meanwhile and stays as it is; summary.json holds all volumes.")
        idist.barrier()  # a rank that fails from here on ends the others

    def _choose(self, item: Mapping[str, Any], taken: set[str], before: Sequence[str]) -> tuple[str, str | None]:
        """The name of an item's folder, and what is wrong with that; `before` names the results that its image has already."""
        names = [name for name in _names(item) if name.casefold() not in taken]
        others = [name for name in before if name.casefold() not in taken and name not in names]
        states = {name: self._state(name, item) for name in [*names, *others]}
        same = [name for name, state in states.items() if state == "same"]
        # a failure is no result: where there are both, the image was not there for a while
        same.sort(key=lambda name: (read_record(self.output_dir / name) or {}).get("status") == "failed")
        if same:
            self._outdated += [self.output_dir / name for name in same[1:]]
            return same[0], self._in_the_way(self.output_dir / same[0])
        for name in names:
            if states[name] != "other":
                return name, None if states[name] == "free" else states[name]
        n = 2
        while True:
            name = f"{names[-1] if names else item['name']}-{n}"
            if name.casefold() not in taken and (state := self._state(name, item)) != "other":
                return name, None if state in ("free", "same") else state
            n += 1

    def _in_the_way(self, folder: Path) -> str | None:
        record = read_record(folder)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return "must not be written"
        strangers = strangers_in(folder, record) if record else []
        return f"holds {some(strangers)}, which is not as it was written by this program" if strangers else None

    def _state(self, name: str, item: Mapping[str, Any]) -> str:
        """What lies there: "free", "same" (results of this input), "other" (of another one), or what is wrong with it."""
        folder = self.output_dir / name
        if not folder.is_symlink() and not folder.exists():
            return "free"
        if folder.is_symlink() or not folder.is_dir():
            return "is not a folder of results"
        record = read_record(folder)
        if record is None:
            held = sorted(os.listdir(folder))
            return f"holds {some(held)}, which this program did not write" if held else "free"
        return "same" if self._is_of(record, item) else "other"

    def _is_of(self, record: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
        """Whether a record is of an item's image, wherever that lies; under `overwrite`, whatever that path held before.

        Results of what a path held once are not replaced by those of what it holds now: scripts copy one patient's image
        after the other to one path.
        """
        digests = _digests(item)
        if digests and None not in digests and digests == record.get("image_sha256"):
            return True
        return (self.overwrite or record["status"] == "failed") and self._is_at(record, item)

    @staticmethod
    def _is_at(record: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
        places = _places(item)
        return places == tuple(paths_in(record, "image")) and (bool(places) or record["name"] == item["name"])

    def done(self, item: dict[str, Any]) -> bool:
        """Whether an item's results are there, whole, and of the same input and recipe. To be asked before it is computed."""
        identify(item)
        folder = self.output_dir / item["name"]
        record = None if self.overwrite else read_record(folder)
        return (
            record is not None
            and record["status"] == "ok"
            and record.get("recipe_digest") == self.recipe
            and record.get("input_digest") == item["input_digest"]
            and intact(folder, record)
        )

    def new_folder(self) -> Path:
        """An empty folder for the files of the next volume, for `place`."""
        assert self._part is not None, "prepare comes first"
        folder = self._part / "volume"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def place(self, item: dict[str, Any], folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
        """Put a volume's files, in the folder that `new_folder` gave, in the place of its older ones; return its whole record.

        Should that place have been taken meanwhile, by another run or by someone's hand, the next name is.
        """
        assert self._part is not None, "prepare comes first"
        whole: dict[str, Any] = {"made_by": MADE_BY, "name": item["name"]}
        for key in (key for key in FILES if item.get(key) is not None):
            paths = [os.path.abspath(p) for p in paths_in(item, key)]
            whole[key] = paths if isinstance(item[key], list) else paths[0]
        whole |= {key: item[key] for key in ("spacing", "image_sha256", "input_digest") if key in item}
        whole |= {"recipe_digest": self.recipe, **record}
        whole["files"] = {path.name: digest_of(path) for path in sorted(folder.iterdir())}
        with self._lock:
            for n in itertools.count(2):
                # before the older results are moved: the disk may be full
                (folder / RECORD).write_text(json.dumps(whole, indent=2), "utf-8")
                if self._clear(self.output_dir / whole["name"], item):
                    break
                whole["name"] = f"{item['name']}-{n}"
            item["name"] = whole["name"]
            os.replace(folder, self.output_dir / whole["name"])
            shutil.rmtree(self._part / "old", ignore_errors=True)
        if idist.get_rank() == 0 and time.monotonic() >= self._next:
            self.compose()
        return whole

    def _clear(self, target: Path, item: Mapping[str, Any]) -> bool:
        """Move an item's older results aside; False if the place is not theirs alone."""
        assert self._part is not None
        state = self._state(target.name, item)
        if state == "free" and target.exists():
            target.rmdir()
        if state != "same":
            return state == "free"
        old = self._part / "old"
        os.replace(target, old)
        if self._in_the_way(old) is None:
            return True
        os.replace(old, target)
        return False

    def records(self) -> list[dict[str, Any]]:
        """The records of all volumes in the output folder, of this run and of others, in the order of their names."""
        found = []
        for folder in sorted(self.output_dir.iterdir()):
            if not folder.name.startswith(".") and folder.is_dir() and (record := read_record(folder)) is not None:
                found.append({**record, "name": folder.name, "folder": str(folder)})
        return found

    def compose(self) -> None:
        """Write ``summary.json`` and ``summary.csv`` from the records of all volumes in the output folder.

        A table that a reader changed while volumes were computed stays as it is.
        """
        start = time.monotonic()
        with self._lock:  # else a run that read fewer records could write last
            records = self.records()
            volumes = [{k: v for k, v in r.items() if k not in ("made_by", "files")} for r in records]
            content = {"made_by": MADE_BY, "warning": "Research software, not for clinical use.", "volumes": volumes}
            path = self.output_dir / "summary.json"
            with replacing(path) as summary:
                summary.write_text(json.dumps(content, indent=2), "utf-8")
                if self._csv_is_ours():
                    write(path.with_suffix(".csv"), _csv(records))
        now = time.monotonic()
        self._next = now + max(self.interval, 20 * (now - start))


def _csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    columns = ["name", "slice", "status", "assessed", "score", "p_diseased", "error", "warnings"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({**record, "slice": "volume", "warnings": " ".join(record.get("warnings", []))})
        for row in record.get("slices", []):
            writer.writerow({"name": record["name"], **row})
    return text.getvalue().encode(errors="backslashreplace")


def _safe(name: str) -> str:
    """One visible folder, inside the output folder, that every file system takes and that is no file of ours."""
    name = re.sub("[\ud800-\udfff]", "_", name)  # a file's name need not be text
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    name = re.sub(r'[\x00-\x1f<>:"|?*]', "_", "-".join(parts)).lstrip(". ").rstrip(". ") or "volume"
    if name.casefold() in ("summary.json", "summary.csv", "summary.json.part", "summary.csv.part"):
        name = f"volume-{name}"
    if len(name.encode()) > MAX_NAME:
        short = name.encode()[: MAX_NAME - 17].decode(errors="ignore")
        name = f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def _places(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Where an item's image lies, as a record has it."""
    return tuple(os.path.abspath(path) for path in paths_in(item, "image"))


def _digests(item: Mapping[str, Any]) -> list[str | None]:
    """What an item's image holds, as a record has it. Its files are read."""
    return [source_digest(path) for path in paths_in(item, "image")]


def _names(item: Mapping[str, Any]) -> Iterator[str]:
    """The names that an item's folder may have: its own, and that behind the names of the folders its image lies in."""
    name = item["name"]
    yield name
    for path in paths_in(item, "image")[:1]:
        folders = list(Path(os.path.abspath(path)).parts[1:-1])
        # of a folder's inputs, the name tells some of them already
        told = max((n for n in range(1, len(folders) + 1) if name.startswith("-".join([*folders[-n:], ""]))), default=0)
        folders = folders[: len(folders) - told]
        for n in range(1, min(len(folders), 4) + 1):
            yield _safe("-".join([*folders[-n:], name]))
