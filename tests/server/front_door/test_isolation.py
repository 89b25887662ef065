"""What the engine is told of clients with keys: who they are, and a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kvflow.server import ServiceSettings
from kvflow.server.keys import KeyRing
from tests.server.front_door.upstream import Upstream
from tests.server.keys.made import MadeKeys, make_keys
from tests.server.running import PATIENCE_S, eventually, running_service
from tests.server.workflow_bodies import cycle

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


@dataclass(frozen=True, slots=True)
class KeyedDoor:
    upstream: Upstream
    made: MadeKeys
    http: httpx2.Client

    def call(self, name: str, path: str = GENERATING[0], **body: Any) -> dict[str, Any]:
        """Make a call with the key of this name; what the engine got."""
        content = {"model": "whole", "messages": [], **body}
        answer = self.http.post(path, json=content, headers=self.made.headers(name))
        assert answer.status_code == 200, answer.text
        got: dict[str, Any] = self.upstream.bodies[-1]
        return got


@pytest.fixture
def door(upstream: Upstream, tmp_path: Path) -> Iterator[KeyedDoor]:
    made = make_keys(tmp_path / "keys.json")
    made.isolate("team-a")
    settings = ServiceSettings(engine_url=upstream.url, keys_file=made.path)
    with (
        running_service(settings) as service,
        httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
    ):
        yield KeyedDoor(upstream, made, http)


@pytest.mark.parametrize("path", GENERATING)
def test_an_isolated_client_has_its_salt_whatever_it_sends(door: KeyedDoor, path: str) -> None:
    salt = KeyRing(None, door.made.path).acting_for("team-a").cache_salt
    assert salt is not None

    for given in (
        {},
        {"cache_salt": ""},
        {"cache_salt": None},
        {"cache_salt": "another's"},
        {"cache_salt": ["another's"]},
        {"nvext": {"cache_salt": "another's"}},
        {"extra_key": "mine"},
        {"custom_params": {"cache_salt": "another's"}},
    ):
        assert door.call("team-a", path, **given)["cache_salt"] == salt

    assert "cache_salt" not in door.call("team-b", path)
    # It separates only further, and nobody can guess another's.
    assert door.call("team-b", path, cache_salt="my own")["cache_salt"] == "my own"


def test_a_key_written_otherwise_is_the_same_key(door: KeyedDoor) -> None:
    salt = KeyRing(None, door.made.path).acting_for("team-a").cache_salt
    headers = door.made.headers("team-a") | {"Content-Type": "application/json"}
    for body in (
        rb'{"model": "whole", "cache\u005fsalt": "x"}',
        b'{"model": "whole", "cache_salt": "x", "cache_salt": "y"}',
        b'  {"model": "whole", "cache_salt": "x"}\r\n ',
        '{"model": "whole", "cache_salt": "x"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"model": "whole", "cache_salt": "x"}',
    ):
        door.http.post(GENERATING[0], content=body, headers=headers)
        assert door.upstream.bodies[-1]["cache_salt"] == salt


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'"text"']
)
def test_what_cannot_be_marked_is_not_passed_on(door: KeyedDoor, body: bytes) -> None:
    headers = door.made.headers("team-a") | {"Content-Type": "application/json"}

    answer = door.http.post(GENERATING[0], content=body, headers=headers)

    assert answer.status_code == 400
    assert door.upstream.requests == []


def test_a_client_cannot_pass_for_another_at_the_engine(door: KeyedDoor) -> None:
    for name in ("team-a", "team-b"):
        answer = door.http.post("/v1/workflows", json=cycle("w"), headers=door.made.headers(name))
        assert answer.status_code == 201

    claimed = {"workflow_id": "w", "agent_id": "a0", "client_id": "team-a"}
    got = door.call("team-b", custom_params={"kvflow": claimed, "kvflow_steps": {"a0": 0}})

    assert got["custom_params"]["kvflow"]["client_id"] == "team-b"
    steps = "/v1/workflows/w"
    assert door.http.get(steps, headers=door.made.headers("team-a")).json()["version"] == 0


def test_without_an_agent_nothing_is_claimed(door: KeyedDoor) -> None:
    got = door.call("team-b", custom_params={"kvflow": {"client_id": "team-a"}, "other": 1})

    assert got["custom_params"] == {"other": 1}


def test_the_key_stays_here(door: KeyedDoor) -> None:
    door.call("team-b")

    _, headers, _ = door.upstream.requests[-1]
    assert "authorization" not in headers


def test_an_administrators_call_makes_no_workflow_for_a_client_with_keys(door: KeyedDoor) -> None:
    def named(client_id: str) -> dict[str, Any]:
        return {"kvflow": {"workflow_id": "w", "agent_id": "a", "client_id": client_id}}

    def live() -> list[str]:
        answer = door.http.get("/v1/workflows", headers=door.made.headers("ops")).json()
        return [one["client_id"] for one in answer["workflows"]]

    for client_id in ("team-b", "nobody"):
        door.call("ops", custom_params=named(client_id))
    eventually(lambda: live() == ["nobody"])
