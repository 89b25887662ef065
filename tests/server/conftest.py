"""The service in process, with a clock that only moves when told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from kvflow.server import Service, ServiceSettings, build_service


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServiceSettings.model_fields:
        monkeypatch.delenv(f"KVFLOW_{name.upper()}", raising=False)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> Service:
    # The background sweep stays out of the way; tests call sweep() or look at a workflow.
    return build_service(ServiceSettings(sweep_interval_s=3600), clock=clock)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(service.app) as client:
        yield client
