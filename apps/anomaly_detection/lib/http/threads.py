"""Other routes in threads of their own: the loop stays free while they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from monailabel.endpoints import datastore
from monailabel.utils.others.generic import remove_file
from starlette.background import BackgroundTask

from lib.http.answers import without_paths
from lib.http.checks import check_answer, check_request

INFER_THREADS, OTHER_THREADS = 100, 100
"""So many requests may wait at once, for the networks, and for the DICOM server or a disk; the next ones queue."""
_limiters: dict[str, CapacityLimiter] = {}


def limiter(name: str, threads: int) -> CapacityLimiter:
    """Threads of their own: those that wait leave others to serve the viewers' pages."""
    if name not in _limiters:
        _limiters[name] = CapacityLimiter(threads)
    return _limiters[name]


def in_thread(
    endpoint: Callable[..., Coroutine[Any, Any, Any]], choice: tuple[str, str] | None
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """MONAI Label's endpoint in a thread; in the event loop it stops every other while it waits for a disk or the DICOM server.

    What it is given is checked first, and what it received is removed also after an error.
    """

    @wraps(endpoint)
    async def run(*args: Any, **kwargs: Any) -> Any:
        def checked() -> Any:
            check_request(endpoint, choice, kwargs)
            answer = asyncio.run(endpoint(*args, **kwargs))
            check_answer(endpoint, kwargs, answer)
            return answer

        try:
            result = await to_thread.run_sync(checked, limiter=limiter("other", OTHER_THREADS))
        except BaseException:
            if kwargs.get("background_tasks"):
                await kwargs["background_tasks"]()
            raise
        if endpoint is datastore.api_download_dataset:
            result.background = BackgroundTask(remove_file, result.path)
        return _told(result) if isinstance(result, dict | list) else result

    return run


def _told(result: Any) -> Any:
    """The state of tasks without paths in the lines of their logs, and a session without those of its files."""
    if isinstance(result, list):
        return [_told(task) for task in result]
    if not isinstance(result, dict):
        return result
    told = dict(result)
    if "details" in told:
        told["details"] = [without_paths(line) for line in told["details"]]
    if "session_info" in told:
        told["session_info"] = _told(told["session_info"])
    if "last_access_ts" in told:
        told |= {key: Path(told[key]).name for key in ("path", "image")}
    return told
