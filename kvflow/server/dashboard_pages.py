"""The dashboard at ``/``: files of this package, read once and served from memory.

The pages hold no data and need no key. What they show they get from the API, with the key of
whoever looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

__all__ = ["DASHBOARD_PATHS", "dashboard_routes"]

_TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    media_type: str
    etag: str


def _load() -> dict[str, _Asset]:
    """By path; ``index.html`` is ``/``."""
    assets = {}
    for file in files("kvflow.server").joinpath("dashboard").iterdir():
        media_type = _TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            path = "/" if file.name == "index.html" else f"/dashboard/{file.name}"
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            assets[path] = _Asset(content, media_type, etag)
    return assets


_ASSETS: Final = _load()
DASHBOARD_PATHS: Final = frozenset(_ASSETS)
"""To be open without a key."""


def dashboard_routes() -> APIRouter:
    """``/`` and what the page loads."""
    router = APIRouter(include_in_schema=False)

    for path, found in sorted(_ASSETS.items()):
        router.add_api_route(path, _serving(found), methods=["GET", "HEAD"])
    return router


def _serving(asset: _Asset) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        # Asked for again each time, so that a new version of the service is not shown by old pages.
        headers = {"ETag": asset.etag, "Cache-Control": "no-cache"}
        if asset.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)

    return serve
