"""``python -m scripts.prepare COMMAND --root DIR --output datalist.json``, a command a layout."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from typing import Any

import fire
from fire.inspectutils import GetFullArgSpec
from fire.parser import DefaultParseValue

from ..checks import check_as_typed
from ..errors import say
from .arrays import arrays
from .brain_mr import brain_mr
from .brats import brats
from .chexpert import chexpert
from .folder import folder
from .lgg import lgg
from .merge import merge
from .msd_brain import msd_brain
from .nih import nih

COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command for command in (brats, msd_brain, lgg, brain_mr, chexpert, nih, arrays, folder, merge)
}


def check_options(arguments: list[str]) -> None:
    """Refuse what a command does not take before it runs; fire itself would say so after an hour's work.

    Raises:
        ValueError: an unknown command or option, with the nearest that is there, a value without an option, or one that is not
            read as it was typed.
    """
    if not arguments or arguments[0].startswith("-") or "--help" in arguments or "-h" in arguments:
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise ValueError(f"{name}: there is no such command; the commands are {', '.join(COMMANDS)}.")
    spec: Any = GetFullArgSpec(COMMANDS[name])
    # fire is pinned, and nothing but fire knows how it reads a command line
    given, unknown, values = fire.core._ParseKeywordArgs(rest, spec)
    options = spec.args + spec.kwonlyargs
    for option in unknown[:1]:
        near = difflib.get_close_matches(option.lstrip("-").split("=")[0].replace("-", "_"), options, n=1)
        hint = f"did you mean --{near[0]}?" if near else f"the options are {', '.join('--' + o for o in options)}."
        raise ValueError(f"{option}: {name} has no such option; {hint}")
    for value in values[:1]:
        raise ValueError(f"{value}: belongs to no option; a list is written without spaces, such as t1,flair.")
    for option, text in given.items():
        check_as_typed(option, text, DefaultParseValue(text))


if __name__ == "__main__":
    sys.excepthook = say
    check_options(sys.argv[1:])
    fire.Fire(COMMANDS, name="scripts.prepare")
