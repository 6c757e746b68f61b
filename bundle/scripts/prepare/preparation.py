"""A datalist in the making: its items, what was left out and why, what was read so far, and the file."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..checks import check_number, is_true
from ..digests import json_digest
from ..files import write
from ..learning.datalists import FILES, checked, paths_of, real_path
from ..wording import some
from .counting import Item, described, label_counts
from .options import links_to_nothing
from .reads import Reads
from .splitting import SECTIONS, checked_fractions, read_split, split_subjects

OWN = ("prepared_by", "left_out", "passed_over", "digest")
"""What a file that was prepared holds beside its sections."""


class Preparation:
    """Collects a datalist's items and writes it, whole or not at all.

    Args:
        command: the layout's name.
        folder: what the items' paths are relative to.
        options: of the command, by which the file is known again.

    Raises:
        ValueError: there is such a file, of another command or with other options or changed since, and `overwrite` is not
            true; it can't be written; or an option that can't be.
    """

    def __init__(self, command: str, folder: Path, options: Mapping[str, Any]) -> None:
        output = options["output"]
        if not isinstance(output, str) or not output.lower().endswith(".json"):
            raise ValueError(f"--output must be the name of a .json file, got {output!r}.")
        self.output, self.root = Path(output), str(options["root"])
        _check_writable(self.output)
        self.base = Path(os.path.relpath(os.path.realpath(folder), os.path.realpath(self.output.parent))).as_posix()
        root = os.path.relpath(os.path.realpath(options["root"]), os.path.realpath(self.output.parent))
        kept = {k: v for k, v in options.items() if k not in ("output", "overwrite")} | {"root": root}
        self.made_by = json.loads(json.dumps({"command": command, "options": kept}))
        if not is_true(options["overwrite"], "overwrite"):
            self._refuse_another()
        self.fractions = checked_fractions(options["fractions"]) if "fractions" in options else [1.0, 0.0, 0.0]
        check_number("seed", options.get("seed", 0), 0, 2**63, whole=True)
        self.seed = int(options.get("seed", 0))
        self.split = read_split(str(options["split"])) if options.get("split") is not None else None
        if taken := {*(self.split or {}).values()} & {*OWN}:
            raise ValueError(f"{options['split']}: a split can't be called {' or '.join(sorted(taken))}.")
        self.items: list[tuple[Item, str | None]] = []
        self.left_out: dict[str, str] = {}
        self.passed_over: Counter[str] = Counter()
        self._images: dict[tuple[str, ...], str] = {}
        self._real_folder = cache(os.path.realpath)
        self.reads = Reads(self.output.with_name(self.output.name + ".read"))
        self._listings: dict[Path, frozenset[str]] = {}

    def _refuse_another(self) -> None:
        if not self.output.exists():
            return
        try:
            there = json.loads(self.output.read_bytes())
        except ValueError:
            there = None
        if not isinstance(there, dict) or there.get("prepared_by") != self.made_by:
            raise ValueError(
                f"{self.output}: is there already, and not from this command with these options; give another --output, or "
                "--overwrite true."
            )
        if there.pop(OWN[3], None) != json_digest(there):
            raise ValueError(
                f"{self.output}: may have been changed by hand since it was prepared; give another --output, or, to lose what "
                "was changed, --overwrite true."
            )

    def add(self, item: Item, section: str | None = None) -> None:
        """One image, with ``subject``; its paths are relative to the folder; `section` is the published one, if there is."""
        item = {k: self._relative(v) if k in FILES else v for k, v in item.items()}
        try:
            image = tuple(real_path(p, self._real_folder) for p in paths_of(checked(item, self.output)))
        except ValueError as error:
            self.damaged(str(item.get("image")), str(error))
            return
        if image in self._images:
            self.damaged(str(item["image"]), f"is the same file as {self._images[image]}.")
            return
        self._images[image] = str(item["image"])
        self.items.append((item, section))

    def _relative(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._relative(v) for v in value]
        return value if self.base == "." else f"{self.base}/{value}"

    def damaged(self, case: str, reason: str) -> None:
        """A case that can't be used: it is named in the output, with the reason."""
        self.left_out[case] = reason

    def passed(self, reason: str) -> None:
        """An image that is not wanted, such as a lateral view: counted by the reason."""
        self.passed_over[reason] += 1

    def names(self, folder: Path) -> frozenset[str]:
        """Of all that lies in a folder, but links to nothing, asked of the disk once; none where there is no such folder."""
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(e.name for e in os.scandir(folder) if not links_to_nothing(e))
            except OSError:
                self._listings[folder] = frozenset()
        return self._listings[folder]

    def write(self, expected: str) -> None:
        """Split by patient, write the file, and say what is in it.

        Args:
            expected: what the command looks for, for the message if nothing of it was found.

        Raises:
            ValueError: there is no item, or a subject is published in two splits.
        """
        sections = self._sections()
        chosen: defaultdict[str, list[Item]] = defaultdict(list, {name: [] for name in SECTIONS})
        for item, _ in self.items:
            chosen[sections[item["subject"]]].append(item)
        if not self.items:
            raise ValueError(f"{self.root}: nothing to list was found. {expected}{self._reasons()}")
        made_by, left_out, passed_over, digest = OWN
        content: dict[str, Any] = {
            made_by: self.made_by,
            **chosen,
            left_out: self.left_out,
            passed_over: self.passed_over,
        }
        content[digest] = json_digest(content)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        # an item a line, so that a person can read it
        parts = []
        for name, value in content.items():
            lines = ",\n".join("  " + json.dumps(v) for v in value) if isinstance(value, list) else ""
            text = f"[\n{lines}\n ]" if lines else json.dumps(value)
            parts.append(f" {json.dumps(name)}: {text}")
        write(self.output, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
        print(f"{self.output}:")
        for name, items in chosen.items():
            print("  " + (described(name, items) if items else f"{name}: none"))
        print(self._reasons().lstrip("\n"), end="\n" if self._reasons() else "")
        if chosen["training"] and not {0, 1} <= label_counts(chosen["training"]).keys():
            print("  Beware: a classifier needs healthy and diseased images to train on.")

    def person(self, case: str, name: str) -> str:
        """The subject of a case that a data set knows by two names; the CSV of the split may have either.

        Raises:
            ValueError: it has both, in two splits.
        """
        if self.split is not None and case != name and case in self.split:
            section = self.split.pop(case)
            if self.split.setdefault(name, section) != section:
                raise ValueError(f"{case} and {name} are one person, but the split has them in two.")
        return name

    def _sections(self) -> dict[str, str]:
        classes: defaultdict[str, set[int]] = defaultdict(set)
        given: dict[str, str] = {}
        for item, section in self.items:
            classes[item["subject"]] |= label_counts([item]).keys()
            if section and given.setdefault(item["subject"], section) != section:
                raise ValueError(
                    f"{item['image']}: {item['subject']} is published in {given[item['subject']]!r} and in {section!r}."
                )
        if self.split is None:
            return split_subjects({s: sorted(c) for s, c in classes.items()}, self.fractions, self.seed, given)
        for item, _ in self.items:
            if item["subject"] not in self.split:
                self.damaged(item["subject"], "is not in the CSV of the split")
        self.items = [(item, section) for item, section in self.items if item["subject"] in self.split]
        if missing := sorted(self.split.keys() - classes.keys()):
            print(f"Of the split's {len(self.split)} subjects, {len(missing)} were not found ({some(missing)}).")
        return self.split

    def _reasons(self) -> str:
        lines = [f"  passed over: {n} {reason}" for reason, n in self.passed_over.items()]
        lines += [f"  left out: {case}: {reason}" for case, reason in list(self.left_out.items())[:10]]
        if len(self.left_out) > 10:
            lines.append(f"  left out: {len(self.left_out) - 10} more; all are in the file under 'left_out'.")
        return "".join("\n" + line for line in lines)


def _check_writable(path: Path) -> None:
    """Before a data set is read for an hour."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the name of a file as --output.")
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{path}: can't be written ({error.strerror} in {folder}).") from error
