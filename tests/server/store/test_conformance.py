"""What holds for every store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvflow.errors import KVFlowError
from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.graph.snapshot import state_values
from kvflow.protocol import StepEvent, WorkflowSteps
from kvflow.server.store import (
    LearnedKey,
    StoreFullError,
    WorkflowKey,
    WorkflowRecord,
    WorkflowStore,
)
from tests.server.store.servers import KINDS, opened, store_places
from tests.server.workflow_bodies import record


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield from store_places(request.param, tmp_path)


@pytest.fixture
async def store(place: str) -> AsyncIterator[WorkflowStore]:
    store = opened(place)
    yield store
    await store.close()


def started(state: WorkflowState, agent_id: str, step_id: str | None) -> StepEvent:
    state.start(agent_id, step_id)
    return StepEvent(type="step_started", agent_id=agent_id, step_id=step_id)


async def advanced(
    store: WorkflowStore, key: WorkflowKey, count: int, expires_at_s: float | None = None
) -> WorkflowRecord:
    """Start the agent ``count`` times, an event a write."""
    for _ in range(count):
        before = await store.get(key)
        assert before is not None
        state = before.state.copy()
        event = started(state, "a", f"step-{state.version}")
        until_s = before.expires_at_s if expires_at_s is None else expires_at_s
        await store.update(replace(before, state=state, expires_at_s=until_s), [event])
    after = await store.get(key)
    assert after is not None
    return after


def same(one: WorkflowRecord | None, other: WorkflowRecord) -> bool:
    return (
        one is not None
        and replace(one, state=other.state, graph=other.graph, revision=other.revision) == other
        and state_values(one.state) == state_values(other.state)
        and (one.graph.agents, one.graph.edges, one.graph.entry)
        == (other.graph.agents, other.graph.edges, other.graph.entry)
        and one.steps_json() == other.steps_json()
    )


async def test_insert_get_update_delete(store: WorkflowStore) -> None:
    first = record("w", namespace="n")

    assert await store.get(first.key) is None
    await store.insert(first)
    kept = await store.get(first.key)
    assert same(kept, first)
    assert kept is not None
    await store.update(replace(kept, expires_at_s=200.0), ())
    assert same(await store.get(first.key), replace(first, expires_at_s=200.0))
    assert await store.get(("", "w")) is None
    assert await store.count() == 1
    kept = await advanced(store, first.key, 3)
    assert (kept.version, kept.expires_at_s) == (3, 200.0)
    await store.delete(kept)
    assert await store.get(first.key) is None
    assert await store.count() == 0


async def test_an_id_can_be_used_again(store: WorkflowStore) -> None:
    for round in range(3):
        await store.insert(record("w", agent_id="a", expires_at_s=100.0 + round))
        kept = await advanced(store, ("", "w"), 2)
        assert (kept.version, kept.expires_at_s) == (2, 100.0 + round)
        await store.delete(kept)


async def test_page_is_ordered_and_filtered(store: WorkflowStore) -> None:
    for namespace, name, client_id in [
        *(("", "b", "x"), ("", "a", "y"), ("", "d", "x"), ("", "c", "x")),
        *(("n", "a", "n"), ("n-m", "a", "n-m"), ("n.m", "z", "n.m")),
    ]:
        await store.insert(record(name, namespace=namespace, client_id=client_id))

    async def keys(
        namespace: str | None, client_id: str | None, after: WorkflowKey | None, limit: int
    ) -> list[WorkflowKey]:
        page = await store.page(namespace=namespace, client_id=client_id, after=after, limit=limit)
        return [one.key for one in page]

    assert await keys("", None, None, 10) == [("", name) for name in "abcd"]
    assert await keys("", None, ("", "a"), 2) == [("", "b"), ("", "c")]
    assert await keys("", "x", ("", "b"), 10) == [("", "c"), ("", "d")]
    assert await keys("", "x", ("", "bb"), 10) == [("", "c"), ("", "d")]
    assert await keys("", "z", None, 10) == []
    assert await keys("n", None, None, 10) == [("n", "a")]
    assert await keys("o", None, None, 10) == []
    everything = [("", name) for name in "abcd"] + [("n", "a"), ("n-m", "a"), ("n.m", "z")]
    assert await keys(None, None, None, 10) == everything
    assert await keys(None, None, ("", "c"), 3) == everything[3:6]


async def test_expired_goes_by_the_present_deadline(store: WorkflowStore) -> None:
    for name, expires_at_s in [("late", 30.0), ("early", 10.0), ("renewed", 5.0)]:
        await store.insert(record(name, expires_at_s=expires_at_s))
    await advanced(store, ("", "renewed"), 1, expires_at_s=20.0)

    async def expired(now_s: float, limit: int = 10) -> list[str]:
        return [workflow_id for _, workflow_id in await store.expired(now_s, limit)]

    async def delete(name: str) -> None:
        kept = await store.get(("", name))
        assert kept is not None
        await store.delete(kept)

    assert await expired(9.9) == []
    assert await expired(10.0) == ["early"]
    assert await expired(20.0) == ["early", "renewed"]
    assert await expired(99.0, limit=2) == ["early", "renewed"]
    await delete("early")
    assert await expired(99.0) == ["renewed", "late"]
    await delete("renewed")
    await store.insert(record("renewed", expires_at_s=50.0))
    assert await expired(49.0) == ["late"]


async def test_a_full_store_refuses(place: str) -> None:
    store = opened(place, max_workflows=3)
    results = await asyncio.gather(
        *(store.insert(record(f"w{i}")) for i in range(8)), return_exceptions=True
    )

    assert results.count(None) == 3
    assert sum(isinstance(one, StoreFullError) for one in results) == 5
    assert await store.count() == 3
    await store.close()


async def test_what_engines_are_told(store: WorkflowStore) -> None:
    for i in range(5):
        await store.insert(record(f"w{i}", namespace="n" if i else ""))
    kept = await advanced(store, ("n", "w3"), 2)
    opened_anew = [one async for some in store.live() for one in some]

    if opened_anew:  # a file tells this once, at the start
        told = {one.stream_key: one.steps_json() for one in opened_anew}
        assert len(told) == 5
        assert told["c", "w3"] == kept.steps_json()
        assert WorkflowSteps.model_validate_json(told["c", "w3"]).version == 2


async def test_notes(store: WorkflowStore) -> None:
    await store.note("engine", "e", {"a": 1})
    await store.note("engine", "f", {"b": None})
    await store.note("client", "e", {"c": "x"})
    await store.note("engine", "e", {"a": 2})
    await store.note("engine", "f", None)

    assert await store.notes("engine") == {"e": {"a": 2}}
    assert await store.notes("client") == {"e": {"c": "x"}}


async def learned(store: WorkflowStore) -> dict[LearnedKey, str]:
    return {key: text async for some in store.learned() for key, text in some}


async def test_what_was_learned(store: WorkflowStore) -> None:
    one = LearnedKey("order", "", "c", 'from:ä\0"a')
    same_name = [
        one._replace(kind="durations"),
        one._replace(namespace="n"),
        one._replace(family="f"),
    ]
    assert await learned(store) == {}
    await store.keep_learned({one: "1", **dict.fromkeys(same_name, "2")})
    assert await learned(store) == {one: "1", **dict.fromkeys(same_name, "2")}
    await store.keep_learned({one: "3", same_name[0]: None, one._replace(family="never"): None})
    assert await learned(store) == {one: "3", same_name[1]: "2", same_name[2]: "2"}

    many = {one._replace(family=f"f{n}"): "x" * n for n in range(2500)}
    await store.keep_learned(many)
    assert (await learned(store)).items() >= many.items()
    await store.keep_learned(dict.fromkeys(many))
    assert len(await learned(store)) == 3


async def test_its_clock_goes_on(store: WorkflowStore) -> None:
    before = store.now_s()
    await asyncio.sleep(0.02)
    await store.keep_time()
    assert before + 0.01 < store.now_s() < before + 30


@pytest.mark.parametrize("kind", KINDS[1:])
async def test_everything_is_there_after_a_restart(kind: str, tmp_path: Path) -> None:
    rng = random.Random(7)
    names = ["planner", "coder", "tester"]
    agents = [Agent(name, rng.choice(["all", "any"]), 7) for name in names]
    edges = [Edge(a, b, "choice" if a == "coder" else "always") for a in names for b in names]
    graph = AgentStepGraph(agents, edges, names)
    for place in store_places(kind, tmp_path):
        store = opened(place)
        for i in range(20):
            one = replace(
                record(f"w{i}", namespace=f"n{i % 3}", expires_at_s=0.1 + i),
                graph=graph,
                state=WorkflowState(graph),
                name=None if i % 2 else 'ä\0"',
                ttl_s=0.1 * (i + 1),
            )
            await store.insert(one)
        keys = [(f"n{i % 3}", f"w{i}") for i in range(20)]
        for _ in range(1500):
            kept = await store.get(keys[min(rng.randrange(20), rng.randrange(20))])
            assert kept is not None
            state, events = kept.state.copy(), []
            for _ in range(rng.randrange(4)):
                kind_of = rng.choice(["step_started", "step_finished"])
                event = StepEvent.model_construct(
                    type=kind_of,
                    agent_id=rng.choice(names),
                    step_id=rng.choice([None, f"s{rng.randrange(500)}"]),
                )
                change = state.start if kind_of == "step_started" else state.finish
                try:
                    change(event.agent_id, event.step_id)
                except KVFlowError:
                    continue
                events.append(event)
            await store.update(
                replace(kept, state=state, expires_at_s=kept.expires_at_s + 0.1), events
            )
        deleted = await store.get(keys[19])
        assert deleted is not None
        await store.delete(deleted)
        kept_before = [await store.get(key) for key in keys]
        now_s = store.now_s()
        entry = LearnedKey("order", "n", "c", "family")
        await store.keep_learned({entry: "text"})
        await store.close()

        store = opened(place)
        assert now_s - 1 < store.now_s() < now_s + 60
        told = {one.stream_key[1]: one async for some in store.live() for one in some}
        for key, before in zip(keys, kept_before, strict=True):
            after = await store.get(key)
            if before is None:
                assert after is None
                assert key[1] not in told
            else:
                assert same(after, before)
                assert told[key[1]].steps_json() == before.steps_json()
        assert await learned(store) == {entry: "text"}
        assert await store.count() == 19
        assert len(await store.expired(1e9, 100)) == 19
        await store.insert(record("another"))
        await advanced(store, ("", "another"), 3)
        await store.close()
