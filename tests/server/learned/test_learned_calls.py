"""Calls through the front door, of workflows that nobody declared."""

from __future__ import annotations

import json
from typing import Any

from tests.server.front_door.conftest import Door, door, upstream, upstream_server
from tests.server.running import eventually
from tests.server.workflow_bodies import cycle

__all__ = ["door", "upstream", "upstream_server"]


def call(door: Door, workflow_id: str, agent_id: str, **more: Any) -> str:
    answer = door.chat(agent_hints={"workflow_id": workflow_id, "agent_id": agent_id}, **more)
    assert answer.status_code == 200
    said: str = json.loads(answer.headers["x-kvflow-hints"])["steps"]
    return said


def view(door: Door, workflow_id: str) -> dict[str, Any]:
    found: dict[str, Any] = door.http.get(f"/v1/workflows/{workflow_id}").json()
    return found


def test_calls_alone_make_a_workflow_and_teach_its_order(door: Door) -> None:
    for number in range(6):
        workflow_id = f"w{number}"
        for position, agent_id in enumerate("abc"):
            call(door, workflow_id, agent_id)
            done = 2 * (position + 1)
            eventually(lambda: view(door, workflow_id).get("version") == done)  # noqa: B023
        assert view(door, workflow_id)["learn"] is True
        assert door.http.delete(f"/v1/workflows/{workflow_id}").status_code == 204
    families = door.http.get("/v1/learned").json()["families"]
    assert [(one["family"], one["agents"], one["used"]) for one in families] == [
        ("from:a", ["a", "b", "c"], True)
    ]
    call(door, "new", "a")
    eventually(lambda: view(door, "new").get("version") == 2)
    steps = door.http.get("/v1/workflows/new/steps").json()["steps_to_execution"]
    assert steps == {"a": None, "b": 1, "c": 2}


def test_the_first_call_is_learned_from_and_those_after_it_are_reported(door: Door) -> None:
    assert call(door, "w", "a") == "learned from"
    eventually(lambda: view(door, "w").get("version") == 2)
    assert call(door, "w", "never-seen") == "reported"
    eventually(lambda: view(door, "w")["version"] == 4)


def test_a_declaration_that_comes_after_the_first_call_holds(door: Door) -> None:
    call(door, "w", "a0")
    eventually(lambda: view(door, "w").get("version") == 2)
    assert door.http.post("/v1/workflows", json=cycle()).status_code == 201
    assert call(door, "w", "a0") == "reported"
    eventually(lambda: view(door, "w")["version"] == 2)
    assert "learn" not in view(door, "w")
