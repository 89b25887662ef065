"""A service with a front door before a test engine, both over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import pytest

from kvflow.server import ServiceSettings
from tests.server.front_door.upstream import Upstream, running_upstream
from tests.server.running import PATIENCE_S, RunningService, running_service


@dataclass(frozen=True, slots=True)
class Door:
    upstream: Upstream
    service: RunningService
    http: httpx2.Client

    def chat(
        self, model: str = "whole", headers: dict[str, str] | None = None, **body: object
    ) -> httpx2.Response:
        content = {"model": model, "messages": [], **body}
        return self.http.post("/v1/chat/completions", json=content, headers=headers)


@pytest.fixture(scope="package")
def upstream_server() -> Iterator[Upstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(upstream_server: Upstream) -> Upstream:
    upstream_server.reset()
    return upstream_server


@pytest.fixture
def door(upstream: Upstream) -> Iterator[Door]:
    settings = ServiceSettings(engine_url=upstream.url, sweep_interval_s=0.05)
    with (
        running_service(settings) as service,
        httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
    ):
        yield Door(upstream, service, http)
