"""The whole chain: a call at the front door, its steps at the engine, what the engine then evicts.

Shares its engine with the tests of reports and of the service's loss.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvflow.server.keys import ClientRecord, change_key_file, configure, create_key
from tests.engines import Answer, Caller, Engines, RunningEngine
from tests.server.keys.made import LONG_AGO
from tests.sglang_plugin.service_process import ADMIN_KEY, engine_of, eventually, service
from tests.sglang_plugin.workload import PAGE_SIZE, Ring, hit_rate, token_ids

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CAPACITY_TOKENS = 1280
AGENTS = 5
"""The device pool holds three of them."""
RING: dict[str, Any] = {
    "workflow_id": "ring",
    "agents": [{"agent_id": f"a{n}", "join": "any"} for n in range(AGENTS)],
    "edges": [{"source": f"a{n}", "target": f"a{(n + 1) % AGENTS}"} for n in range(AGENTS)],
    "entry": ["a0"],
}
HINTED = {"X-KVFlow-Workflow-ID": "ring"}


@pytest.fixture
def callers(engines: Engines, service_port: int, tmp_path: Path) -> Iterator[dict[str, Caller]]:
    """Two clients that are kept apart, and two that are not."""
    keys = tmp_path / "keys.json"
    key_of = {name: _make_client(keys, name) for name in ("apart", "apart-2", "open", "open-2")}
    for name in ("apart", "apart-2"):
        _isolate(keys, name)
    engine = engine_of(engines, service_port)
    options = ("--api-key", ADMIN_KEY, "--keys", str(keys), "--engine-url", engine.base_url)
    with service(service_port, *options), ExitStack() as closed:
        yield {
            name: closed.enter_context(
                Caller(f"http://127.0.0.1:{service_port}", {"Authorization": f"Bearer {key}"})
            )
            for name, key in key_of.items()
        }


def test_steps_of_calls_govern_what_is_evicted(engines: Engines, service_port: int) -> None:
    engine = engine_of(engines, service_port)
    before = _counts(engine)
    with (
        service(service_port, "--engine-url", engine.base_url) as process,
        Caller(f"http://127.0.0.1:{service_port}") as door,
    ):
        _declare(door, engine)
        ring = Ring(AGENTS, max_tokens=4)
        first, second = (_round(door, ring, n, HINTED) for n in range(2))

        best = ring.best_hit_tokens(CAPACITY_TOKENS)[AGENTS:]
        prefix_tokens = len(token_ids(ring.messages(0, 0)[:1]))
        # Whoever runs next has kept its prefix, up to the last page.
        assert min(a.cached_tokens for a in second[:2]) >= prefix_tokens - PAGE_SIZE
        assert sum(a.cached_tokens for a in second) >= sum(best) - 4 * PAGE_SIZE

        # That is so as the steps have reached the engine, and as it says itself.
        grown = {name: count - before[name] for name, count in _counts(engine).items()}
        assert grown["updates"] >= 2 * AGENTS  # a start and a finish may come as one
        assert grown["predicted"] == 2 * AGENTS
        assert grown["predictions right"] >= 2 * AGENTS - 1
        assert grown["predictions wrong"] <= 1
        eventually(lambda: _place_of_the_first(door) == "device")
        eventually(lambda: _version(door) == 4 * AGENTS)  # events are applied beside the calls
        assert door.http.get("/v1/workflows/ring").json()["mispredictions"] == 0

        # The same calls in nobody's name: the order is that of recency, which keeps nothing.
        engine.flush()
        nameless = [_round(door, Ring(AGENTS, max_tokens=4), n, {}) for n in range(2)]
        assert hit_rate(nameless[1]) < 0.05
        assert _texts(nameless) == _texts([first, second])

        process.send_signal(signal.SIGKILL)
        process.wait()
    direct = [Ring(max_tokens=4).call(engine, agent, 1) for agent in range(2)]
    assert _texts([direct]) == _texts([second[:2]])


class TestClientsKeptApart:
    """``cache_salt`` on an engine that runs, as the front door puts it into calls."""

    def test_none_finds_what_another_has_cached(
        self, engines: Engines, service_port: int, callers: dict[str, Caller]
    ) -> None:
        engine_of(engines, service_port)  # its cache is empty now
        ring = Ring(max_tokens=2)
        for first, second, shared in (("apart", "apart-2", False), ("open", "open-2", True)):
            asked = [ring.call(callers[name], 0, 0) for name in (first, second, first)]
            whole = asked[0].prompt_tokens - PAGE_SIZE
            assert asked[0].cached_tokens == 0  # nor what was cached for those before
            assert (asked[1].cached_tokens >= whole) is shared
            assert asked[1].cached_tokens >= whole or asked[1].cached_tokens == 0
            assert asked[2].cached_tokens >= whole
            assert len(set(_texts([asked])[0])) == 1

    def test_steps_govern_what_is_evicted(
        self, engines: Engines, service_port: int, callers: dict[str, Caller]
    ) -> None:
        engine, door = engine_of(engines, service_port), callers["apart"]
        before = _counts(engine)
        _declare(door, engine)
        ring = Ring(AGENTS, max_tokens=4)
        second = [_round(door, ring, n, HINTED) for n in range(2)][1]
        best = ring.best_hit_tokens(CAPACITY_TOKENS)[AGENTS:]
        assert sum(a.cached_tokens for a in second) >= sum(best) - 4 * PAGE_SIZE
        assert _counts(engine)["predicted"] - before["predicted"] == 2 * AGENTS
        unsalted = [Ring(max_tokens=4).call(engine, agent, 1) for agent in range(2)]
        assert [a.cached_tokens for a in unsalted] == [0, 0]
        assert _texts([unsalted]) == _texts([second[:2]])


def _round(caller: Caller, ring: Ring, round_number: int, headers: dict[str, str]) -> list[Answer]:
    """Call every agent once, in order; named by headers if there are any."""
    answers = []
    for agent in range(ring.agents):
        named = {**headers, "X-KVFlow-Agent-ID": f"a{agent}"} if headers else {}
        answers.append(ring.call(caller, agent, round_number, headers=named))
    return answers


def _texts(rounds: list[list[Answer]]) -> list[list[str]]:
    return [[answer.text for answer in answers] for answers in rounds]


def _declare(door: Caller, engine: RunningEngine) -> None:
    """Declare the ring, and wait until the engine has been told of it."""
    known = engine.metric("kvflow_updates_applied_total")
    door.http.post("/v1/workflows", json=RING).raise_for_status()
    eventually(lambda: engine.metric("kvflow_updates_applied_total") > known)
    eventually(lambda: engine.metric("kvflow_live_workflows") == 1)


def _version(door: Caller) -> int:
    return int(door.http.get("/v1/workflows/ring").json()["version"])


def _place_of_the_first(door: Caller) -> str:
    """Where the engine has reported the prefix of the agent that runs next."""
    shown = door.http.get("/v1/overview/workflows/ring").json()
    return str(shown["placements"][0]["place"])


def _make_client(keys: Path, name: str) -> str:
    return change_key_file(keys, lambda content: create_key(content, name, "client", LONG_AGO)).key


def _isolate(keys: Path, name: str) -> None:
    record = ClientRecord(isolate_cache=True)
    change_key_file(keys, lambda content: (configure(content, name, record), None))


def _counts(engine: RunningEngine) -> dict[str, float]:
    return {
        "updates": engine.metric("kvflow_updates_applied_total"),
        "predicted": engine.metric("kvflow_requests_total", agent_class="predicted"),
        "predictions right": engine.metric("kvflow_predictions_total", result="hit"),
        "predictions wrong": engine.metric("kvflow_predictions_total", result="miss"),
    }
