"""A chore that fails does not keep the others from being done."""

from __future__ import annotations

import httpx2
import pytest

from kvflow.server import ServiceSettings
from kvflow.server.stream import EngineStreams
from tests.server.running import eventually, running_service
from tests.server.workflow_bodies import cycle


def test_workflows_expire_though_hints_do_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: EngineStreams) -> None:
        raise ZeroDivisionError("for the test")

    monkeypatch.setattr(EngineStreams, "expire_hints", fails)
    with running_service(ServiceSettings(sweep_interval_s=0.02)) as running:
        answer = httpx2.post(f"{running.url}/v1/workflows", json=cycle("w", ttl_s=0.1))
        assert answer.status_code == 201
        eventually(lambda: "w" not in str(running.service.streams.keys()))
    assert "for the test" in caplog.text
