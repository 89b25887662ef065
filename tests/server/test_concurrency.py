"""Many clients at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import httpx2
import pytest

from kvflow.protocol import StepEvent
from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.store import MemoryStore, WorkflowKey, WorkflowRecord
from tests.server.workflow_bodies import cycle, started


class SuspendingStore(MemoryStore):
    """Lets others run in the middle of everything, as a store behind I/O does."""

    async def insert(self, record: WorkflowRecord) -> None:
        await asyncio.sleep(0)
        await super().insert(record)
        await asyncio.sleep(0)

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        await asyncio.sleep(0)
        await super().update(record, events)
        await asyncio.sleep(0)

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        await asyncio.sleep(0)
        found = await super().get(key)
        await asyncio.sleep(0)
        return found

    async def delete(self, record: WorkflowRecord) -> None:
        await asyncio.sleep(0)
        await super().delete(record)
        await asyncio.sleep(0)


@pytest.fixture
def service() -> Service:
    return build_service(ServiceSettings(), store=SuspendingStore(1000))


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=service.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


async def test_no_event_is_lost(http: httpx2.AsyncClient) -> None:
    await http.post("/v1/workflows", json=cycle())

    answers = await asyncio.gather(
        *(
            http.post(
                "/v1/workflows/w/events",
                json=[started("a0", f"{client}-{i}") for i in range(1 + client % 3)],
            )
            for client in range(60)
        )
    )

    assert {answer.status_code for answer in answers} == {200}
    versions = [answer.json()["version"] for answer in answers]
    assert len(set(versions)) == 60
    view = (await http.get("/v1/workflows/w")).json()
    assert view["version"] == max(versions) == 120
    assert view["agents"][0]["running"] == 120


async def test_one_of_many_creates_wins(http: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(http.post("/v1/workflows", json=cycle()) for _ in range(20)),
        *(http.post("/v1/workflows", json=cycle(agents=2)) for _ in range(20)),
    )

    statuses = [answer.status_code for answer in answers]
    assert statuses.count(201) == 1
    assert statuses.count(200) == 19
    assert statuses.count(409) == 20


async def test_engines_see_the_end_whatever_the_order(
    http: httpx2.AsyncClient, service: Service
) -> None:
    with service.streams.subscribe("e") as subscription:
        subscription.snapshot()
        await http.post("/v1/workflows", json=cycle())
        await asyncio.gather(
            *(http.post("/v1/workflows/w/events", json=started("a0")) for _ in range(20)),
            http.delete("/v1/workflows/w"),
            *(http.post("/v1/workflows", json=cycle()) for _ in range(3)),
            *(http.post("/v1/workflows/w/events", json=started("a1")) for _ in range(20)),
        )
        version = (await http.get("/v1/workflows/w")).json()["version"]
        make = await subscription.next_message()
        assert make is not None
        assert f'"version":{version},'.encode() in make()


async def test_workflows_do_not_wait_for_each_other() -> None:
    class StuckStore(SuspendingStore):
        async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
            if record.workflow_id == "stuck":
                await release.wait()
            await super().update(record, events)

    release = asyncio.Event()
    service = build_service(ServiceSettings(), store=StuckStore(10))
    transport = httpx2.ASGITransport(app=service.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as http:
        for name in ("stuck", "free"):
            await http.post("/v1/workflows", json=cycle(name))
        waiting = asyncio.create_task(http.post("/v1/workflows/stuck/events", json=started("a0")))
        await asyncio.sleep(0.01)

        answer = await http.post("/v1/workflows/free/events", json=started("a0"))

        assert answer.status_code == 200
        assert not waiting.done()
        release.set()
        assert (await waiting).json()["version"] == 1


async def test_a_service_shows_what_its_store_holds() -> None:
    store = MemoryStore(1000)
    first = build_service(ServiceSettings(), store=store)
    transport = httpx2.ASGITransport(app=first.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as http:
        for i in range(300):
            await http.post("/v1/workflows", json=cycle(f"w{i}"))

    second = build_service(ServiceSettings(), store=store)
    async with second.app.router.lifespan_context(second.app):
        with second.streams.subscribe("e") as subscription:
            assert subscription.snapshot().count(b'"workflow_id"') == 300


async def test_a_failing_store_leaves_everything_as_it_was(http: httpx2.AsyncClient) -> None:
    class FailingStore(MemoryStore):
        async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
            raise OSError("disk full")

    service = build_service(ServiceSettings(), store=FailingStore(10))
    transport = httpx2.ASGITransport(app=service.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as http:
        await http.post("/v1/workflows", json=cycle())
        with service.streams.subscribe("e") as subscription:
            subscription.snapshot()

            answer = await http.post("/v1/workflows/w/events", json=started("a0"))

            assert answer.status_code == 500
            assert subscription.pending == 0
        assert (await http.get("/v1/workflows/w")).json()["version"] == 0
