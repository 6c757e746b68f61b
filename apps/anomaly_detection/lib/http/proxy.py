"""The way of a viewer in the browser to the DICOM server: DICOMweb requests, and nothing else, pass through this server."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import AsyncIterator

import httpx
from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from starlette.background import BackgroundTask

_UID = r"(?=[0-9.]{1,64}(?:/|$))[0-9]+(?:\.[0-9]+)*"
_SERIES = rf"studies/{_UID}/series/{_UID}"
SEARCH = re.compile(rf"studies|series|instances|studies/{_UID}/(?:series|instances)|{_SERIES}/instances")
RETRIEVE = re.compile(
    rf"studies/{_UID}(?:/series/{_UID}(?:/instances/{_UID}(?:/frames/[0-9]+(?:,[0-9]+)*)?)?)?"
    r"(?:/(?:metadata|rendered|thumbnail|pixeldata|bulk(?:data)?(?:/[0-9A-Za-z]+)+))?"
)
STORE = re.compile(rf"studies(?:/{_UID})?")
"""The resources of DICOM PS3.18, chapter 10; bulk data as Orthanc and others name it."""
ASKED, BODY = (b"accept", b"accept-encoding"), (b"content-type", b"content-length")
ANSWERED = ("content-type", "content-length", "content-encoding", "cache-control", "etag", "last-modified", "warning")


def resource(method: str, path: str) -> str | None:
    """Where the DICOM server has what ``/proxy/dicom/PATH`` asks for, below its address; None: that is no DICOMweb request."""
    op, _, rest = path.partition("/")
    path = (rest if op in ("qido", "wado", "stow") else path).removesuffix("/")
    # by what is asked for, as OHIF also asks for metadata under "qido" and stores under "wado"
    kinds = [(STORE, settings.MONAI_LABEL_STOW_PREFIX)]
    if method == "GET":
        kinds = [(SEARCH, settings.MONAI_LABEL_QIDO_PREFIX), (RETRIEVE, settings.MONAI_LABEL_WADO_PREFIX)]
    for pattern, prefix in kinds:
        if pattern.fullmatch(path):
            return f"{prefix}/{path}" if prefix else path
    return None


def dicom_proxy(timeout: httpx.Timeout) -> APIRouter:
    """The route ``/proxy/dicom``, in place of MONAI Label's, which passes any path and drops the query.

    The DICOM server's password stays here; of the headers, those pass that say what the content is.

    Args:
        timeout: for the DICOM server.
    """
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    client = httpx.AsyncClient(
        auth=(user, password) if user and password else None,
        timeout=timeout,
        # as the requests package, which fetches the series
        verify=ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
        if os.environ.get("REQUESTS_CA_BUNDLE")
        else True,
    )
    router = APIRouter(tags=["Others"])

    @router.api_route("/proxy/dicom/{path:path}", methods=["GET", "POST"], include_in_schema=False)
    async def proxy(
        request: Request,
        path: str,
        user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER)),  # noqa: B008
    ) -> Response:
        target = resource(request.method, path)
        server = settings.MONAI_LABEL_STUDIES.rstrip("/")
        if target is None:
            return PlainTextResponse("This is no DICOMweb request.", 404)
        if not server.startswith(("http://", "https://")):
            return PlainTextResponse("The studies of this server are in a folder; there is no DICOM server.", 404)
        query = request.scope["query_string"].replace(b"#", b"%23")
        url = httpx.URL(f"{server}/{target}").copy_with(query=query or None)
        asked = dict(request.headers.raw)
        # of two lengths, the one in chunks is right
        passed = ASKED if request.method == "GET" else (*ASKED, *BODY[: 1 if b"transfer-encoding" in asked else 2])
        headers = {b"accept-encoding": b"identity"} | {k: asked[k] for k in passed if k in asked}
        content = request.stream() if request.method == "POST" else None
        try:
            answer = await client.send(
                client.build_request(request.method, url, headers=headers, content=content), stream=True
            )
        except httpx.TimeoutException as error:
            return PlainTextResponse(f"The DICOM server doesn't answer ({type(error).__name__}); try again.", 504)
        except httpx.HTTPError as error:
            return PlainTextResponse(f"The DICOM server can't be reached ({type(error).__name__}). Is it running?", 502)
        if answer.is_redirect or answer.status_code in (401, 403, 407):
            await answer.aclose()
            what = "sends elsewhere" if answer.is_redirect else "does not let this server in"
            return PlainTextResponse(f"The DICOM server {what} (status {answer.status_code}).", 502)
        return StreamingResponse(
            _raw(answer),
            answer.status_code,
            {k: v for k in ANSWERED if (v := answer.headers.get(k)) is not None},
            background=BackgroundTask(answer.aclose),
        )

    return router


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
