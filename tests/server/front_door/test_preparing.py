"""Whatever goes wrong before a call is sent, its step ends and the call is answered."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from kvflow.server import ServiceSettings
from kvflow.server.front_door import front_door
from kvflow.server.front_door.adapters import EngineTraits
from kvflow.server.front_door.detection import ask_engine
from tests.server.front_door.conftest import Door
from tests.server.front_door.test_steps import WHO, agent, create, view
from tests.server.front_door.upstream import Upstream
from tests.server.keys.conftest import made
from tests.server.keys.made import MadeKeys
from tests.server.running import eventually, running_service

__all__ = ["made"]


def fails_with(error: Exception) -> Any:
    def body_for_engine(*arguments: Any, **named: Any) -> bytes:
        raise error

    return body_for_engine


def test_a_step_ends_that_was_told_to_start(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    create(door)
    monkeypatch.setattr(front_door, "body_for_engine", fails_with(ValueError("no good")))
    # The server hangs up after such an answer.
    answer = door.chat(agent_hints=WHO, headers={"Connection": "close"})
    assert answer.status_code == 500
    eventually(lambda: view(door)["version"] == 2)
    assert agent(door, "a0")["running"] == 0


def test_a_body_that_cannot_be_changed_goes_as_it_is(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(door)
    monkeypatch.setattr(front_door, "body_for_engine", fails_with(RecursionError()))
    assert door.chat(agent_hints=WHO).status_code == 200
    assert door.upstream.bodies[-1]["agent_hints"] == WHO
    eventually(lambda: view(door)["version"] == 2)


def test_one_of_a_client_with_keys_does_not(
    upstream: Upstream, made: MadeKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps its cache apart could not be put into it."""
    monkeypatch.setattr(front_door, "body_for_engine", fails_with(RecursionError()))
    settings = ServiceSettings(engine_url=upstream.url, keys_file=made.path)
    with (
        running_service(settings) as service,
        httpx2.Client(base_url=service.url, headers=made.headers("team-a")) as http,
    ):
        body = {"model": "whole", "messages": []}
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "nested" in answer.json()["error"]["message"]
    assert not upstream.bodies


@pytest.mark.parametrize("owner", [["sglang"], {}, 7, None])
async def test_an_engine_that_says_odd_things_of_itself(owner: object) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"data": [7, {"id": "m", "owned_by": owner}]})

    transport = httpx2.MockTransport(answer)
    async with httpx2.AsyncClient(transport=transport, base_url="http://engine") as client:
        assert await ask_engine(client) == EngineTraits("unknown")
