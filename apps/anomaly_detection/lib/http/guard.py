"""What is refused before anything reads it."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from urllib.parse import parse_qsl, urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.studies.names import plain

NAMES = {
    "image": "image id",
    "label": "label",
    "id": "id",
    "tag": "label tag",
    "session_id": "session id",
    "user": "user",
}
LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.|testclient$|localhost$")
MAX_TEXT = 2**20
"""Bytes of a body without a file: as JSON in memory they are fifty times as much, and parsed while all others wait."""
PAGES = re.compile(r"/|/docs|/ohif(/.*)?")
"""What a link on another site may open."""


class Guard:
    """Refuses, before anything reads the request, what MONAI Label would not: each with an HTTP error that says what to do.

    Clients from other machines, unless the server was started for them; web pages of other sites, which a browser on this
    machine may show, by their Origin and by the name under which they reached this server (DNS rebinding); names that hold a
    path; archives, whose content is not checked; bodies above a limit, which are read to their end but not kept, so that the
    client gets the answer.

    Args:
        app: the next ASGI application.
        host: the address that the server was started for; None: it serves its own machine only.
        max_bytes: the largest body of a request.
        allowed_hosts: names beside that address, and this machine's own, by which clients may call it.
        origins: other sites whose pages may use this server, such as ``https://viewer.example``.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str | None,
        max_bytes: int,
        allowed_hosts: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        self.app, self.remote, self.max_bytes, self.origins = app, host is not None, max_bytes, origins
        self.hosts = {"localhost", *(name.lower() for name in allowed_hosts)}
        self.every_address = host in ("0.0.0.0", "::")
        if host:
            self.hosts.add(socket.gethostname().lower() if self.every_address else host.lower())

    def _is_own(self, host: str) -> bool:
        """Whether this Host header, ``NAME[:PORT]``, names this server."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        # no page can take an address in place of a name, so any does where the server listens on all of them
        return address.is_loopback or name in self.hosts or self.every_address

    def _is_foreign(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Whether a page of another site sends this."""
        origin = headers.get("origin")
        if origin is not None:
            return origin not in self.origins and origin.partition("://")[2] != headers.get("host")
        if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
            return False
        opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return not (opened and scope["method"] == "GET" and PAGES.fullmatch(scope["path"]))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        client = (scope.get("client") or ("testclient",))[0]
        if not self.remote and not LOOPBACK.match(client):
            return 403, "This server answers its own machine only. Start it with --host ADDRESS to serve others."
        if not self._is_own(headers.get("host", "")):
            return 400, "This server doesn't answer to that name; see --conf allowed_hosts."
        if self._is_foreign(scope, headers):
            return 403, "Pages of other sites may not use this server; see --conf allowed_origins."
        if ".." in re.split(r"[/\\]", scope["path"]):
            return 400, "The path of a request holds no '..'."
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        for key, what in NAMES.items():
            if query.get(key):
                try:
                    plain(query[key], what)
                except MONAILabelException as error:
                    return 400, error.msg
        if scope["path"].startswith("/session") and query.get("uncompress", "").lower() in ("true", "1", "on", "yes"):
            return 400, "Archives are not unpacked; send the volume itself."
        return None

    def _most(self, scope: Scope, headers: dict[str, str]) -> int:
        """The largest body of this request."""
        if headers.get("content-type", "").lower().startswith("multipart/") or scope["path"].startswith("/proxy/"):
            return self.max_bytes
        return min(self.max_bytes, MAX_TEXT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refusal(scope, headers)
        length = headers.get("content-length", "0")
        most = self._most(scope, headers)
        too_large = f"The request is larger than the {most / 2**20:g} MiB that are allowed" + (
            "; see --conf max_upload_mb." if most == self.max_bytes else " for one without a file."
        )
        if not refusal and (not length.isdigit() or int(length) > most):
            refusal = 413, too_large
        if refusal:
            message: Message = {"more_body": True}
            while message.get("more_body") and message.get("type") != "http.disconnect":
                message = await receive()
            await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise HTTPException(413, too_large)
            return message

        await self.app(scope, limited, send)
