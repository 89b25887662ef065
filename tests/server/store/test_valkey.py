"""Two services on one real Valkey server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from kvflow.errors import EnvironmentProblemError
from kvflow.protocol import Delta, Snapshot, WorkflowSteps
from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.store.place import masked, open_store
from kvflow.server.store.valkey import ValkeyStore
from tests.server.store.servers import ValkeyServer, valkey_server
from tests.server.workflow_bodies import cycle, finished, record, started

PATIENCE_S = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    with valkey_server(tmp_path) as server:
        yield server


class Replica:
    def __init__(self, service: Service, http: httpx2.AsyncClient) -> None:
        self.service = service
        self.http = http


@pytest.fixture
async def replicas(server: ValkeyServer) -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(2):
            settings = ServiceSettings(database=server.address, sweep_interval_s=0.05)
            service = build_service(settings)
            await stack.enter_async_context(service.app.router.lifespan_context(service.app))
            transport = httpx2.ASGITransport(app=service.app)
            http = httpx2.AsyncClient(transport=transport, base_url="http://service")
            found.append(Replica(service, await stack.enter_async_context(http)))
        yield found


class Engine:
    """What an engine knows, which is connected to one replica."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.workflows: dict[str, WorkflowSteps] = {}
        self.versions: dict[str, list[int]] = {}

    async def read(self) -> None:
        with self._service.streams.subscribe("e") as subscription:
            make = subscription.snapshot
            while make is not None:
                data = make().decode().split("data: ", 1)[1]
                message = (Delta if '"lease_s"' not in data else Snapshot).model_validate_json(data)
                for one in getattr(message, "closed", []):
                    self.workflows.pop(one.workflow_id, None)
                for workflow in message.workflows:
                    self.workflows[workflow.workflow_id] = workflow
                    self.versions.setdefault(workflow.workflow_id, []).append(workflow.version)
                next_one = await subscription.next_message()
                assert next_one is not None
                make = next_one


async def until(condition) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what it looks at has no event
            await asyncio.sleep(0.01)


async def test_versions_have_no_gaps_whichever_replica_takes_the_event(
    replicas: list[Replica],
) -> None:
    await replicas[0].http.post("/v1/workflows", json=cycle())

    async def post(i: int) -> list[int]:
        http = replicas[i % 2].http
        events = [started("a0", f"{i}-{k}") for k in range(1 + i % 3)]
        answer = await http.post("/v1/workflows/w/events", json=events)
        assert answer.status_code == 200, answer.text
        version = answer.json()["version"]
        return list(range(version - len(events) + 1, version + 1))

    versions = [one for some in await asyncio.gather(*map(post, range(60))) for one in some]

    assert sorted(versions) == list(range(1, 121))
    for replica in replicas:
        view = (await replica.http.get("/v1/workflows/w")).json()
        assert (view["version"], view["agents"][0]["running"]) == (120, 120)


async def test_one_of_many_creates_wins(replicas: list[Replica]) -> None:
    answers = await asyncio.gather(
        *(replicas[i % 2].http.post("/v1/workflows", json=cycle()) for i in range(10)),
        *(replicas[i % 2].http.post("/v1/workflows", json=cycle(agents=2)) for i in range(10)),
    )

    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(201), statuses.count(200), statuses.count(409)) == (1, 9, 10)


async def test_engines_of_every_replica_see_all_workflows(replicas: list[Replica]) -> None:
    engines = [Engine(replica.service) for replica in replicas]
    reading = [asyncio.create_task(engine.read()) for engine in engines]
    for i, replica in enumerate(replicas):
        await replica.http.post("/v1/workflows", json=cycle(f"w{i}"))
        await replica.http.post("/v1/workflows/w0/events", json=started("a0", f"s{i}"))
    await replicas[1].http.post("/v1/workflows/w0/events", json=finished("a0", "s0"))

    for engine in engines:
        await until(lambda e=engine: set(e.workflows) == {"w0", "w1"})
        await until(lambda e=engine: e.workflows["w0"].version == 3)
        assert engine.versions["w0"] == sorted(engine.versions["w0"])
        assert engine.workflows["w0"].steps_to_execution["a0"] == 0
    assert (await replicas[0].http.delete("/v1/workflows/w1")).status_code == 204
    for engine in engines:
        await until(lambda e=engine: set(e.workflows) == {"w0"})
    assert (await replicas[1].http.get("/v1/workflows/w1")).status_code == 404
    for task in reading:
        task.cancel()


async def test_a_replica_keeps_nothing_of_what_ended_at_another(replicas: list[Replica]) -> None:
    for i in range(5):
        await replicas[0].http.post("/v1/workflows", json=cycle(f"w{i}"))
        await replicas[0].http.post(f"/v1/workflows/w{i}/events", json=started("a0"))
        await replicas[1].http.delete(f"/v1/workflows/w{i}")
    await until(lambda: not replicas[0].service.workflows._orders._times)


async def test_workflows_expire_once(replicas: list[Replica]) -> None:
    for i in range(20):
        await replicas[i % 2].http.post("/v1/workflows", json=cycle(f"w{i}", ttl_s=0.3))
    await until(lambda: all(not replica.service.streams.live_workflows for replica in replicas))

    expired = 0.0
    for replica in replicas:
        for line in (await replica.http.get("/metrics")).text.splitlines():
            if line.startswith('kvflow_workflows_closed_total{reason="expired"}'):
                expired += float(line.split()[-1])
    assert expired == 20


async def test_a_replica_that_missed_changes_reads_everything_anew(
    replicas: list[Replica], server: ValkeyServer
) -> None:
    with server.client() as client:
        await replicas[0].http.post("/v1/workflows", json=cycle("before"))
        await until(lambda: replicas[1].service.streams.live_workflows == 1)
        # As if more had been written than the stream holds while this replica was cut off.
        client.incrby("kvflow:changed", 5)
        await replicas[0].http.delete("/v1/workflows/before")
        await replicas[0].http.post("/v1/workflows", json=cycle("after"))

    for replica in replicas:
        await until(lambda r=replica: r.service.streams.keys() == (("default", "after"),))


async def test_the_server_goes_and_comes_back(
    replicas: list[Replica], server: ValkeyServer
) -> None:
    first = replicas[0]
    await first.http.post("/v1/workflows", json=cycle())
    await first.http.post("/v1/workflows/w/events", json=started("a0", "s"))
    server.kill()

    answer = await first.http.post("/v1/workflows/w/events", json=finished("a0", "s"))
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:kvflow:problem:store-unavailable"
    assert (await first.http.get("/ready")).status_code == 503

    server.start()
    for replica in replicas:
        view = (await replica.http.get("/v1/workflows/w")).json()
        assert (view["version"], view["agents"][0]["running"]) == (1, 1)
    answer = await replicas[1].http.post("/v1/workflows/w/events", json=finished("a0", "s"))
    assert answer.json()["version"] == 2
    assert (await first.http.get("/ready")).status_code == 200
    assert b'"version":2' in await told(first.service)


async def told(service: Service) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with service.streams.subscribe("e") as subscription:
                message = subscription.snapshot()
            if b'"version":2' in message:
                return message
            await asyncio.sleep(0.01)


async def test_a_write_that_is_repeated_is_made_once(server: ValkeyServer) -> None:
    store = ValkeyStore(server.address, 10)
    await store.insert(record("w"))
    run = store._link.run

    async def twice(*arguments):  # type: ignore[no-untyped-def]
        await run(*arguments)
        return await run(*arguments)

    store._link.run = twice  # type: ignore[method-assign]
    await store.insert(record("v"))
    kept = await store.get(("", "v"))
    assert kept is not None
    await store.update(kept, ())
    kept = await store.get(("", "v"))
    assert kept is not None
    await store.delete(kept)
    store._link.run = run  # type: ignore[method-assign]
    assert await store.get(("", "v")) is None
    with server.client() as client:
        assert client.get("kvflow:changed") == "4"
        (remembered,) = client.keys("kvflow:deletion:*")
        assert 0 < client.ttl(remembered) <= 60
    await store.close()


async def test_the_clock_takes_no_jumps(server: ValkeyServer) -> None:
    store = ValkeyStore(server.address, 10)
    before_s = store.now_s()
    with server.client() as client:
        wall_s = float(client.hget("kvflow:clock", "wall_s") or 0)
        # The server's clock is set forward by a year, then back by two.
        client.hset("kvflow:clock", "wall_s", wall_s - 365 * 86400)
    later = ValkeyStore(server.address, 10)
    assert before_s < later.now_s() < before_s + 15
    with server.client() as client:
        client.hset("kvflow:clock", "wall_s", wall_s + 365 * 86400)
    latest = ValkeyStore(server.address, 10)
    assert before_s < latest.now_s() < before_s + 15
    for one in (store, later, latest):
        await one.close()


async def test_a_server_that_throws_keys_away_is_warned_of(
    server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    await ValkeyStore(server.address, 10).close()
    assert "noeviction" not in caplog.text
    with server.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
    await ValkeyStore(server.address, 10).close()
    assert "(maxmemory-policy allkeys-lru), workflows among them" in caplog.text


async def test_a_newer_form_is_refused(server: ValkeyServer) -> None:
    await ValkeyStore(server.address, 10).close()
    with server.client() as client:
        client.set("kvflow:form", 9)
    with pytest.raises(EnvironmentProblemError, match=r"newer KVFlow \(form 9"):
        open_store(server.address, 10)


def test_no_server(tmp_path: Path) -> None:
    address = f"valkey://someone:swordfish@127.0.0.1:{ValkeyServer(tmp_path).port}/0"
    with pytest.raises(EnvironmentProblemError, match="cannot be used") as raised:
        open_store(address, 10)
    assert "swordfish" not in str(raised.value)
    assert masked(address).startswith("valkey://***@127.0.0.1:")
