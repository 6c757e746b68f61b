"""Errors as HTTP answers that say what to do, and tell no paths."""

from __future__ import annotations

import logging
import re

from fastapi import Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.exceptions import HTTPException as StarletteHTTPException

logger = logging.getLogger(__name__)

STATUS = {MONAILabelError.INVALID_INPUT: 400, MONAILabelError.SERVER_ERROR: 503}
_PATH = re.compile(
    r"""(?P<quote>['"])(?P<quoted>/[^'"\n]*/[^'"\n]*)(?P=quote)|(?<![\w.:/~%\]-])/(?:[^\s'"<>|:;,/]+/)+[^\s'"<>|:;,)]*"""
)
hidden_folders: list[str] = []


def without_paths(text: str) -> str:
    """The text with the names of files in place of their paths, and without a password in an address.

    A client knows names, not where this server keeps files.
    """
    text = re.sub(r"://[^/@\s]*@", "://", text)
    for folder in hidden_folders:  # they may hold spaces
        text = re.sub(rf"{re.escape(folder)}/(?:[^\s'\":;,/]+/)*", "", text)

    def name(found: re.Match[str]) -> str:
        quote = found["quote"] or ""
        return quote + (found["quoted"] or found[0]).rstrip("/").rpartition("/")[2] + quote

    return _PATH.sub(name, text)


async def answer(request: Request, error: Exception) -> Response:
    """The HTTP answer to an exception: 404 and 400 for the client's, 503 for what may be better later, 500 for our own."""
    from scripts.errors import out_of_memory

    if isinstance(error, StarletteHTTPException):
        if isinstance(error.detail, str):
            error.detail = without_paths(error.detail)
        return await http_exception_handler(request, error)
    if isinstance(error, RequestValidationError):  # without what was sent: it may be large, or no JSON
        return JSONResponse({"detail": [{k: e[k] for k in ("loc", "msg", "type")} for e in error.errors()]}, 422)
    if isinstance(error, MONAILabelException):
        logger.info("%s %s: %s", request.method, request.url.path, error.msg)
        known = isinstance(error, (ImageNotFoundException, LabelNotFoundException))
        return JSONResponse({"detail": without_paths(error.msg)}, 404 if known else STATUS.get(error.error, 500))
    if out_of_memory(error):
        return JSONResponse({"detail": "The server's memory was not enough. Try again when it has less to do."}, 503)
    message = f"The server failed ({type(error).__name__}: {error}). Its log says more."
    return JSONResponse({"detail": without_paths(message)}, 500)
