"""Every error answer is a problem document that says what is wrong and where."""

from __future__ import annotations

import inspect
import json
import logging

import pytest
from starlette.testclient import TestClient

import kvflow.errors
from kvflow.errors import KVFlowError
from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.problems import problem_kind, problem_response
from tests.server.workflow_bodies import cycle


def fields(answer_json: dict[str, object]) -> dict[str, str]:
    errors = answer_json["errors"]
    assert isinstance(errors, list)
    return {error["field"]: error["problem"] for error in errors}


def test_every_wrong_field_is_listed_with_its_path(client: TestClient) -> None:
    body = cycle("!", ttl_s=0, workflw="typo")
    body["agents"][1] = {"agent_id": "a b", "join": "some", "fixed_prefix_tokens": -1}
    body["edges"][2] = {"source": "a0"}

    answer = client.post("/v1/workflows", json=body)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:kvflow:problem:invalid-input"
    assert problem["status"] == 422
    identifier = "must start with a letter or digit and go on with letters, digits and . _ : @ -"
    assert fields(problem) == {
        "workflow_id": f"{identifier}; got '!'",
        "ttl_s": "Input should be greater than 0; got 0",
        "agents[1].agent_id": f"{identifier}; got 'a b'",
        "agents[1].join": "Input should be 'all' or 'any'; got 'some'",
        "agents[1].fixed_prefix_tokens": "Input should be greater than or equal to 0; got -1",
        "edges[2].target": "is required",
        "workflw": "is not a field of this object; check its spelling",
    }


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (
            {"edges": [{"source": "a0", "target": "nobody"}]},
            "edges[0].target",
            "no agent has agent_id 'nobody'",
        ),
        ({"agents": [{"agent_id": "a0"}] * 2}, "agents[1].agent_id", "declared already"),
        ({"entry": ["nobody"]}, "entry[0]", "no agent has agent_id 'nobody'"),
    ],
)
def test_a_wrong_graph_names_the_field(
    client: TestClient, change: dict[str, object], field: str, words: str
) -> None:
    answer = client.post("/v1/workflows", json=cycle() | change)

    assert answer.status_code == 422
    assert list(fields(answer.json())) == [field]
    assert words in fields(answer.json())[field]
    assert client.get("/v1/workflows/w").status_code == 404


def test_a_graph_with_dead_agents_names_them(client: TestClient) -> None:
    body = cycle()
    body["agents"][1]["join"] = "all"
    body["edges"].append({"source": "a2", "target": "a1"})

    answer = client.post("/v1/workflows", json=body)

    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:kvflow:problem:invalid-graph"
    assert answer.json()["agent_ids"] == ["a1", "a2"]
    assert "join 'any'" in answer.json()["detail"]


def test_a_large_wrong_graph_is_refused_alike(client: TestClient) -> None:
    body = cycle(agents=3000)
    body["edges"][1500]["target"] = "nobody"

    answer = client.post("/v1/workflows", json=body)

    assert (answer.status_code, list(fields(answer.json()))) == (422, ["edges[1500].target"])


def test_many_wrong_fields_are_counted(client: TestClient) -> None:
    answer = client.post("/v1/workflows", json=cycle() | {"edges": [{}] * 5000})

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("10000 values are wrong; the first 200 are listed:")
    assert len(answer.json()["errors"]) == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"agents": [}', 400, "at character 12"),
        (b"{\xff}", 400, "UTF-8"),
        (b"[" * 200_000, 400, "nested"),
        (b'{"ttl_s": ' + b"9" * 10_000 + b"}", 400, "JSON"),
        (b"", 422, "body: is required"),
        (b"null", 422, "body: "),
        (b"[]", 422, "must be a JSON object"),
        (b'{"ttl_s": NaN}', 422, "ttl_s: Input should be a finite number; got nan"),
        (b'{"name": "\\ud800"}', 422, "name: must be text of valid Unicode characters"),
        (b'{"\\ud800": 1}', 422, "must be text of valid Unicode characters"),
    ],
)
def test_odd_bodies(client: TestClient, body: bytes, status: int, words: str) -> None:
    answer = client.post(
        "/v1/workflows", content=body, headers={"content-type": "application/json"}
    )

    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert words in json.dumps(answer.json())


def test_query_parameters_are_named(client: TestClient) -> None:
    answer = client.get("/v1/workflows?limit=none&page=%20&client_id=")

    assert answer.status_code == 422
    assert set(fields(answer.json())) == {"query.limit", "query.page", "query.client_id"}


def test_unknown_route(client: TestClient) -> None:
    for path in ("/v1/workflow", "/v1/workflows/", "/nothing", "/v1/workflows/w/step"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:kvflow:problem:no-such-route"
        assert path in answer.json()["detail"]


def test_wrong_method(client: TestClient) -> None:
    answer = client.put("/v1/workflows", json={})

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"
    assert answer.json()["detail"] == "/v1/workflows takes GET, POST, not PUT"
    assert client.post("/docs", json={}).status_code == 405


def test_a_full_service_says_so() -> None:
    service = build_service(ServiceSettings(max_workflows=2))
    with TestClient(service.app) as client:
        for name in ("w0", "w1"):
            client.post("/v1/workflows", json=cycle(name))

        answer = client.post("/v1/workflows", json=cycle("w2"))

        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:kvflow:problem:too-many-workflows"
        assert client.post("/v1/workflows", json=cycle("w1")).status_code == 200
        client.delete("/v1/workflows/w0")
        assert client.post("/v1/workflows", json=cycle("w2")).status_code == 201


@pytest.mark.parametrize("error", [RuntimeError("the password is swordfish"), KVFlowError("fish")])
def test_an_unexpected_error_is_logged_and_not_shown(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(workflow_id: str, *, namespace: str) -> None:
        raise error

    monkeypatch.setattr(service.workflows, "get", fail)
    with (
        TestClient(service.app, raise_server_exceptions=False) as client,
        caplog.at_level(logging.ERROR, "kvflow.server"),
    ):
        answer = client.get("/v1/workflows/w")

    assert answer.status_code == 500
    problem = answer.json()
    assert problem["type"] == "urn:kvflow:problem:internal-error"
    assert "fish" not in answer.text
    assert problem["instance"] in caplog.text
    assert "fish" in caplog.text


def test_every_error_a_request_can_cause_has_its_own_answer() -> None:
    # By the notes in the errors module: those with an HTTP status in the tree.
    tree = inspect.getdoc(kvflow.errors)
    assert tree is not None
    statuses = {"InvalidInputError": 422, "NotFoundError": 404, "ConflictError": 409}
    for name in kvflow.errors.__all__:
        cls = getattr(kvflow.errors, name)
        for base, status in statuses.items():
            if issubclass(cls, getattr(kvflow.errors, base)):
                assert problem_kind(cls.__new__(cls)).status == status
                assert base in tree


def test_a_problem_can_quote_any_text() -> None:
    body = problem_response(404, "no \ud800", workflow_id="\ud800").body

    assert json.loads(bytes(body))["detail"] == "no \ud800"
