"""The API key, and what a body may be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from kvflow.server import ServiceSettings, create_app
from tests.server.workflow_bodies import cycle

KEY = "k3y-of-the-service"
GUARDED = [
    ("GET", "/v1/workflows"),
    ("POST", "/v1/workflows"),
    ("GET", "/v1/workflows/w"),
    ("DELETE", "/v1/workflows/w"),
    ("POST", "/v1/workflows/w/events"),
    ("GET", "/v1/workflows/w/steps"),
    ("GET", "/v1/engines"),
    ("GET", "/v1/engines/stream"),
    ("GET", "/metrics"),
    ("GET", "/nothing"),
    ("GET", "/health/"),
]


@pytest.fixture
def guarded() -> Iterator[TestClient]:
    with TestClient(create_app(ServiceSettings(api_key=SecretStr(KEY)))) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer wrong", f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", "Bearer \xff"],
)
def test_no_way_in_without_the_key(
    guarded: TestClient, method: str, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}

    answer = guarded.request(method, path, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith('Bearer realm="kvflow"')
    assert ("invalid_token" in answer.headers["www-authenticate"]) == (authorization is not None)
    assert KEY not in answer.text


def test_two_keys_are_no_key(guarded: TestClient) -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")]

    assert guarded.get("/v1/workflows", headers=headers).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_key_lets_in(guarded: TestClient, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {KEY}"}

    assert guarded.post("/v1/workflows", json=cycle(), headers=headers).status_code == 201
    assert guarded.get("/v1/workflows/w", headers=headers).status_code == 200
    assert guarded.get("/metrics", headers=headers).status_code == 200


def test_probes_and_docs_need_no_key(guarded: TestClient) -> None:
    for path in ("/health", "/ready", "/openapi.json", "/docs"):
        assert guarded.get(path).status_code == 200


def test_metrics_can_be_public() -> None:
    settings = ServiceSettings(api_key=SecretStr(KEY), public_metrics=True)
    with TestClient(create_app(settings)) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/engines").status_code == 401


def test_a_body_over_the_limit_is_refused() -> None:
    with TestClient(create_app(ServiceSettings(max_body_bytes=2000))) as client:
        body = cycle(name="x" * 250)
        assert client.post("/v1/workflows", json=body).status_code == 201
        long = cycle("long", agents=100)

        declared = client.post("/v1/workflows", json=long)

        def in_chunks() -> Iterator[bytes]:
            for _ in range(100):
                yield b" " * 100

        undeclared = client.post(
            "/v1/workflows", content=in_chunks(), headers={"content-type": "application/json"}
        )

        for answer in (declared, undeclared):
            assert answer.status_code == 413
            assert answer.json()["type"] == "urn:kvflow:problem:body-too-large"
            assert "2000 bytes" in answer.json()["detail"]


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json", ";"],
)
def test_a_body_must_be_declared_as_json(client: TestClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}

    answer = client.post("/v1/workflows", content=b"{}", headers=headers)

    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


def test_json_content_types(client: TestClient) -> None:
    for content_type in (
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/x+json",
    ):
        headers = {"content-type": content_type}
        answer = client.post("/v1/workflows", content=b"{}", headers=headers)
        assert answer.status_code == 422
