"""MONAI's command line, ``python -m monai.bundle run``: its options are checked, and what is wrong is said in one line."""

from __future__ import annotations

import difflib
import inspect
import io
import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import monai.bundle
from fire.inspectutils import GetFullArgSpec
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from .checks import check_as_typed
from .errors import say

FORMULAS = ("$", "@", "%")
"""What a config value begins with that MONAI evaluates."""


def check_command(argv: Sequence[str] | None = None) -> None:
    """Check the options of MONAI's command line against its config files: the first entry of a config's ``run``.

    From here on, what a user can mend ends the command with one line on stderr and exit status 1, Ctrl-C with one and 130. Does
    nothing when the config is run from Python.

    Args:
        argv: the command line; by default that of this process.

    Raises:
        ValueError: an option that no config file holds, with the nearest that is there; or a value of another type than
            the one that the config files give.
    """
    argv = sys.argv if argv is None else argv
    if not _is_command(argv):
        return
    sys.excepthook = say
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a file need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    texts, options = _options(argv)
    own = _own_options()
    if "config_file" not in options:  # it may be given by its place too, behind four others
        return
    config = ConfigParser.load_config_files(options["config_file"])
    tracking = options.get("tracking")
    if tracking is not None:
        settings = DEFAULT_EXP_MGMT_SETTINGS.get(tracking) if isinstance(tracking, str) else tracking
        config = {**(settings or ConfigParser.load_config_files(tracking))["configs"], **config}
    for name, value in options.items():
        if name not in own - {"override"} and name != "workflow_name":
            check_option(name, value, config, own, str(texts.get(name, value)))


def command_config(start: Collection[str] = ("run",), with_options: bool = True) -> dict[str, Any] | None:
    """The config of this process' MONAI command: `start` and what it uses; None if it is another.

    A reference to a number, a text or a list of those is replaced by it.

    Args:
        start: ids; those that are not in the config are left out.
        with_options: with the values of the options, and not as the config files have it.
    """
    _, options = _options(sys.argv) if _is_command(sys.argv) else ({}, {})
    if "config_file" not in options:
        return None
    parser = ConfigParser()
    parser.read_config(options["config_file"])
    if with_options:
        parser.update({name: value for name, value in options.items() if name not in _own_options()})
    config = parser.get()
    names, waiting = set[str](), [name for name in start if name in config]
    while waiting:
        name = waiting.pop()
        names.add(name)
        waiting += {n for n in _references(config[name]) if n in config} - names
    return {name: _filled_in(value, parser) for name, value in config.items() if name in names}


def _is_command(argv: Sequence[str]) -> bool:
    return Path(argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def _options(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options as they were typed, and their values with those of an ``args_file``."""
    # fire is pinned, and nothing but fire knows how it reads a command line
    texts = fire.core._ParseKeywordArgs(list(argv[2:]), GetFullArgSpec(monai.bundle.run))[0]
    given = {name: DefaultParseValue(text) for name, text in texts.items()}
    return texts, {**(ConfigParser.load_config_file(given["args_file"]) if "args_file" in given else {}), **given}


def _own_options() -> set[str]:
    return {*inspect.signature(monai.bundle.run).parameters, *inspect.signature(ConfigWorkflow).parameters}


def _references(value: Any) -> set[str]:
    """The first parts of the ids that a config value refers to."""
    if isinstance(value, str) and value.startswith(FORMULAS):
        return set(re.findall(r"[@%](\w+)", value))
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set[str]().union(*map(_references, values))


def _filled_in(value: Any, parser: ConfigParser) -> Any:
    """A config value in which what refers to a plain value is that value."""
    if isinstance(value, dict):
        return {k: _filled_in(v, parser) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled_in(v, parser) for v in value]
    if isinstance(value, str) and value.startswith("@") and value[1:] in parser:
        target = _filled_in(parser[value[1:]], parser)
        if not isinstance(target, dict) and not str(target).startswith(FORMULAS):
            return target
    return value


def check_option(
    name: str, value: Any, config: Mapping[str, Any], own: Collection[str] = (), text: str | None = None
) -> None:
    """Check an option against the config whose id it replaces.

    Args:
        name: an id.
        value: what it is to be.
        config: of all files, one over the other.
        own: options that are there beside.
        text: the value as it was typed.

    Raises:
        ValueError: there is no such id, with the nearest that is there; the value is of another type than the config's, or not
            read as it was typed; or the path of a folder is empty.
    """
    text = str(value) if text is None else text
    node: Any = config
    for part in ReferenceResolver.split_id(name.removeprefix("+")):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and "_target_" in node:
            return  # an argument of a component, which knows best what it takes
        else:
            raise ValueError(f"--{name}: there is no such option{_nearest(name, config, own)}")
    if value is None and node is not None:
        raise ValueError(f"--{name}: MONAI takes {text} as if it were not given; write '$None'.")
    if value == "" and name.endswith("_dir"):  # as of a variable that is not set: it would be the current folder
        raise ValueError(f"--{name}: must be the path of a folder, got an empty text; the current one is ./")
    if isinstance(value, str) and re.fullmatch(r"\$\{?[A-Z_][A-Z0-9_]*\}?(/.*)?", value):
        raise ValueError(
            f'--{name}: MONAI takes {text} for Python; the shell puts its variable in where it is "{text}".'
        )
    is_formula = isinstance(value, str) and value.startswith(FORMULAS)
    if not is_formula and any("#" in one for one in (text if isinstance(value, str) else "", *_plain_texts(value))):
        raise ValueError(
            f"--{name}: MONAI reads # as ::, so no path can hold it, got {text!r}; give a link of another name."
        )
    check_as_typed(name, text, value)
    # what takes the place of a component is checked by those that use it
    replaced = isinstance(node, dict) and "_target_" in node
    formula = any(isinstance(v, str) and v.startswith(FORMULAS) for v in (value, node))
    if not formula and not replaced and value is not None and (wrong := _why_not(node, value, text)):
        raise ValueError(f"--{name}: {wrong}")


def _plain_texts(value: Any) -> Iterator[str]:
    """The texts in a value that are no formulas."""
    if isinstance(value, str) and not value.startswith(FORMULAS):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from _plain_texts(one)


def _why_not(default: Any, value: Any, text: str) -> str | None:
    if isinstance(default, bool):
        return None if str(value).lower() in ("true", "false") else f"must be true or false, got {text!r}."
    if isinstance(default, (int, float)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if number else f"must be a number such as {default}, got {text!r}."
    if isinstance(default, str) and isinstance(value, bool):
        return f"must be a text such as {default!r}, got {value}, as of an option without a value."
    if isinstance(default, str) and isinstance(value, (int, float)):
        return f"must be a text such as {default!r}, and {text} is read as a number; of a path, write ./{text}"
    for kind, what in ((str, "a text"), (list, "a list"), (dict, "a group of options")):
        if isinstance(default, kind) and not isinstance(value, kind):
            return f"must be {what} such as {default!r}, got {text!r}."
    return None


def _nearest(name: str, config: Mapping[str, Any], own: Collection[str]) -> str:
    known = [*_ids(config), *own]
    # a group may have been left out: threshold for displayable_configs#threshold
    keys = {key.lower(): id_ for id_ in reversed(known) for key in (id_.rpartition("#")[2], id_)}
    near = difflib.get_close_matches(name.lower(), keys, n=1) or difflib.get_close_matches(
        name.lower().rpartition("#")[2], keys, n=1
    )
    return f"; did you mean --{keys[near[0]]}?" if near else "; the options are the names in the config files."


def _ids(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if not key.startswith("_"):
            yield prefix + key
            if isinstance(value, dict) and "_target_" not in value:
                yield from _ids(value, f"{prefix}{key}#")
