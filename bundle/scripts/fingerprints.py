"""Short hashes of data, code and settings, by which results are found again."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import monai
import numpy as np
import torch
from monai.transforms import Compose

from .bundle import bundle_version
from .device import default_device, fastest_precision
from .digests import code_digest, json_digest
from .sources import state

NO_SETTINGS = ("cache_dir", "filenames", "_tracing")
"""Attributes of transforms that change nothing of what they do: a place, and what MONAI's remember of their last call."""


def settings_of(thing: Any, _around: tuple[int, ...] = ()) -> Any:
    """What an object was made with, as JSON has it: its type and its attributes, deeply.

    Left out is what doesn't say what it does: the values of a network's parameters (their shapes stay), the state of random
    generators, and `NO_SETTINGS`. Of a device its type counts, of an optimizer its defaults.
    """
    if isinstance(thing, (Enum, np.generic)):
        thing = thing.value if isinstance(thing, Enum) else thing.item()
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (PurePath, complex, bytes)):
        return repr(thing)
    if id(thing) in _around:
        return "..."
    inside = (*_around, id(thing))
    if isinstance(thing, Mapping):
        return {str(k): settings_of(v, inside) for k, v in sorted(thing.items(), key=str) if k not in NO_SETTINGS}
    if isinstance(thing, (list, tuple)):
        return [settings_of(v, inside) for v in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(str(v) for v in thing)
    if isinstance(thing, torch.device):
        return thing.type
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        array = np.asarray(thing.detach().cpu() if isinstance(thing, torch.Tensor) else thing)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()[:16]]
    if isinstance(thing, CodeType):
        return [thing.co_code.hex(), list(thing.co_names), settings_of(thing.co_consts, inside)]
    if isinstance(thing, ModuleType):
        return thing.__name__
    if isinstance(thing, MethodType):
        return [settings_of(thing.__func__, inside), settings_of(thing.__self__, inside)]
    if isinstance(thing, (type, FunctionType)):
        name = f"{thing.__module__}.{thing.__qualname__}"
        unnamed = isinstance(thing, FunctionType) and "<" in thing.__qualname__
        return [name, _written_here(thing, inside)] if unnamed else name
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if isinstance(thing, torch.nn.Module):
        attributes: dict[str, Any] = {k: v for k, v in vars(thing).items() if k[0] != "_" and k != "training"}
        attributes |= dict(thing.named_children())
        attributes |= {k: list(v.shape) for k, v in thing.named_parameters(recurse=False)}
    elif isinstance(thing, torch.optim.Optimizer):
        attributes = thing.defaults
    elif isinstance(thing, partial):
        attributes = {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
    elif hasattr(thing, "__dict__"):
        attributes = vars(thing)
    else:  # such as a type of tensors, or a function of a library; an address says nothing
        return [name, re.sub(r" (at|of \w+ object at) 0x[0-9a-fA-F]+", "", repr(thing))]
    return [name, settings_of(attributes, inside)]


def _written_here(function: Any, around: tuple[int, ...]) -> Any:
    """What a function does that has no name of its own, such as a config's lambda, by which it could be told from others."""
    return settings_of([function.__code__, function.__defaults__, function.__kwdefaults__, _enclosed(function)], around)


def _enclosed(function: Any) -> list[Any]:
    """The values that a function takes from what is around it; None for one that has no value yet."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            found.append(None)
    return found


def _identity(path: str) -> list[Any]:
    """A file's path and its `sources.state`, so that one that was replaced in place is another one."""
    try:
        return [os.path.abspath(path), *state(path)]
    except OSError:
        return [os.path.abspath(path)]


def identified(thing: Any, key: str = "") -> Any:
    """JSON with the `_identity` of each path in it."""
    if isinstance(thing, Mapping):
        return {k: identified(v, k) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [identified(v, key) for v in thing]
    return _identity(thing) if key in ("image", "foreground", "mask") and isinstance(thing, str) else settings_of(thing)


def fingerprint(items: Any, preprocessing: Compose) -> str:
    """A short hash that changes with the items, with the files that they name and with what the preprocessing does to them.

    Args:
        items: JSON, such as datalists; strings that are ``image``, ``foreground`` or ``mask`` are paths.
        preprocessing: its settings count, deeply, and so do the code in ``images``, the versions of bundle and MONAI, and
            the precision that networks take on this machine.
    """
    made_by = [bundle_version(), monai.__version__, code_digest("images"), fastest_precision(default_device())]
    settings = settings_of(getattr(preprocessing, "transforms", preprocessing))
    return json_digest([identified(items), settings, made_by])[:16]
