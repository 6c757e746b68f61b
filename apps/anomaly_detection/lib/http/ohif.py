"""OHIF, as MONAI Label serves it, made to show radiographs too."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response
from monailabel.endpoints.ohif import get_ohif

PICTURES = Path(__file__).with_name("ohif_pictures.js")
CONFIG = "app-config.js"
"""The script that OHIF's page loads first."""


def ohif_config() -> APIRouter:
    """A route for OHIF's configuration: MONAI Label's own, and behind it `PICTURES`."""
    router = APIRouter(tags=["Others"])

    @router.get(f"/ohif/{CONFIG}", include_in_schema=False)
    def config() -> Response:
        own = Path(get_ohif(CONFIG).path).read_text("utf-8")
        return Response(f"{own}\n{PICTURES.read_text('utf-8')}", media_type="text/javascript")

    return router
