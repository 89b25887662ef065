"""What every answer tells a browser."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from starlette.testclient import TestClient

from kvflow.server import Service
from kvflow.server.secure_headers import CONTENT_SECURITY_POLICY
from tests.server.workflow_bodies import cycle


@pytest.mark.parametrize("path", ["/health", "/v1/workflows", "/nothing", "/v1/workflows/no"])
def test_every_answer_has_them(client: TestClient, path: str) -> None:
    headers = client.get(path).headers

    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_nothing_from_elsewhere_and_nothing_inline_may_run() -> None:
    assert "default-src 'self'" in CONTENT_SECURITY_POLICY
    assert "frame-ancestors 'none'" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_so_does_an_error_of_the_service_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(service.workflows, "get", fails)
    with TestClient(service.app, raise_server_exceptions=False) as client:
        answer = client.get("/v1/workflows/w")

    assert answer.status_code == 500
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


def test_what_is_behind_a_key_is_not_kept(client: TestClient) -> None:
    assert client.post("/v1/workflows", json=cycle()).headers["cache-control"] == "no-store"
    assert client.get("/metrics").headers["cache-control"] == "no-store"


def test_docs_run_their_own_script_only(client: TestClient) -> None:
    answer = client.get("/docs")
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    scripts = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)

    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy["script-src"]
    assert "unsafe" not in policy["script-src"]
    assert policy["default-src"] == "'none'"
    sources = re.findall(r'(?:src|href)="(https?://[^"]+)"', answer.text)
    assert sources
    assert all(source.startswith("https://cdn.jsdelivr.net/") for source in sources)
