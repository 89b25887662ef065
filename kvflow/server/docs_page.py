"""``/docs``, where the API can be tried: FastAPI's page with a content policy of its own.

The page loads Swagger UI from a CDN and has one inline script. The policy names that script by its
hash, so no other runs.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse

__all__ = ["docs_routes"]

_CDN: Final = "https://cdn.jsdelivr.net"
_INLINE_SCRIPT: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def docs_routes(title: str) -> APIRouter:
    """``/docs``."""
    router = APIRouter(include_in_schema=False)
    page = bytes(
        get_swagger_ui_html(
            openapi_url="/openapi.json", title=title, swagger_favicon_url="data:,"
        ).body
    ).decode()
    hashes = " ".join(
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
        for script in _INLINE_SCRIPT.findall(page)
    )
    policy = (
        f"default-src 'none'; script-src {_CDN} {hashes}; style-src {_CDN} 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return router
