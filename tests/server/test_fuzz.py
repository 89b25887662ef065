"""Whatever is sent, the service answers, and never with its own failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from kvflow.protocol import Problem, StepsView, WorkflowView
from kvflow.server import ServiceSettings, create_app

JSON = {"content-type": "application/json"}
NAMES = ["a", "b", "c", "d"]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)
# Mostly right, so that the wrong part is met deep inside.
name = st.sampled_from(NAMES) | st.text(max_size=5) | anything
agent = st.fixed_dictionaries(
    {"agent_id": name},
    optional={
        "join": st.sampled_from(["all", "any", "some", 1]),
        "fixed_prefix_tokens": st.none() | st.integers() | anything,
    },
)
edge = st.fixed_dictionaries(
    {"source": name, "target": name},
    optional={"kind": st.sampled_from(["always", "choice", None, "x"])},
)
spec = st.fixed_dictionaries(
    {
        "agents": st.lists(agent, max_size=5) | anything,
        "edges": st.lists(edge, max_size=8) | anything,
        "entry": st.lists(name, max_size=4) | anything,
    },
    optional={
        "workflow_id": st.sampled_from(["w1", "w2"]) | anything,
        "client_id": name,
        "name": anything,
        "ttl_s": st.floats() | st.integers() | anything,
        "extra": anything,
    },
)
right_spec = st.builds(
    lambda joins, edges, entry, workflow_id: {
        "workflow_id": workflow_id,
        "agents": [{"agent_id": n, "join": j} for n, j in zip(NAMES, joins, strict=True)],
        "edges": [{"source": s, "target": t, "kind": k} for (s, t), k in edges.items()],
        "entry": sorted(entry),
    },
    st.tuples(*[st.sampled_from(["all", "any"])] * len(NAMES)),
    st.dictionaries(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)),
        st.sampled_from(["always", "choice"]),
    ),
    st.sets(st.sampled_from(NAMES), min_size=1),
    st.sampled_from(["w1", "w2", "w3"]),
)
event = st.fixed_dictionaries(
    {"type": st.sampled_from(["step_started", "step_finished", "x"]), "agent_id": name},
    optional={"step_id": st.none() | st.sampled_from(["s1", "s2", ""]) | anything},
)
right_event = st.builds(
    lambda kind, agent_id, step_id: {"type": kind, "agent_id": agent_id, "step_id": step_id},
    st.sampled_from(["step_started", "step_finished"]),
    st.sampled_from(NAMES),
    st.none() | st.sampled_from(["s1", "s2"]),
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(ServiceSettings())) as client:
        yield client


def check(answer: Any) -> None:
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = Problem.model_validate_json(answer.content)
        assert problem.status == answer.status_code
        assert problem.type.startswith("urn:kvflow:problem:")
        assert problem.detail
        if answer.status_code == 422:
            assert problem.errors
            assert all(error.field and error.problem for error in problem.errors)


@settings(max_examples=80, deadline=None)
@given(body=spec | anything | right_spec)
def test_create(client: TestClient, body: Any) -> None:
    answer = client.post("/v1/workflows", content=json.dumps(body).encode(), headers=JSON)

    check(answer)
    if answer.is_success:
        view = WorkflowView.model_validate_json(answer.content)
        assert client.get(f"/v1/workflows/{view.workflow_id}").status_code in (200, 404)


@settings(max_examples=80, deadline=None)
@given(
    graph=right_spec,
    bodies=st.lists(
        st.lists(right_event | event, max_size=6) | right_event | event | anything, max_size=4
    ),
)
def test_events(client: TestClient, graph: dict[str, Any], bodies: list[Any]) -> None:
    client.delete(f"/v1/workflows/{graph['workflow_id']}")
    created = client.post("/v1/workflows", json=graph)
    check(created)
    path = f"/v1/workflows/{graph['workflow_id']}"
    version = 0
    for body in bodies:
        answer = client.post(f"{path}/events", content=json.dumps(body).encode(), headers=JSON)
        check(answer)
        if answer.is_success:
            version += answer.json()["applied"]
        if created.is_success:
            steps = StepsView.model_validate_json(client.get(f"{path}/steps").content)
            assert steps.version == version
            assert list(steps.steps_to_execution) == NAMES


@settings(max_examples=50, deadline=None)
@given(body=st.binary(max_size=200))
def test_bytes(client: TestClient, body: bytes) -> None:
    check(client.post("/v1/workflows", content=body, headers=JSON))
    check(client.post("/v1/workflows/w/events", content=body, headers=JSON))


@settings(max_examples=50, deadline=None)
@given(
    part=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    query=st.dictionaries(
        st.sampled_from(["client_id", "page", "limit", "x"]),
        st.text(st.characters(codec="utf-8"), max_size=10),
    ),
)
def test_paths_and_queries(client: TestClient, part: str, query: dict[str, str]) -> None:
    from urllib.parse import quote

    path = f"/v1/workflows/{quote(part, safe='')}"
    for suffix in ("", "/steps", "/nothing"):
        check(client.get(path + suffix))
    check(client.delete(path))
    check(client.post(f"{path}/events", json={"type": "step_started", "agent_id": "a"}))
    check(client.get("/v1/workflows", params=query))
