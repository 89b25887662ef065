"""A store that fails or hangs concerns the hints, never the call."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import httpx2
import pytest

from kvflow.server import ServiceSettings
from kvflow.server.store import MemoryStore, StoreUnavailableError, WorkflowKey, WorkflowRecord
from tests.server.front_door.upstream import Upstream
from tests.server.running import PATIENCE_S, running_service

KV_HINTS = {
    **{"protocol_version": "0.1", "message_id": "m"},
    "actions": [
        {"action_id": "1", "action_type": "Pin", "action_version": "0.1", "payload": {"ttl_s": 5}}
    ],
}

How = Literal["fails", "hangs", "is broken"]


class _Away(MemoryStore):
    """Keeps nothing, and says so at once, or never, or in a way that nobody expects."""

    def __init__(self, how: How) -> None:
        super().__init__(10)
        self._how = how

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        if self._how == "hangs":
            await asyncio.Event().wait()
        if self._how == "is broken":
            raise ValueError("what is this?")
        raise StoreUnavailableError("the disk is gone")

    async def insert(self, record: WorkflowRecord) -> None:
        raise StoreUnavailableError("the disk is gone")


@pytest.mark.parametrize("hints", [{}, {"kv_hints": KV_HINTS}])
@pytest.mark.parametrize("how", ["fails", "hangs", "is broken"])
def test_calls_go_on(upstream: Upstream, how: How, hints: dict[str, Any]) -> None:
    settings = ServiceSettings(engine_url=upstream.url)
    body = {
        **{"model": "whole", "messages": []},
        "agent_hints": {"workflow_id": "w", "agent_id": "a"},
        **hints,
    }
    with (
        running_service(settings, store=_Away(how)) as service,
        httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
    ):
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        ignored = json.loads(answer.headers["x-kvflow-hints"]).get("ignored", {})
        assert ("kv_hints" in ignored) == bool(hints)
    assert len(upstream.bodies) == 1
