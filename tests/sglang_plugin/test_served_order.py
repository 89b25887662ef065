"""Order by steps and order by expected time, on two engines that one service tells the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engines import Answer, Caller, Engines, RunningEngine, words
from tests.sglang_plugin.service_process import engine_of, eventually, service
from tests.sglang_plugin.workload import PAGE_SIZE, token_ids

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PREFIX_WORDS = 320
CROWD_WORDS = 840
"""Of a prompt that leaves room for one prefix and a part of the other."""

GRAPH: dict[str, Any] = {
    "workflow_id": "approval",
    "agents": [
        {"agent_id": name, "expected_duration_s": 1}
        for name in ("writer", "editor", "printer", "archivist")
    ],
    "edges": [
        # The archivist is the next agent by steps, but waits for a person first.
        {"source": "writer", "target": "archivist", "expected_duration_s": 600},
        {"source": "writer", "target": "editor"},
        {"source": "editor", "target": "printer"},
    ],
    "entry": ["writer"],
}
WRITTEN = [{"type": kind, "agent_id": "writer"} for kind in ("step_started", "step_finished")]


def test_they_evict_differently(engines: Engines, service_port: int) -> None:
    by_steps = engine_of(engines, service_port)
    by_time = engine_of(engines, service_port, KVFLOW_ORDER="time", KVFLOW_ENGINE_ID="by-time")
    both = (by_steps, by_time)
    prefix_tokens = len(token_ids([_prefix("archivist")])) // PAGE_SIZE * PAGE_SIZE
    try:
        with (
            service(service_port),
            Caller(f"http://127.0.0.1:{service_port}") as told,
        ):
            for engine in both:
                for agent in ("archivist", "printer"):
                    _ask(engine, agent, "Say one word.")
            told.http.post("/v1/workflows", json=GRAPH).raise_for_status()
            for engine in both:
                eventually(lambda engine=engine: engine.metric("kvflow_live_workflows") == 1)
            before = [_updates(engine) for engine in both]
            told.http.post("/v1/workflows/approval/events", json=WRITTEN).raise_for_status()
            _check_what_is_told(told)
            for engine, known in zip(both, before, strict=True):
                eventually(lambda engine=engine, known=known: _updates(engine) > known)
                engine.chat([{"role": "user", "content": " ".join(words("crowd", CROWD_WORDS))}])
            found = {
                agent: [_ask(engine, agent, "Say two words.") for engine in both]
                for agent in ("archivist", "printer")
            }
        kept = {
            name: [answer.cached_tokens >= prefix_tokens - PAGE_SIZE for answer in answers]
            for name, answers in found.items()
        }
        assert kept == {"archivist": [True, False], "printer": [False, True]}
        for answers in found.values():
            assert answers[0].text == answers[1].text
    finally:
        engines.stop(by_time)


def _check_what_is_told(told: Caller) -> None:
    now = told.http.get("/v1/workflows/approval/steps").json()
    steps, seconds = now["steps_to_execution"], now["expected_s_to_execution"]
    assert (steps["archivist"], steps["printer"]) == (1, 2)
    assert seconds["archivist"] > 500
    assert seconds["printer"] < 5


def _ask(engine: RunningEngine, agent: str, question: str) -> Answer:
    return engine.chat(
        [_prefix(agent), {"role": "user", "content": question}],
        max_tokens=4,
        custom_params={"kvflow": {"workflow_id": "approval", "agent_id": agent}},
    )


def _prefix(agent: str) -> dict[str, str]:
    return {"role": "system", "content": " ".join(words(f"order {agent}", PREFIX_WORDS))}


def _updates(engine: RunningEngine) -> float:
    return engine.metric("kvflow_updates_applied_total")
