"""``POST /v1/kv_hints``: what each action is answered, and what engines are told for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from kvflow.protocol import Delta
from kvflow.server import Service, ServiceSettings, create_app
from tests.server.conftest import FakeClock
from tests.server.front_door.upstream import running_upstream
from tests.server.running import PATIENCE_S, StreamReader, eventually, running_service, stream
from tests.server.workflow_bodies import cycle, started

TARGET = {"workflow_id": "w", "agent_id": "a2"}


def envelope(kind: str, payload: dict[str, Any], version: str = "1.0") -> dict[str, Any]:
    action = {"action_id": "1", "action_type": kind, "action_version": version, "payload": payload}
    return {"protocol_version": "0.1", "message_id": "m", "actions": [action]}


def post(client: Any, kind: str, payload: dict[str, Any], **rest: Any) -> dict[str, Any]:
    answer = client.post("/v1/kv_hints", json=envelope(kind, payload, **rest))
    assert answer.status_code == 200
    content = answer.json()
    assert (content["protocol_version"], content["message_id"]) == ("0.1", "m")
    (one,) = content["actions"]
    assert (one["action_id"], one["action_type"]) == ("1", kind)
    assert (one["reason"] is None) == (one["status"] == "accepted")
    found: dict[str, Any] = one
    return found


def told(service: Service, workflow_id: str = "w") -> dict[str, int | None]:
    """Its steps as an engine that connects now is told them."""
    with service.streams.subscribe(None) as subscription:
        text = subscription.snapshot().decode()
    data = json.loads(text.partition("data: ")[2])
    (workflow,) = [one for one in data["workflows"] if one["workflow_id"] == workflow_id]
    steps: dict[str, int | None] = workflow["steps_to_execution"]
    return steps


@pytest.fixture
def engine(service: Service) -> Iterator[None]:
    """An engine with the plugin is connected."""
    with service.streams.subscribe("engine"):
        yield


@pytest.fixture(autouse=True)
def _workflow(client: TestClient) -> None:
    assert client.post("/v1/workflows", json=cycle()).status_code == 201


@pytest.mark.usefixtures("engine")
class TestActions:
    @pytest.mark.parametrize("kind", ["Pin", "kv.pin", "Retain", "kv.retain", "Prefetch"])
    def test_kept_for_a_time(
        self, client: TestClient, service: Service, clock: FakeClock, kind: str
    ) -> None:
        assert told(service) == {"a0": 1, "a1": 2, "a2": 3}
        answer = post(client, kind, {**TARGET, "ttl_s": 30})
        assert answer["status"] == "accepted"
        assert (answer["workflow_id"], answer["agent_ids"]) == ("w", ["a2"])
        assert answer["expires_in_s"] == 30
        assert told(service) == {"a0": 1, "a1": 2, "a2": 1}
        # Not what the workflow's own state is.
        assert client.get("/v1/workflows/w/steps").json()["steps_to_execution"]["a2"] == 3
        clock.now_s += 29
        service.streams.expire_hints()
        assert told(service)["a2"] == 1
        clock.now_s += 1
        service.streams.expire_hints()
        assert told(service) == {"a0": 1, "a1": 2, "a2": 3}

    @pytest.mark.parametrize("kind", ["Demote", "kv.demote", "kv.deref", "kv.evict"])
    def test_given_up(self, client: TestClient, service: Service, kind: str) -> None:
        assert post(client, kind, {**TARGET})["status"] == "accepted"
        assert told(service) == {"a0": 1, "a1": 2, "a2": None}

    def test_events_go_on_beneath(self, client: TestClient, service: Service) -> None:
        post(client, "Demote", {"workflow_id": "w", "agent_id": "a0"})
        assert told(service)["a0"] is None
        client.post("/v1/workflows/w/events", json=started("a0"))
        assert told(service)["a0"] == 0

    def test_an_agent_that_runs_is_given_up_later(
        self, client: TestClient, service: Service
    ) -> None:
        client.post("/v1/workflows/w/events", json=started("a0"))
        answer = post(client, "Demote", {"workflow_id": "w", "agent_id": "a0"})
        assert answer["status"] == "deferred"
        assert told(service)["a0"] == 0

    def test_too_long(self, client: TestClient) -> None:
        answer = post(client, "Pin", {**TARGET, "ttl_s": 1e6})
        assert (answer["status"], answer["expires_in_s"]) == ("clipped", 600)
        answer = post(client, "Prefetch", {**TARGET, "ttl_ms": 1e6})
        assert (answer["status"], answer["expires_in_s"]) == ("clipped", 60)

    def test_retain_as_vllm_has_it(self, client: TestClient, service: Service) -> None:
        directives = [
            {"start": 0, "end": 100, "priority": 80, "duration": 20},
            {"covers_output": True, "priority": 10},
        ]
        answer = post(client, "kv.retain", {**TARGET, "directives": directives})
        assert (answer["status"], answer["expires_in_s"]) == ("clipped", 20)
        assert told(service)["a2"] == 1
        release = [{"priority": 0}]
        answer = post(client, "kv.retain", {**TARGET, "directives": release})
        assert answer["expires_in_s"] is None
        assert told(service)["a2"] == 3

    def test_several_agents_and_all(self, client: TestClient, service: Service) -> None:
        post(client, "Pin", {"workflow_id": "w", "agent_ids": ["a1", "a2"]})
        assert told(service) == {"a0": 1, "a1": 1, "a2": 1}
        answer = post(client, "Demote", {"workflow_id": "w"})
        assert answer["agent_ids"] == ["a0", "a1", "a2"]
        assert told(service) == {"a0": None, "a1": None, "a2": None}

    def test_a_workflow_that_comes_anew_has_none(
        self, client: TestClient, service: Service
    ) -> None:
        post(client, "Pin", {**TARGET})
        client.delete("/v1/workflows/w")
        client.post("/v1/workflows", json=cycle())
        assert told(service)["a2"] == 3

    @pytest.mark.parametrize(
        ("payload", "status"),
        [
            ({"workflow_id": "other", "agent_id": "a2"}, "missing"),
            ({"workflow_id": "w", "agent_id": "nobody"}, "missing"),
            ({"session_id": "never seen"}, "missing"),
            ({}, "rejected"),
            ({"block_hashes": ["1"]}, "rejected"),
            ({**TARGET, "ttl_s": "long"}, "rejected"),
            ({**TARGET, "ttl_s": -1}, "rejected"),
            ({**TARGET, "ttl_s": 10**400}, "rejected"),
            ({"workflow_id": 7}, "rejected"),
            ({"workflow_id": "w", "agent_ids": []}, "rejected"),
            ({"workflow_id": "w", "agent_ids": ["a0", 1]}, "rejected"),
            ({**TARGET, "directives": [1]}, "rejected"),
            ({**TARGET, "priority": True}, "rejected"),
        ],
    )
    def test_what_cannot_be_done(
        self, client: TestClient, service: Service, payload: dict[str, Any], status: str
    ) -> None:
        assert post(client, "Pin", payload)["status"] == status
        assert told(service) == {"a0": 1, "a1": 2, "a2": 3}

    @pytest.mark.parametrize("kind", ["Share", "kv.share", "kv.fetch", "Explode", "kv.", "pinn"])
    def test_actions_there_are_none_of(self, client: TestClient, kind: str) -> None:
        assert post(client, kind, TARGET)["status"] == "rejected"

    @pytest.mark.parametrize(("version", "status"), [("0.1", "accepted"), ("2.0", "rejected")])
    def test_versions(self, client: TestClient, version: str, status: str) -> None:
        assert post(client, "Pin", TARGET, version=version)["status"] == status

    def test_each_action_by_itself(self, client: TestClient, service: Service) -> None:
        actions = [
            {"action_id": str(n), "action_type": "Pin", "action_version": "1", "payload": payload}
            for n, payload in enumerate([{"workflow_id": "no"}, TARGET, {}])
        ]
        body = {"protocol_version": "0.1", "message_id": "m", "actions": actions}
        answer = client.post("/v1/kv_hints", json=body).json()
        assert [one["status"] for one in answer["actions"]] == ["missing", "accepted", "rejected"]
        assert told(service)["a2"] == 1

    def test_there_is_an_end_to_room(self, client: TestClient, service: Service) -> None:
        client.post("/v1/workflows", json=cycle("large", agents=2001))
        assert post(client, "Pin", {"workflow_id": "large"})["status"] == "rejected"
        assert told(service, "large")["a2000"] == 2001


def test_no_engine_is_connected(client: TestClient, service: Service) -> None:
    answer = post(client, "Pin", TARGET)
    assert answer["status"] == "deferred"
    assert told(service)["a2"] == 1


def test_an_engine_without_the_plugin() -> None:
    with running_upstream() as upstream:
        upstream.owned_by = "vllm"
        settings = ServiceSettings(engine_url=upstream.url)
        with (
            running_service(settings) as service,
            httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
        ):
            assert http.post("/v1/chat/completions", json={}).status_code == 200
            http.post("/v1/workflows", json=cycle())
            answer = post(http, "Pin", TARGET)
            assert answer["status"] == "rejected"
            assert "vllm" in answer["reason"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"protocol_version": "0.1"},
        {"protocol_version": "0.1", "message_id": ""},
        {"protocol_version": "0.1", "message_id": "m", "actions": [{}]},
        {"protocol_version": "0.1", "message_id": "m", "actions": {}},
        {**envelope("Pin", {}), "actions": envelope("Pin", {})["actions"] * 65},
    ],
)
def test_what_is_no_envelope(client: TestClient, body: Any) -> None:
    answer = client.post("/v1/kv_hints", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_over_the_wire_and_with_a_call() -> None:
    """A connected engine hears of a hint, and of its end."""
    with running_upstream() as upstream:
        settings = ServiceSettings(engine_url=upstream.url, sweep_interval_s=0.05)
        with (
            running_service(settings) as service,
            httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
            stream(http) as reader,
        ):
            reader.next()
            http.post("/v1/workflows", json=cycle())
            assert _next_delta(reader)["a2"] == 3
            kv_hints = envelope("Pin", {"ttl_s": 0.5})
            body = {"agent_hints": {"workflow_id": "w", "agent_id": "a2"}, "kv_hints": kv_hints}
            answer = http.post("/v1/embeddings", json={})
            answer = http.post("/v1/chat/completions", json=body)
            account = json.loads(answer.headers["x-kvflow-hints"])
            assert account["used"]["kv_hints.1"] == "accepted"
            steps: list[int | None] = []
            eventually(lambda: steps.append(_next_delta(reader)["a2"]) or steps[-1] == 3)
            assert 1 in steps or 0 in steps
            assert "kv_hints" not in upstream.bodies[-1]


def _next_delta(reader: StreamReader) -> dict[str, int | None]:
    while not (isinstance(message := reader.next(), Delta) and message.workflows):
        assert message is not None
    return dict(message.workflows[0].steps_to_execution)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[TestClient]:
    with TestClient(create_app(ServiceSettings())) as client:
        client.post("/v1/workflows", json=cycle())
        yield client


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
payload_fields = st.sampled_from(
    [
        *("workflow_id", "agent_id", "agent_ids", "session_id", "ttl_s", "duration", "priority"),
        *("directives", "block_hashes"),
    ]
)
payloads = st.dictionaries(payload_fields, json_values | st.sampled_from(["w", "a1"]), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["Pin", "Retain", "Prefetch", "Demote", "Share"]) | st.text(max_size=9),
    payload=payloads,
    version=st.text(max_size=5) | st.just("1.0"),
)
def test_any_payload_is_answered(
    fuzzed: TestClient, kind: str, payload: dict[str, Any], version: str
) -> None:
    body = json.dumps(envelope(kind, payload, version)).encode()
    headers = {"content-type": "application/json"}
    answer = fuzzed.post("/v1/kv_hints", content=body, headers=headers)
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:
        (one,) = answer.json()["actions"]
        assert one["status"] in ("accepted", "clipped", "deferred", "rejected", "missing")
        assert (one["reason"] is None) == (one["status"] == "accepted")
