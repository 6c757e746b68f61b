"""The fields of requests, checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from monailabel.endpoints import activelearning, batch_infer, scoring, train
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.utils.app import app_instance

from lib.studies.names import batch_images
from lib.tasks.flags import FLAGS, flag

CHECK_SUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9A-Fa-f]*")
MAX_TASK = 100_000
"""Characters of a task's request: Linux takes no longer argument of a command than 128 KiB."""
MAX_DEPTH = 50
"""Of lists and objects in one another: readers of JSON give up at some hundreds."""
CHOICES = {
    activelearning: ("strategy", "_strategies"),
    scoring: ("method", "_scoring_methods"),
    train: ("model", "_trainers"),
    batch_infer: ("model", "_infers"),
}
"""What a request names in each part of MONAI Label, and where the app keeps those that exist."""


def json_object(text: str, name: str) -> dict[str, Any]:
    """What a form's field holds.

    Raises:
        MONAILabelException: INVALID_INPUT, it is no JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"{name} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT,
            f'{name} must be a JSON object such as {{"threshold": 0.1}}, got {text[:50]}.',
        )
    as_json(value, name)
    return value


def as_json(value: Any, name: str) -> str:
    """The value as JSON that every program reads; Python's own reader takes more than that.

    Raises:
        MONAILabelException: INVALID_INPUT, a number in it is infinite or none, a text is no Unicode, such as half an emoji, or
            it is nested more deeply than `MAX_DEPTH`.
    """

    def refuse(what: str) -> MONAILabelException:
        return MONAILabelException(MONAILabelError.INVALID_INPUT, f"{name} {what}.")

    level = [value]
    for _ in range(MAX_DEPTH):
        level = [v for part in level if isinstance(part, dict | list) for v in _within(part)]
    if level:
        raise refuse(f"holds lists or objects that are nested more than {MAX_DEPTH} deep")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise refuse("holds a text that is no Unicode") from error
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise refuse("holds a number that is not finite") from error


def _within(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def check_choice(choice: tuple[str, str], given: dict[str, Any]) -> None:
    """See to it that a request names what exists, and sets nothing that decides which code runs.

    Args:
        choice: of `CHOICES`.
        given: the arguments of the route.

    Raises:
        MONAILabelException: INVALID_INPUT, it doesn't.
    """
    name, parts = choice
    tasks = getattr(app_instance(), parts)
    known = list(tasks)
    params = given.get("params") or {}
    own = {task: params.get(task) or {} for task in known}
    for task, values in own.items():
        if not isinstance(values, dict):
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"{task} must be an object of options, got {values!r:.60}."
            )
    for values in (params, *own.values()):
        _check_task(values)
    if len(as_json(params, "the request")) > MAX_TASK:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"The request of a task has at most {MAX_TASK} characters."
        )
    if "images" in params:
        batch_images(params["images"])
    # the body's have the last word
    for values in (given, params):
        if name in values and values[name] not in known:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"There is no {name} {values[name]!r}; there are {', '.join(known) or 'none'}.",
            )
    if choice == CHOICES[train]:
        for task in [given[name]] if name in given else known:
            tasks[task].check({**own[task], **params})


def _check_task(request: dict[str, Any]) -> None:
    """MONAI Label begins a process with this: one option is a folder whose code it imports, another one its environment.

    It says nothing of values that it can't use until that process ends, or fails on them here.
    """
    for name in FLAGS:
        flag(request, name)
    for name in ("model", "device"):
        if not isinstance(request.get(name) or "", str):
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"{name} must be a name, got {request[name]!r:.60}."
            )
    for name in ("max_batch_size", "max_workers"):
        if not isinstance(request.get(name, 0), int):
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"{name} must be a whole number, got {request[name]!r:.60}."
            )
    if "bundle_path" in request:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, "bundle_path is not allowed; the bundle is chosen when the server starts."
        )
    gpus = request.get("gpus")
    if gpus is not None and not (isinstance(gpus, str) and re.fullmatch(r"[\w,-]*", gpus)):
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f'gpus must be "all" or numbers such as "0,1", got {gpus!r}.'
        )
