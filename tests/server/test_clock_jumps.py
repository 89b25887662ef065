"""The machine's clock is set while the service runs: deadlines are told by another one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from kvflow.server import ServiceSettings, build_service
from tests.server.workflow_bodies import cycle, finished, started

YEAR_S = 365 * 24 * 3600.0


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S])
def test_a_set_clock_neither_ends_nor_prolongs_a_workflow(
    store: str, jump_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = "none" if store == "memory" else str(tmp_path / "kvflow.db")
    settings = ServiceSettings(database=database, sweep_interval_s=0.01)
    with TestClient(build_service(settings).app) as client:
        assert client.post("/v1/workflows", json=cycle(ttl_s=300)).status_code == 201

        real_time = time.time
        monkeypatch.setattr(time, "time", lambda: real_time() + jump_s)
        time.sleep(0.1)  # for some sweeps

        assert 200 < client.get("/v1/workflows/w").json()["expires_in_s"] <= 300
        assert client.post("/v1/workflows/w/events", json=started("a0")).status_code == 200
    with TestClient(build_service(settings).app) as client:
        if store == "memory":
            return
        # A start afterwards goes on from where the clock of the database stood.
        assert 200 < client.get("/v1/workflows/w").json()["expires_in_s"] <= 300
        answer = client.post("/v1/workflows/w/events", json=finished("a0"))
        assert answer.json()["version"] == 2
