"""What in a bundle's configs reaches outside MONAI, torch, ignite and the bundle's own scripts.

A config can run any code. ``python -m scripts.reach [FOLDER]`` lists what does, to judge a bundle before it runs.
Nothing of the bundle is run or imported. Its scripts are code as any other, and are to be read.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from configparser import ConfigParser as IniParser
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent

from .bundle import bundle_root

PACKAGES = ("ignite", "monai", "torch")
INWARD = (
    *(f"ignite.{room}" for room in ("distributed.auto", "distributed.utils", "engine", "handlers", "metrics")),
    *(f"monai.{room}" for room in ("data", "engines", "handlers", "inferers", "losses", "metrics", "networks")),
    *(f"monai.{room}" for room in ("optimizers", "transforms", "utils", "visualize")),
    *(f"torch.{room}" for room in ("amp", "autograd.grad_mode", "functional", "nn", "optim", "random", "utils.data")),
    *(f"torch.{name}" for name in ("Tensor", "arange", "cat", "cuda.device_count", "cuda.is_available", "device")),
    *(f"torch.{name}" for name in ("eye", "full", "linspace", "ones", "stack", "tensor", "where", "zeros")),
)
"""What of these packages a config may name, by where it is defined."""
OUTWARD = (
    *(f"ignite.handlers.{name}_logger" for name in ("clearml", "mlflow", "neptune", "polyaxon", "visdom", "wandb")),
    *(
        "ignite.distributed.utils.spawn",
        "monai.data.dataset.CSVDataset",
        "monai.data.iterable_dataset.CSVIterableDataset",
    ),
    *("monai.data.torchscript_utils", "monai.handlers.clearml_handlers", "monai.handlers.mlflow_handler"),
    *("monai.losses.perceptual", "monai.networks.nets.efficientnet", "monai.networks.nets.milmodel"),
    *("monai.networks.nets.resnet.get_pretrained_resnet_medicalnet", "monai.networks.nets.torchvision_fc"),
    *("monai.networks.nets.transchex", "monai.networks.trt_compiler", "monai.utils.misc.run_cmd", "monai.utils.module"),
)
"""What of that fetches from elsewhere, sends there, imports by name, reads code from files or starts programs."""
PLAIN = (
    "abs",
    "bool",
    "dict",
    "float",
    "int",
    "len",
    "list",
    "max",
    "min",
    "range",
    "round",
    "sorted",
    "str",
    "sum",
    "tuple",
)
"""What of Python's own an expression may use."""
OWN_PATH = {"_target_": "site.addsitedir", "sitedir": "@bundle_root"}
"""The one way out that every bundle with scripts takes: its own folder onto Python's path."""
FETCHES = "may fetch, or run other code"
MODULE = "gives a module, and with it all that the module imports"
LOGGING = r"\((sys\.std(out|err),?)?\)"
"""What ``logging.conf`` may give to a handler, which Python evaluates."""


def outward(folder: str | Path) -> list[str]:
    """What reaches outside, one line each: the file, the id in it, what stands there and where it leads.

    Raises:
        ValueError: there are no configs in the folder.
    """
    configs = Path(folder) / "configs"
    files = sorted(p for p in configs.glob("*") if p.suffix in (".json", ".yaml", ".yml") and p.stem != "metadata")
    if not files:
        raise ValueError(f"{configs}: there are no configs in it.")
    nodes = [(path, *node) for path in files for node in _nodes(ConfigParser.load_config_file(path))]
    # configs are laid over each other, so that any of them can say which folder that is
    is_own = all(node == "." for _, id_, node in nodes if id_.lstrip("+~") == "bundle_root")
    found = []
    for path, id_, node in nodes:
        if not (is_own and node == OWN_PATH):
            why = _why(node, configs.parent / "scripts")
            if why:
                what = node.get("_target_") if isinstance(node, dict) else node
                found.append(f"{path.name}: {id_}: {what!r} {why}")
    return found + [line for path in sorted(configs.glob("*.conf")) for line in _logging(path)]


def _nodes(node: Any, id_: str = "") -> Iterator[tuple[str, Any]]:
    yield id_, node
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _nodes(value, f"{id_}#{key}" if id_ else str(key))


def _why(node: Any, scripts: Path) -> str | None:
    if isinstance(node, dict) and "_target_" in node:
        fetched = any(str(key).startswith("pretrained") and value for key, value in node.items())
        return _leads_out(_full_name(node), scripts) or (FETCHES if fetched else None)
    if isinstance(node, str) and node.startswith("$"):
        return _expression(node[1:], scripts)
    if isinstance(node, str) and re.match(r"%.*\.(json|ya?ml)\b", node):
        return "reads another file"
    return None


def _full_name(node: dict[str, Any]) -> str:
    """A component's name with its module, which MONAI finds for its own."""
    try:
        return str(ConfigComponent(node).resolve_module_name())
    except (RuntimeError, ValueError):  # there are several of that name, or it is no name
        return str(node["_target_"])


def _leads_out(name: str, scripts: Path) -> str | None:
    """Why a dotted name leads outside; None if it doesn't."""
    root, *rest = name.split(".")
    if any(part.startswith("_") for part in rest):
        return "reaches into what is private"
    if root == "scripts":
        return _in_scripts(scripts, rest)
    if root not in PACKAGES:
        return f"uses {root}"
    thing: Any = locate(name)
    if thing is None:
        return "isn't there"
    where = thing.__name__ if inspect.ismodule(thing) else f"{getattr(thing, '__module__', None) or root}.{rest[-1]}"
    if where.split(".")[0] not in PACKAGES:
        return f"uses {where.split('.')[0]}"
    if inspect.ismodule(thing):
        return MODULE
    # numbers, their types, and what a tensor can do itself
    of_tensor = where == name == f"torch.{rest[-1]}" and hasattr(torch.Tensor, rest[-1])
    plain = of_tensor or isinstance(thing, (torch.dtype, float, int))
    return None if plain or (_within(where, INWARD) and not _within(where, OUTWARD)) else FETCHES


def _within(name: str, rooms: Sequence[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def _in_scripts(scripts: Path, parts: list[str]) -> str | None:
    """Why ``scripts.parts`` leads outside; None for a class or function that a module defines and doesn't import."""
    for n in range(len(parts), -1, -1):
        module = scripts.joinpath(*parts[:n])
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if file.is_file():
            if n == len(parts):
                return MODULE
            tree = ast.parse(file.read_text("utf-8")).body
            own = {d.name for d in tree if isinstance(d, (ast.ClassDef, ast.FunctionDef))}
            if parts[n] in own:
                return None
            break
    return "isn't defined in the bundle's scripts"


def _expression(text: str, scripts: Path) -> str | None:
    try:
        tree = ast.parse(re.sub(r"[@%][\w#:]+", "_id", text).strip())
    except SyntaxError:
        return "is no expression"
    inside = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for node in ast.walk(tree):
        why = None
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            why = next(filter(None, (_leads_out(module + alias.name, scripts) for alias in node.names)), None)
        elif isinstance(node, ast.keyword) and str(node.arg).startswith("pretrained"):
            why = None if getattr(node.value, "value", True) in (False, None) else FETCHES
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            why = "reaches into what is private"
        elif isinstance(node, (ast.Attribute, ast.Name)) and id(node) not in inside:
            name = ast.unparse(node)
            if re.fullmatch(r"[\w.]+", name) and name.split(".")[0] != "_id" and name not in PLAIN:
                why = _leads_out(name, scripts)
        if why:
            return why
    return None


def _logging(path: Path) -> Iterator[str]:
    """Python evaluates what a logging config says of handlers and formatters."""
    ini = IniParser(interpolation=None)
    ini.read_string(path.read_text("utf-8"))
    for section in ini.sections():
        for key, value in ini.items(section):
            wrong = key == "class" and value not in ("StreamHandler", "logging.Formatter")
            if wrong or (key in ("args", "kwargs") and not re.fullmatch(LOGGING, value)):
                yield f"{path.name}: {section}: {key} = {value} is evaluated by Python"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.reach", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", default=bundle_root(), help="a bundle's; by default this one")
    folder = parser.parse_args().folder
    try:
        found = outward(folder)
    except ValueError as error:
        sys.exit(f"ERROR: {error}")
    print("\n".join(found) or f"{folder}: nothing in the configs reaches outside MONAI, torch, ignite and its scripts.")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
