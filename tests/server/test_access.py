"""Keys of the key file at the door: who gets in where, how often, and until when."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx2
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from kvflow.agent_sdk import KVFlowClient
from kvflow.errors import ServiceError
from kvflow.server import ServiceSettings, build_service, create_app
from kvflow.server.keys import change_key_file, revoke
from kvflow.server.scopes import allows
from tests.server.keys.conftest import made
from tests.server.keys.made import MadeKeys
from tests.server.running import PATIENCE_S, running_service, stream
from tests.server.workflow_bodies import cycle, finished, started

__all__ = ["made"]

OLD_KEY = "k3y-of-the-service"

# Each route, and the scopes beside the administrator's that it is for.
ROUTES = {
    ("GET", "/v1/workflows"): {"client"},
    ("POST", "/v1/workflows"): {"client"},
    ("GET", "/v1/workflows/{workflow_id}"): {"client"},
    ("DELETE", "/v1/workflows/{workflow_id}"): {"client"},
    ("POST", "/v1/workflows/{workflow_id}/events"): {"client"},
    ("GET", "/v1/workflows/{workflow_id}/steps"): {"client"},
    ("GET", "/v1/events"): {"client"},
    ("GET", "/v1/engines"): {"engine"},
    ("GET", "/v1/engines/stream"): {"engine"},
    ("GET", "/metrics"): {"engine"},
}
OPEN = {("GET", "/health"), ("GET", "/ready")}
FOR_CLIENTS = (
    "/v1/workflows",
    "/v1/events",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/models",
    "/v1/kv_hints",
    "/v1/learned",
)


@pytest.fixture
def guarded(made: MadeKeys) -> Iterator[TestClient]:
    settings = ServiceSettings(keys_file=made.path, api_key=SecretStr(OLD_KEY))
    with TestClient(create_app(settings)) as client:
        yield client


def test_each_route_is_for_the_scopes_it_should_be_for(guarded: TestClient) -> None:
    routes = {
        (method.upper(), path)
        for path, operations in guarded.get("/openapi.json").json()["paths"].items()
        for method in operations
    }

    assert routes >= ROUTES.keys() | OPEN
    for method, path in routes - OPEN:
        # Whatever is new and not named here must be for administrators alone.
        expected = ROUTES.get((method, path), set())
        if path.startswith("/v1/engines"):
            expected = {"engine"}
        elif path.startswith(FOR_CLIENTS):
            expected = {"client"}
        found = {scope for scope in ("client", "engine") if allows(scope, path)}  # type: ignore[arg-type]
        assert found == expected, path
        assert allows("admin", path)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/workflowsx",
        "/v1/engines",
        "/v1/Workflows",
        "//v1/workflows",
        "/v1/overview",
        "/metrics",
        "/",
        "",
        "/v1",
        "/v1/",
        "/new",
    ],
)
def test_what_is_not_named_is_not_for_clients(path: str) -> None:
    assert not allows("client", path)


@pytest.mark.parametrize("name", ["team-a", "gpu-1", "ops"])
def test_scopes_at_the_door(guarded: TestClient, made: MadeKeys, name: str) -> None:
    headers = made.headers(name)
    statuses = [
        guarded.get(path, headers=headers).status_code
        for path in ("/v1/workflows", "/v1/engines", "/metrics")
    ]

    assert (
        statuses
        == {
            "team-a": [200, 403, 403],
            "gpu-1": [403, 200, 200],
            "ops": [200, 200, 200],
        }[name]
    )


def test_a_key_of_another_scope_is_told_so(guarded: TestClient, made: MadeKeys) -> None:
    answer = guarded.get("/v1/engines", headers=made.headers("team-a"))

    assert answer.json()["type"] == "urn:kvflow:problem:forbidden"
    assert "scope 'client'" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../flush_cache",
        "/v1/models/%2e%2e/%2e%2e/flush_cache",
        "/v1/workflows/../engines",
        "/v1/models/./x",
    ],
)
def test_a_path_leads_where_it_says(made: MadeKeys, path: str) -> None:
    # Over a real connection, as clients normalise paths.
    with running_service(ServiceSettings(keys_file=made.path)) as service:
        host, port = service.url.removeprefix("http://").split(":")
        import http.client

        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
        connection.request("GET", path, headers=made.headers("team-a"))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()

    assert answer.status == 404
    assert b". or .." in body


def test_the_old_key_and_the_file_go_together(guarded: TestClient, made: MadeKeys) -> None:
    for headers in ({"Authorization": f"Bearer {OLD_KEY}"}, made.headers("ops")):
        assert guarded.get("/metrics", headers=headers).status_code == 200
    assert guarded.get("/health").status_code == 200
    assert guarded.get("/v1/workflows").status_code == 401


def test_a_revoked_key_is_told_so(made: MadeKeys) -> None:
    change_key_file(made.path, lambda content: revoke(content, "team-a", now()))
    with TestClient(create_app(ServiceSettings(keys_file=made.path))) as client:
        answer = client.get("/v1/workflows", headers=made.headers("team-a"))

    assert answer.status_code == 401
    assert "was revoked" in answer.json()["detail"]


def test_failed_attempts_of_an_address_have_to_wait(
    guarded: TestClient, made: MadeKeys, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {"Authorization": "Bearer guess"}
    statuses = [guarded.get("/v1/workflows", headers=wrong).status_code for _ in range(60)]

    assert statuses[:20] == [401] * 20
    assert 429 in statuses
    answer = guarded.get("/v1/workflows", headers=wrong)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    # The key that may be weak has to wait as well; those that cannot be guessed have not.
    old = {"Authorization": f"Bearer {OLD_KEY}"}
    assert guarded.get("/v1/workflows", headers=old).status_code == 429
    assert guarded.get("/v1/workflows", headers=made.headers("team-a")).status_code == 200
    lines = [one for one in caplog.records if "refused a request" in one.getMessage()]
    assert len(lines) == 1
    metrics = guarded.get("/metrics", headers=made.headers("ops")).text
    assert 'kvflow_requests_refused_total{reason="unknown"}' in metrics
    assert 'kvflow_requests_refused_total{reason="attempts"}' in metrics


def test_a_client_over_its_rate_has_to_wait(made: MadeKeys) -> None:
    made.limit("team-a", requests_per_s=2)
    with TestClient(create_app(ServiceSettings(keys_file=made.path))) as client:
        answers = [client.get("/v1/workflows", headers=made.headers("team-a")) for _ in range(30)]
        statuses = [answer.status_code for answer in answers]

        assert statuses[:4] == [200] * 4
        refused = next(answer for answer in answers if answer.status_code != 200)
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:kvflow:problem:rate-limited"
        assert int(refused.headers["retry-after"]) >= 1
        for name in ("team-b", "ops"):
            for _ in range(10):
                assert client.get("/v1/workflows", headers=made.headers(name)).status_code == 200


def test_a_client_over_its_rate_of_events_has_to_wait(made: MadeKeys) -> None:
    made.limit("team-a", events_per_s=10)
    with TestClient(create_app(ServiceSettings(keys_file=made.path))) as client:
        headers = made.headers("team-a")
        assert client.post("/v1/workflows", json=cycle(), headers=headers).status_code == 201
        many = [event for _ in range(500) for event in (started("a0"), finished("a0"))]
        path = "/v1/workflows/w/events"
        assert client.post(path, json=many, headers=headers).status_code == 200

        answer = client.post(path, json=started("a1"), headers=headers)

        assert answer.status_code == 429
        assert "10 events per second" in answer.json()["detail"]
        assert 90 <= int(answer.headers["retry-after"]) <= 100
        assert client.get(f"{path[:-7]}/steps", headers=headers).json()["version"] == 1000


def test_a_client_has_as_many_workflows_as_it_may(made: MadeKeys) -> None:
    made.limit("team-a", max_workflows=2)
    with TestClient(create_app(ServiceSettings(keys_file=made.path))) as client:

        def create(workflow_id: str, name: str = "team-a") -> httpx2.Response:
            body = cycle(workflow_id)
            return client.post("/v1/workflows", json=body, headers=made.headers(name))

        assert [create(name).status_code for name in ("w1", "w2", "w3")] == [201, 201, 429]
        assert create("w3").json()["type"] == "urn:kvflow:problem:quota-reached"
        assert create("w1").status_code == 200
        assert create("w3", "team-b").status_code == 201
        client.delete("/v1/workflows/w1", headers=made.headers("team-a"))
        assert create("w3").status_code == 201
        assert create("w1").status_code == 429


def test_a_stream_ends_with_its_key(made: MadeKeys) -> None:
    settings = ServiceSettings(keys_file=made.path, lease_s=0.3)
    with (
        running_service(settings) as service,
        httpx2.Client(
            base_url=service.url, headers=made.headers("gpu-1"), timeout=PATIENCE_S
        ) as http,
        stream(http) as reader,
    ):
        for _ in range(3):
            assert reader.next() is not None
        change_key_file(made.path, lambda content: revoke(content, "gpu-1", now()))

        while reader.next() is not None:  # fails by the client's time-out
            pass

        assert http.get("/v1/engines").status_code == 401


def test_the_sdk_has_to_say_whose_key_it_has(made: MadeKeys) -> None:
    key = made.keys["team-a"]
    with running_service(ServiceSettings(keys_file=made.path)) as service:
        with KVFlowClient(service.url, api_key=key, client_id="team-a") as sdk:
            assert sdk.create_workflow(cycle()).client_id == "team-a"
            assert [one.workflow_id for one in sdk.list_workflows()] == ["w"]
        with (
            KVFlowClient(service.url, api_key=key) as sdk,
            pytest.raises(ServiceError, match="must be absent or 'team-a'"),
        ):
            sdk.create_workflow(cycle("other"))


def test_keys_may_be_made_while_it_listens_to_all(made: MadeKeys) -> None:
    assert ServiceSettings(host="0.0.0.0", keys_file=made.path).keys_file == made.path


def test_a_long_head_is_refused(made: MadeKeys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with TestClient(create_app(ServiceSettings(max_head_bytes=2000))) as client:
        for answer in (
            client.get("/v1/workflows", headers={"X-Long": "x" * 2000}),
            client.get("/v1/workflows", params={"x": "y" * 2000}),
            client.get("/v1/workflows", headers=[(f"X-{i}", "x") for i in range(400)]),
        ):
            assert answer.status_code == 431
            assert answer.json()["type"] == "urn:kvflow:problem:head-too-large"
        assert client.get("/v1/workflows", headers={"X-Long": "x" * 1000}).status_code == 200


def test_openapi_tells_of_keys_when_there_are(made: MadeKeys) -> None:
    service = build_service(ServiceSettings(keys_file=made.path))
    operation = service.app.openapi()["paths"]["/v1/workflows"]["get"]

    assert operation["security"] == [{"api_key": []}]
    assert {"401", "403", "429"} <= operation["responses"].keys()


def now() -> datetime:
    return datetime.now(UTC)
