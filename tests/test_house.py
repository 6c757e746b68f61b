"""The house: imports point one way, files are small, and what configs and docstrings name is there."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from monai.bundle.config_item import ConfigComponent

import scripts

ROOT = Path(__file__).resolve().parent.parent
BUNDLE, APP = ROOT / "bundle", ROOT / "apps" / "anomaly_detection"
BELOW: dict[str, set[str]] = {
    "method": set(),
    "explain": {"method"},
    "images": {"method"},
    "dicom": {"images"},
    "learning": {"images", "method"},
    "judging": {"images", "method", "learning"},
    "prepare": {"images", "method", "learning"},
    "running": {"images", "method", "learning", "judging", "dicom"},
}
"""The rooms of bundle/scripts, and the rooms that each may import; all may import what lies beside the rooms."""
NEVER = ("apps", "lib", "main", "monailabel", "serve")
"""What no script may import: the app and MONAI Label."""
MOST_LINES, MEDIAN_LINES = 400, 120


@dataclass(frozen=True)
class Import:
    """What a file imports: the dotted name of a module, or of something in one, and where that is said."""

    target: str
    where: str


def imports(root: Path, path: Path, code: str) -> Iterator[Import]:
    """All imports of a file under `root`, those within functions too; relative ones are made absolute."""
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(code)):
        where = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from (Import(".".join([*base, alias.name]), where) for alias in node.names)


def module(root: Path, target: str) -> str | None:
    """The module of `root` that a dotted name is, or lies in; None if it is another package's."""
    parts = target.split(".")
    for n in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:n])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:n])
    return None


def room(target: str) -> str | None:
    """The room of a dotted name in scripts; None for what lies beside the rooms."""
    name = target.split(".")[1] if target.count(".") else ""
    return name if (BUNDLE / "scripts" / name).is_dir() and name else None


def why_not(source: str | None, target: str) -> str | None:
    """Why a file in the room `source` (None: beside the rooms) may not import `target`, or None if it may."""
    if target.split(".")[0] in NEVER:
        return "scripts know no app"
    to = room(target) if target.split(".")[0] == "scripts" else source
    if to == source or to is None:
        return None
    if source is None:
        return f"what lies beside the rooms imports no room, but {to}"
    return None if to in BELOW[source] else f"{source} imports {to}"


def files(folder: Path) -> list[Path]:
    """The modules in a folder."""
    return sorted(folder.rglob("*.py"))


@cache
def graph(root: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Of every module in `folder` the modules of `root` that it imports, and where."""
    found: dict[str, dict[str, str]] = {}
    for path in files(folder):
        own = module(root, ".".join(path.relative_to(root).with_suffix("").parts))
        assert own is not None
        own = own.removesuffix(".__init__")
        edges = found.setdefault(own, {})
        for one in imports(root, path, path.read_text("utf-8")):
            target = module(root, one.target)
            if target is not None and target != own and not own.startswith(f"{target}."):
                edges.setdefault(target, one.where)
    return found


def test_every_room_is_known() -> None:
    """A new room says in `BELOW` what it may import, and stands in the map that the docstring of scripts is."""
    rooms = {path.parent.name for path in (BUNDLE / "scripts").glob("*/__init__.py")}
    assert rooms == set(BELOW) == set(re.findall(r"^- ``(\w+)``", scripts.__doc__ or "", re.MULTILINE))


def test_the_rooms_lie_above_each_other() -> None:
    """`BELOW` itself has no circle."""
    TopologicalSorter(BELOW).prepare()


def test_imports_point_one_way() -> None:
    """By file and line."""
    wrong = [
        f"{one.where}: {why}"
        for path in files(BUNDLE / "scripts")
        for one in imports(BUNDLE, path, path.read_text("utf-8"))
        if (why := why_not(room(".".join(path.relative_to(BUNDLE).with_suffix("").parts)), one.target))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "code", "wrong"),
    [
        ("method/x.py", "from ..images.masks import load_mask", "method imports images"),
        ("method/x.py", "def f():\n    import scripts.running.report", "method imports running"),
        ("images/x.py", "from scripts.learning import datasets", "images imports learning"),
        ("explain/x.py", "from .. import images", "explain imports images"),
        ("weights.py", "from .method.sampler import encode", "what lies beside the rooms imports no room, but method"),
        ("running/x.py", "from monailabel.interfaces import app", "scripts know no app"),
        ("running/x.py", "from lib.models import finding", "scripts know no app"),
        ("judging/x.py", "from ..method import maps\nfrom ..weights import load_weights\nimport torch", None),
        ("method/x.py", "from .. import HEALTHY\nfrom . import sampler\nfrom ..checks import check_number", None),
    ],
)
def test_a_wrong_import_is_found(path: str, code: str, wrong: str | None) -> None:
    where = BUNDLE / "scripts" / path
    found = [why_not(path.split("/")[0] if "/" in path else None, i.target) for i in imports(BUNDLE, where, code)]
    assert [why for why in found if why] == ([wrong] if wrong else [])


@pytest.mark.parametrize(("root", "folder"), [(BUNDLE, BUNDLE / "scripts"), (APP, APP / "lib")], ids=["scripts", "app"])
def test_no_module_imports_itself_by_way_of_others(root: Path, folder: Path) -> None:
    edges = graph(root, folder)
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        steps = [edges[a].get(b, f"{a} -> {b}") for a, b in zip(circle, circle[1:], strict=False)]
        pytest.fail(f"{' -> '.join(circle)}: {', '.join(steps)}")


def test_files_are_small() -> None:
    """Half of them are read in a minute, and none is a book."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for folder in (BUNDLE / "scripts", APP)
        for path in files(folder)
        if path.name != "__init__.py"
    }
    assert median(lengths.values()) < MEDIAN_LINES
    assert [name for name, lines in lengths.items() if lines > MOST_LINES] == []


def nodes(value: Any) -> Iterator[Any]:
    """A config's values, from the outermost in."""
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


CONFIGS = sorted(path for path in (BUNDLE / "configs").glob("*.json") if path.stem != "metadata")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_a_config_names_is_there(path: Path) -> None:
    """Every `_target_`, and every script that a ``$`` expression names, can be imported."""
    values = list(nodes(json.loads(path.read_text("utf-8"))))
    named = {ConfigComponent(v).resolve_module_name() for v in values if isinstance(v, dict) and "_target_" in v}
    expressions = [v for v in values if isinstance(v, str) and v.startswith("$")]
    named |= {name for text in expressions for name in re.findall(r"\b(?:scripts|monai)(?:\.\w+)+", text)}
    assert {name for name in named if not is_there(name)} == set()


def is_there(name: Any) -> bool:
    """Whether a dotted name is a module's, or that of something in one."""
    parts = str(name).split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_a_name_that_is_not_there_is_found() -> None:
    assert is_there("scripts.method.maps.anomaly_map") and is_there("torch.nn.Conv2d")
    assert (
        not is_there("scripts.method.maps.no_map") and not is_there("scripts.no_room.x") and not is_there("no_package")
    )


NAMED = re.compile(r"(?<!`)`([a-z_]\w*(?:\.\w+)+)`(?!`)")
"""A reference in a docstring or comment, such as `method.maps.anomaly_map`."""


@pytest.mark.parametrize("path", files(BUNDLE / "scripts"), ids=lambda path: str(path.relative_to(BUNDLE / "scripts")))
def test_what_a_docstring_refers_to_is_there(path: Path) -> None:
    """From the scripts' folder, or from the file's own room: `maps.anomaly_map` within ``method``."""
    own = ".".join(path.relative_to(BUNDLE).parent.parts)
    named = set(NAMED.findall(path.read_text("utf-8")))
    assert {name for name in named if not any(map(is_there, (f"scripts.{name}", f"{own}.{name}", name)))} == set()
