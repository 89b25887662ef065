"""The route ``/v1/kv_hints``."""

from __future__ import annotations

from fastapi import APIRouter

from kvflow.server.identity import RequestIdentity
from kvflow.server.kv_hints.actions import KVHints
from kvflow.server.kv_hints.envelope import KVHintsAnswer, KVHintsEnvelope
from kvflow.server.openapi import problems

__all__ = ["kv_hint_routes"]


def kv_hint_routes(hints: KVHints) -> APIRouter:
    """``/v1/kv_hints``."""
    router = APIRouter(tags=["front door"])

    @router.post("/v1/kv_hints", responses=problems(400, 413, 415, 422))
    async def post_kv_hints(envelope: KVHintsEnvelope, who: RequestIdentity) -> KVHintsAnswer:
        """Tell which agents' prefixes to keep, fetch or give up. Every action is answered."""
        return await hints.apply(envelope, who.namespace)

    return router
