"""Calls become steps of the workflows they belong to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tests.server.front_door.conftest import Door
from tests.server.front_door.upstream import USAGE
from tests.server.running import PATIENCE_S, eventually, stream
from tests.server.workflow_bodies import cycle

WHO = {"workflow_id": "w", "agent_id": "a0"}


def create(door: Door, **fields: Any) -> list[str]:
    answer = door.http.post("/v1/workflows", json=cycle(**fields))
    assert answer.status_code == 201
    return [agent["agent_id"] for agent in answer.json()["agents"]]


def view(door: Door, workflow_id: str = "w") -> dict[str, Any]:
    answer = door.http.get(f"/v1/workflows/{workflow_id}")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def agent(door: Door, agent_id: str) -> dict[str, Any]:
    return next(one for one in view(door)["agents"] if one["agent_id"] == agent_id)


def account(answer: httpx2.Response) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(answer.headers["x-kvflow-hints"])
    return told


def test_a_call_is_a_step(door: Door) -> None:
    first, second, *_ = create(door)
    hints = {"workflow_id": "w", "agent_id": first}
    body = {"model": "slow", "messages": [], "stream": True, "agent_hints": hints}
    with door.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        eventually(lambda: agent(door, first)["running"] == 1)
        assert agent(door, first)["steps_to_execution"] == 0
        assert account(answer)["steps"] == "reported"
        door.upstream.go_on.set()
        b"".join(chunks)
    eventually(lambda: agent(door, first)["running"] == 0)
    assert agent(door, second)["steps_to_execution"] == 1
    assert view(door)["mispredictions"] == 0
    assert door.upstream.bodies[-1]["custom_params"] == {
        "kvflow": {**hints, "client_id": "default"}
    }


def test_a_whole_round_without_the_sdk(door: Door) -> None:
    agents = create(door)
    for agent_id in [*agents, *agents]:
        answer = door.chat(
            "words", headers={"X-KVFlow-Workflow-ID": "w", "X-KVFlow-Agent-ID": agent_id}
        )
        assert answer.status_code == 200
    eventually(lambda: view(door)["version"] == 4 * len(agents))
    assert view(door)["mispredictions"] == 0


def test_token_counts_come_with_the_finish(door: Door) -> None:
    first, *_ = create(door)
    with door.http.stream("GET", "/v1/events") as events:
        lines = events.iter_lines()
        next(lines)
        door.chat("words", agent_hints={"workflow_id": "w", "agent_id": first})
        told: dict[str, dict[str, Any]] = {}
        kind = ""
        for line in lines:
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told[kind] = json.loads(line.removeprefix("data: "))
            if {"step.finished", "call.finished"} <= told.keys():
                break
    counts = {
        "prompt_tokens": USAGE["prompt_tokens"],
        "cached_tokens": 8,
        "output_tokens": USAGE["completion_tokens"],
    }
    assert counts.items() <= _data(told["step.finished"]).items()
    call = _data(told["call.finished"])
    assert counts.items() <= call.items()
    assert call["outcome"] == "finished"
    assert (call["workflow_id"], call["agent_id"], call["declared"]) == ("w", first, True)
    assert call["step_id"].startswith("call:")


def _data(event: dict[str, Any]) -> dict[str, Any]:
    inner: dict[str, Any] = event.get("data", event)
    return inner


@pytest.mark.parametrize("model", ["refuses", "breaks"])
def test_a_call_that_fails_is_over_too(door: Door, model: str) -> None:
    first, *_ = create(door)
    try:
        door.chat(model, agent_hints={"workflow_id": "w", "agent_id": first})
    except httpx2.RemoteProtocolError:
        assert model == "breaks"
    eventually(lambda: view(door)["version"] == 2)
    assert agent(door, first)["running"] == 0


def test_a_call_that_is_cancelled_is_over_too(door: Door) -> None:
    first, *_ = create(door)
    hints = {"workflow_id": "w", "agent_id": first}
    body = {"model": "slow", "messages": [], "agent_hints": hints}
    with door.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        eventually(lambda: agent(door, first)["running"] == 1)
    eventually(lambda: agent(door, first)["running"] == 0)


def test_a_caller_that_reports_its_steps_itself(door: Door) -> None:
    first, *_ = create(door)
    start = {"type": "step_started", "agent_id": first}
    assert door.http.post("/v1/workflows/w/events", json=start).status_code == 200
    hints = {"workflow_id": "w", "agent_id": first}

    answer = door.chat(agent_hints=hints)
    assert account(answer)["steps"] == "reported by the caller"
    # The event of its start may still be on its way: the SDK says so with the call.
    finish = {"type": "step_finished", "agent_id": first}
    assert door.http.post("/v1/workflows/w/events", json=finish).status_code == 200
    answer = door.chat(custom_params={"kvflow": {**hints, "steps_reported": True}})
    assert account(answer)["steps"] == "reported by the caller"
    assert view(door)["version"] == 2


def test_calls_of_one_agent_side_by_side(door: Door) -> None:
    first, *_ = create(door)
    hints = {"workflow_id": "w", "agent_id": first}
    body = {"model": "slow", "messages": [], "agent_hints": hints}
    with door.http.stream("POST", "/v1/chat/completions", json=body) as one:
        ones = one.iter_raw()
        next(ones)
        eventually(lambda: agent(door, first)["running"] == 1)
        with door.http.stream("POST", "/v1/chat/completions", json=body) as two:
            twos = two.iter_raw()
            next(twos)
            eventually(lambda: agent(door, first)["running"] == 2)
    eventually(lambda: agent(door, first)["running"] == 0)


def test_a_step_that_is_named_counts_once(door: Door) -> None:
    first, *_ = create(door)
    for _ in range(3):
        door.chat(agent_hints={"workflow_id": "w", "agent_id": first, "step_id": "s1"})
    eventually(lambda: view(door)["version"] >= 2)
    door.chat(agent_hints={"workflow_id": "w", "agent_id": first, "step_id": "s2"})
    eventually(lambda: view(door)["version"] == 4)
    assert view(door)["steps_started"] == 2


@pytest.mark.parametrize(
    ("hints", "steps"),
    [
        ({"workflow_id": "other", "agent_id": "a"}, "learned from"),
        ({"workflow_id": "w", "agent_id": "nobody"}, "the workflow has no such agent"),
    ],
)
def test_an_agent_that_is_not_known(door: Door, hints: dict[str, str], steps: str) -> None:
    create(door)
    answer = door.chat(agent_hints=hints)

    assert answer.status_code == 200
    assert account(answer)["steps"] == steps
    # The engine can still keep its prefix apart from others.
    assert door.upstream.bodies[-1]["custom_params"]["kvflow"]["agent_id"] == hints["agent_id"]
    assert view(door)["version"] == 0


def test_the_workflows_own_client(door: Door) -> None:
    first, *_ = create(door, client_id="team")
    door.chat(agent_hints={"workflow_id": "w", "agent_id": first})

    assert door.upstream.bodies[-1]["custom_params"]["kvflow"]["client_id"] == "team"


def test_no_hints_no_header(door: Door) -> None:
    answer = door.chat()

    assert "x-kvflow-hints" not in answer.headers
    assert door.upstream.bodies == [{"model": "whole", "messages": []}]


def test_bad_hints_change_nothing(door: Door) -> None:
    answer = door.chat(
        agent_hints=["x"],
        nvext={"agent_hints": {"priority": "high"}},
        kv_hints={"actions": 7},
        custom_params={"kvflow": {"workflow_id": "a b"}},
    )

    assert answer.status_code == 200
    told = account(answer)
    assert set(told["ignored"]) >= {
        "agent_hints",
        "nvext.agent_hints.priority",
        "custom_params.kvflow.workflow_id",
        "kv_hints",
    }
    assert door.upstream.bodies == [{"model": "whole", "messages": []}]


def test_a_prefix_kept_beyond_its_call(door: Door) -> None:
    first, *_ = create(door)
    with stream(door.http) as engine:
        engine.next()
        hints = {"workflow_id": "w", "agent_id": first, "cache_ttl_ms": 60_000}
        door.chat(agent_hints=hints)
        last = None
        for _ in range(5):
            message: Any = engine.next()
            if getattr(message, "workflows", None):
                last = message.workflows[0]
                if last.version == 2 and last.steps_to_execution[first] == 1:
                    break
        assert last is not None
        assert (last.version, last.steps_to_execution[first]) == (2, 1)


def test_the_last_call_of_the_root_session_ends_the_workflow(door: Door) -> None:
    body = {**cycle(), "workflow_id": "s"}
    body["agents"].append({"agent_id": "s"})
    body["entry"].append("s")
    assert door.http.post("/v1/workflows", json=body).status_code == 201
    headers = {"X-Dynamo-Session-ID": "s"}
    door.chat(headers=headers)
    eventually(lambda: view(door, "s")["version"] == 2)
    door.chat(headers=headers | {"X-Dynamo-Session-Final": "true"})
    eventually(lambda: door.http.get("/v1/workflows/s").status_code == 404)


async def test_many_at_once(door: Door) -> None:
    agents = create(door)
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=door.service.url, timeout=PATIENCE_S, limits=limits
    ) as http:

        async def call(number: int) -> int:
            hints = {"workflow_id": "w", "agent_id": agents[number % len(agents)]}
            body = {"model": "words", "messages": [], "agent_hints": hints}
            answer = await http.post("/v1/chat/completions", json=body)
            return answer.status_code

        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(call(number)) for number in range(60)]
    assert {one.result() for one in calls} == {200}
    await asyncio.to_thread(eventually, lambda: view(door)["version"] == 120)
    assert all(one["running"] == 0 for one in view(door)["agents"])
