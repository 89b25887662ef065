"""A store that fails or hangs concerns the hints, never the call."""

from __future__ import annotations

import asyncio
from typing import Literal

import httpx2
import pytest

from kvflow.server import ServiceSettings
from kvflow.server.store import MemoryStore, StoreUnavailableError, WorkflowKey, WorkflowRecord
from tests.server.front_door.upstream import Upstream
from tests.server.running import PATIENCE_S, running_service


class _Away(MemoryStore):
    """Keeps nothing, and says so at once or never."""

    def __init__(self, how: Literal["fails", "hangs"]) -> None:
        super().__init__(10)
        self._how = how

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        if self._how == "hangs":
            await asyncio.Event().wait()
        raise StoreUnavailableError("the disk is gone")

    async def insert(self, record: WorkflowRecord) -> None:
        raise StoreUnavailableError("the disk is gone")


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_calls_go_on(upstream: Upstream, how: Literal["fails", "hangs"]) -> None:
    settings = ServiceSettings(engine_url=upstream.url)
    body = {
        **{"model": "whole", "messages": []},
        "agent_hints": {"workflow_id": "w", "agent_id": "a"},
    }
    with (
        running_service(settings, store=_Away(how)) as service,
        httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
    ):
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert len(upstream.bodies) == 1
