"""Engines are remembered over a restart."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.sightings import Sightings
from kvflow.server.store import MemoryStore
from tests.server.conftest import FakeClock


async def test_an_engine_is_remembered_for_a_week(service: Service, clock: FakeClock) -> None:
    store = MemoryStore(10)
    sightings = Sightings(store, service.streams, clock)
    with service.streams.subscribe("gpu-1"), service.streams.subscribe("gpu-2"):
        await sightings.look()
        assert sightings.away() == []
    clock.now_s += 10
    with service.streams.subscribe("gpu-1"):
        await sightings.look()
        assert [one.engine_id for one in sightings.away()] == ["gpu-2"]

    again = Sightings(store, service.streams, clock)
    await again.load()
    assert {one.engine_id for one in again.away()} == {"gpu-1", "gpu-2"}
    assert again.away()[0].last_seen_unix_s == 1000.0
    clock.now_s += 8 * 24 * 3600
    await again.look()
    assert again.away() == []
    assert await store.notes("engine") == {}


async def test_the_oldest_go_first(service: Service, clock: FakeClock) -> None:
    store = MemoryStore(10)
    sightings = Sightings(store, service.streams, clock)
    for i in range(1005):
        clock.now_s += 1
        with service.streams.subscribe(f"e{i}"):
            await sightings.look()
    notes = await store.notes("engine")
    assert len(notes) == 1000
    assert "e4" not in notes
    assert "e5" in notes


def test_it_shows_who_has_not_come_back(tmp_path: Path) -> None:
    settings = ServiceSettings(database=str(tmp_path / "w.db"), sweep_interval_s=0.01)
    service = build_service(settings)
    with TestClient(service.app) as client:
        with service.streams.subscribe("gpu-1"):
            while not client.get("/v1/engines").json()["engines"]:
                pass
            assert client.portal is not None
            # Until it has been written down; the test's own timeout ends the wait otherwise.
            while not client.portal.call(service.store.notes, "engine"):
                pass
        assert client.get("/v1/engines").json()["away"][0]["engine_id"] == "gpu-1"

    with TestClient(build_service(settings).app) as client:
        (away,) = client.get("/v1/engines").json()["away"]
        assert away["engine_id"] == "gpu-1"
