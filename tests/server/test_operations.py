"""Health, readiness, metrics, and the OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

from pydantic import SecretStr
from starlette.testclient import TestClient

from kvflow.server import Service, ServiceSettings, create_app
from kvflow.server.front_door.errors import is_front_door
from tests.server.workflow_bodies import cycle, finished, started


def test_health_and_ready(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}


def test_not_ready_before_the_start_and_after_the_end(service: Service) -> None:
    before = TestClient(service.app).get("/ready")
    assert (before.status_code, before.json()["type"]) == (503, "urn:kvflow:problem:not-ready")

    with TestClient(service.app) as client:
        service.streams.shut_down()
        during = client.get("/ready")
        assert during.status_code == 503
        assert during.json()["detail"] == "the service is shutting down"
        assert client.get("/health").status_code == 200


def test_metrics_count_what_happened(client: TestClient) -> None:
    client.post("/v1/workflows", json=cycle())
    client.post("/v1/workflows", json=cycle("other"))
    client.delete("/v1/workflows/other")
    client.post(
        "/v1/workflows/w/events",
        json=[started("a0", "s"), started("a0", "s"), finished("a0"), started("a2")],
    )
    client.get("/no/such/path")

    answer = client.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = set(answer.text.splitlines())
    assert {
        "kvflow_workflows 1.0",
        "kvflow_workflows_created_total 2.0",
        'kvflow_workflows_closed_total{reason="deleted"} 1.0',
        'kvflow_events_total{outcome="applied",type="step_started"} 1.0',
        'kvflow_events_total{outcome="duplicate",type="step_started"} 1.0',
        'kvflow_events_total{outcome="misprediction",type="step_started"} 1.0',
        'kvflow_events_total{outcome="applied",type="step_finished"} 1.0',
        "kvflow_update_seconds_count 1.0",
        'kvflow_http_requests_total{method="POST",route="/v1/workflows",status="201"} 2.0',
        'kvflow_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
    } <= lines
    assert not any(re.match(r"\w+_created[ {]", line) for line in lines)


def test_metric_names_end_in_their_unit(client: TestClient) -> None:
    types = dict(
        re.findall(r"^# TYPE (kvflow_\w+) (\w+)$", client.get("/metrics").text, re.MULTILINE)
    )

    for name, kind in types.items():
        assert name.endswith("_total") == (kind == "counter"), name
        if kind == "histogram":
            assert name.endswith("_seconds"), name


def test_two_apps_count_apart(client: TestClient) -> None:
    client.post("/v1/workflows", json=cycle())

    with TestClient(create_app(ServiceSettings())) as other:
        assert "kvflow_workflows 0.0" in other.get("/metrics").text


def documented(document: dict[str, Any], method: str, path: str) -> set[str]:
    return set(document["paths"][path][method]["responses"])


def test_openapi_documents_the_answers(client: TestClient) -> None:
    document = client.get("/openapi.json").json()

    one = "/v1/workflows/{workflow_id}"
    assert documented(document, "post", "/v1/workflows") == {
        *("200", "201", "400", "409", "413", "415", "422", "503")
    }
    assert documented(document, "get", "/v1/workflows") == {"200", "422", "503"}
    assert documented(document, "get", one) == {"200", "404", "422", "503"}
    assert documented(document, "delete", one) == {"204", "404", "422", "503"}
    assert documented(document, "post", f"{one}/events") == {
        *("200", "400", "404", "409", "413", "415", "422", "503")
    }
    assert documented(document, "get", f"{one}/steps") == {"200", "404", "422", "503"}
    assert documented(document, "get", "/v1/engines/stream") == {"200", "422"}
    assert documented(document, "get", "/ready") == {"200", "503"}
    schemas = document["components"]["schemas"]
    assert {"Problem", "Snapshot", "Delta", "Heartbeat"} <= set(schemas)
    for reference in re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text):
        assert reference in schemas


def test_openapi_documents_errors_as_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()

    for path, operations in document["paths"].items():
        # OpenAI's clients read another shape.
        media_type = "application/json" if is_front_door(path) else "application/problem+json"
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if "400" <= status < "600":
                    assert list(answer["content"]) == [media_type]


def test_openapi_documents_the_key() -> None:
    with TestClient(create_app(ServiceSettings(api_key=SecretStr("k")))) as client:
        document = client.get("/openapi.json").json()

    assert document["components"]["securitySchemes"] == {
        "api_key": {"type": "http", "scheme": "bearer"}
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            is_open = path in ("/health", "/ready")
            assert ("security" in operation) != is_open
            assert ("401" in operation["responses"]) != is_open
