"""OHIF, as MONAI Label serves it, made to show radiographs too, and to ask nobody but this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse
from monailabel.endpoints import ohif

PICTURES = Path(__file__).with_name("ohif_pictures.js")
CONFIG = "app-config.js"
"""The script that OHIF's page loads first."""
POLICY = "default-src 'self' blob: data: 'unsafe-inline' 'unsafe-eval'"
"""What a browser may load for OHIF's pages: they name fonts of another site, which would learn who looks at images when."""
_served = ohif.get_ohif


def ohif_file(path: str) -> FileResponse:
    """A file of OHIF's, or its page, with `POLICY`."""
    answer = _served(path)
    if not Path(answer.path).is_file():
        raise HTTPException(404, "Resource NOT Found")
    answer.headers["Content-Security-Policy"] = POLICY
    return answer


def ohif_config() -> APIRouter:
    """A route for OHIF's configuration: MONAI Label's own, and behind it `PICTURES`."""
    router = APIRouter(tags=["Others"])

    @router.get(f"/ohif/{CONFIG}", include_in_schema=False)
    def config() -> Response:
        own = Path(_served(CONFIG).path).read_text("utf-8")
        return Response(f"{own}\n{PICTURES.read_text('utf-8')}", media_type="text/javascript")

    return router
