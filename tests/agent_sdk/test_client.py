"""Both clients against the real service."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kvflow.agent_sdk import AsyncKVFlowClient, KVFlowClient
from kvflow.errors import InvalidInputError, ServiceError, ServiceUnreachableError
from kvflow.protocol import AgentSpec, EdgeSpec, StepEvent, WorkflowSpec
from tests.agent_sdk.conftest import refused_url, running_service
from tests.server.keys.made import make_keys

SPEC = {
    "workflow_id": "w1",
    "agents": [{"agent_id": "planner", "fixed_prefix_tokens": 7}, {"agent_id": "coder"}],
    "edges": [{"source": "planner", "target": "coder"}],
    "entry": ["planner"],
}
STARTED = {"type": "step_started", "agent_id": "planner", "step_id": "s1"}


@pytest.fixture
async def async_client(service_url: str) -> AsyncIterator[AsyncKVFlowClient]:
    async with AsyncKVFlowClient(service_url, timeout_s=10) as client:
        yield client


def test_life_of_a_workflow(client: KVFlowClient) -> None:
    created = client.create_workflow(SPEC)
    assert (created.workflow_id, created.client_id, created.version) == ("w1", "default", 0)
    assert client.create_workflow(SPEC).workflow_id == "w1"
    assert client.get_workflow("w1").agents[0].fixed_prefix_tokens == 7

    result = client.post_events("w1", [STARTED, StepEvent(**{**STARTED, "type": "step_finished"})])
    assert (result.applied, result.version) == (2, 2)
    assert client.steps("w1").steps_to_execution == {"planner": None, "coder": 1}

    client.delete_workflow("w1")
    assert list(client.list_workflows()) == []


async def test_life_of_a_workflow_async(async_client: AsyncKVFlowClient) -> None:
    created = await async_client.create_workflow(SPEC)
    assert (created.workflow_id, created.client_id, created.version) == ("w1", "default", 0)
    assert (await async_client.get_workflow("w1")).agents[0].fixed_prefix_tokens == 7

    result = await async_client.post_events("w1", [STARTED])
    assert (result.applied, result.version) == (1, 1)
    assert (await async_client.steps("w1")).steps_to_execution == {"planner": 0, "coder": 1}

    await async_client.delete_workflow("w1")
    assert [w async for w in async_client.list_workflows()] == []


def test_specs_may_be_models_and_get_the_clients_id(service_url: str) -> None:
    spec = WorkflowSpec(
        agents=[AgentSpec(agent_id="a"), AgentSpec(agent_id="b")],
        edges=[EdgeSpec(source="a", target="b", kind="choice")],
        entry=["a"],
    )
    with KVFlowClient(service_url, client_id="team-a") as client:
        assert client.create_workflow(spec).client_id == "team-a"
        explicit = client.create_workflow({**SPEC, "client_id": "team-b"})
        assert explicit.client_id == "team-b"
        assert [w.workflow_id for w in client.list_workflows(client_id="team-b")] == ["w1"]


async def test_lists_go_on_over_pages(
    client: KVFlowClient, async_client: AsyncKVFlowClient
) -> None:
    ids = [f"w{n}" for n in range(5)]
    for workflow_id in ids:
        client.create_workflow({**SPEC, "workflow_id": workflow_id})
    assert [w.workflow_id for w in client.list_workflows(page_size=2)] == ids
    assert [w.workflow_id async for w in async_client.list_workflows(page_size=2)] == ids


async def test_health(client: KVFlowClient, async_client: AsyncKVFlowClient) -> None:
    client.health()
    assert client.ready()
    await async_client.health()
    assert await async_client.ready()


def test_errors_of_the_service_carry_its_problem_document(client: KVFlowClient) -> None:
    with pytest.raises(ServiceError) as missing:
        client.get_workflow("nope")
    assert missing.value.status == 404
    assert "'nope'" in str(missing.value)
    assert missing.value.problem["type"] == "urn:kvflow:problem:workflow-not-found"

    edges = [{"source": "planner", "target": "codr"}]
    with pytest.raises(ServiceError) as refused:
        client.create_workflow({**SPEC, "edges": edges})
    assert refused.value.status == 422
    assert "edges[0].target" in str(refused.value)
    assert "'codr'" in str(refused.value)

    client.create_workflow(SPEC)
    with pytest.raises(ServiceError) as conflict:
        client.create_workflow({**SPEC, "name": "other"})
    assert conflict.value.status == 409


def test_malformed_arguments_are_refused_before_anything_is_sent() -> None:
    with KVFlowClient(refused_url()) as client:
        with pytest.raises(InvalidInputError) as spec:
            client.create_workflow({**SPEC, "agents": [{"agent": "x"}]})
        assert spec.value.field[:2] == ("agents", 0)
        with pytest.raises(InvalidInputError) as event:
            client.post_events("w1", [STARTED, {**STARTED, "type": "stopped"}])
        assert event.value.field == ("events", 1, "type")
        with pytest.raises(InvalidInputError):
            client.get_workflow("")


def test_ids_cannot_leave_their_place_in_the_path(client: KVFlowClient) -> None:
    client.create_workflow(SPEC)
    with pytest.raises(ServiceError) as caught:
        client.delete_workflow("x/../w1")
    assert caught.value.status == 404
    assert client.get_workflow("w1").workflow_id == "w1"


def test_a_key_of_a_client_without_its_name_says_what_to_do(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "keys.json")
    with (
        running_service(keys_file=made.path) as url,
        KVFlowClient(url, api_key=made.keys["team-a"]) as client,
        pytest.raises(ServiceError) as caught,
    ):
        client.create_workflow({**SPEC, "client_id": "default"})
    assert caught.value.status == 403
    assert "KVFLOW_CLIENT_ID" in str(caught.value)
    assert "KVFLOW_API_KEY" not in str(caught.value)


async def test_a_missing_key_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service(api_key="right") as url:
        for wrong in (None, "wrong"):
            with KVFlowClient(url, api_key=wrong) as client, pytest.raises(ServiceError) as caught:
                client.create_workflow(SPEC)
            assert caught.value.status == 401
            assert "KVFLOW_API_KEY" in str(caught.value)
        monkeypatch.setenv("KVFLOW_API_KEY", "right")
        async with AsyncKVFlowClient(url) as client:
            assert (await client.create_workflow(SPEC)).workflow_id == "w1"


async def test_nobody_there() -> None:
    url = refused_url()
    with KVFlowClient(url) as client, pytest.raises(ServiceUnreachableError, match=url):
        client.health()
    async with AsyncKVFlowClient(url) as client:
        with pytest.raises(ServiceUnreachableError, match=url):
            await client.ready()


def test_nobody_there_says_what_to_do() -> None:
    with (
        KVFlowClient(refused_url()) as client,
        pytest.raises(ServiceUnreachableError, match=r"`kvflow serve`.*KVFLOW_SERVICE_URL"),
    ):
        client.health()


def test_somebody_who_says_nothing() -> None:
    with (
        _stranger(None) as url,
        KVFlowClient(url, timeout_s=0.05) as client,
        pytest.raises(ServiceUnreachableError, match=r"no answer within 0\.05 s"),
    ):
        client.health()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b'{"workflow_id": 3}'), (404, b"<html>"), (502, b""), (301, b"")],
)
def test_something_else_listens_there(status: int, body: bytes) -> None:
    with (
        _stranger((status, body)) as url,
        KVFlowClient(url) as client,
        pytest.raises(ServiceError, match=r"KVFlow service|listening there") as caught,
    ):
        client.get_workflow("w1")
    assert caught.value.status == status


def test_no_proxy_is_asked_for_this_machine(
    service_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", refused_url())
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with KVFlowClient(service_url) as client:
        assert client.ready()


@contextmanager
def _stranger(answer: tuple[int, bytes] | None) -> Iterator[str]:
    """An HTTP server that is no KVFlow service; with ``None`` it keeps callers waiting."""
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answer is None:
                release.wait(60)
                return
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        release.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_workflow_that_declares_nothing(client: KVFlowClient) -> None:
    created = client.create_workflow({"learn": True, "workflow_id": "undeclared"})
    assert created.learn
    client.post_events("undeclared", [{"type": "step_started", "agent_id": "any"}])
    assert client.steps("undeclared").steps_to_execution == {"any": 0}
    with pytest.raises(InvalidInputError, match="agents"):
        client.create_workflow({**SPEC, "learn": True})
