"""The log: as text and as JSON, with what is known of the request and without secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanContext
from starlette.testclient import TestClient

from kvflow.engine import free_port
from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.identity import IDENTITY_KEY, Identity
from kvflow.server.logs import JsonFormatter, TextFormatter, masked
from kvflow.server.request_log import about
from tests.server.running import eventually

ID = "kvflow.request_id"
REQUEST = {
    ID: "r-1",
    "path_params": {"workflow_id": "w"},
    IDENTITY_KEY: Identity("c", "client"),
}


def record(message: str, *args: Any, name: str = "kvflow.server", **more: Any) -> Any:
    made = logging.LogRecord(name, logging.INFO, __file__, 1, message, args, None)
    made.created, made.msecs = 1_764_000_000.25, 250.0
    made.__dict__ |= more
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(made)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_json_has_the_message_and_when() -> None:
    assert as_json(record("engine %s connected", "e")) == {
        "time": "2025-11-24T16:00:00.250Z",
        "level": "info",
        "logger": "kvflow.server",
        "message": "engine e connected",
    }


def test_both_say_which_request_it_is_about() -> None:
    span = SpanContext(int("ab" * 16, 16), int("cd" * 8, 16), is_remote=False)
    with about(REQUEST), trace.use_span(trace.NonRecordingSpan(span)):
        fields = as_json(record("x"))
        line = TextFormatter().format(record("x"))

    facts = {
        **{"request_id": "r-1", "workflow_id": "w", "client_id": "c"},
        **{"trace_id": "ab" * 16, "span_id": "cd" * 8},
    }
    assert facts.items() <= fields.items()
    assert line.endswith("x [" + " ".join(f"{k}={v}" for k, v in facts.items()) + "]")
    assert "request_id" not in as_json(record("x"))


def test_what_is_not_known_is_left_out() -> None:
    with about({ID: "r-1"}):
        assert set(as_json(record("x"))) == {"time", "level", "logger", "message", "request_id"}


def test_an_exception_is_a_field_or_lines_of_its_own() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())

    assert as_json(made)["exception"].endswith("ValueError: bad")
    assert TextFormatter().format(made).splitlines()[-1] == "ValueError: bad"


def test_a_quoted_line_break_forges_no_line() -> None:
    made = record("%s failed", "a\nb\x1b[31m\u2028c")

    assert len(TextFormatter().format(made).splitlines()) == 1
    assert as_json(made)["message"] == "a\nb\x1b[31m\u2028c failed"


def test_an_access_line_has_fields() -> None:
    args = ("127.0.0.1:1", "GET", "/v1/engines?x=1", "1.1", 200)
    made = record('%s - "%s %s HTTP/%s" %d', *args, name="uvicorn.access")

    fields = as_json(made)
    assert (fields["method"], fields["path"], fields["status"]) == ("GET", "/v1/engines?x=1", 200)
    assert fields["message"] == '127.0.0.1:1 - "GET /v1/engines?x=1 HTTP/1.1" 200'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ("{'authorization': 'Bearer abc'}", "{'authorization': 'Bearer ***'}"),
        ("?api_key=abc&x=1", "?api_key=***&x=1"),
        ('{"api-key": "abc", "x": 1}', '{"api-key": "***", "x": 1}'),
        ("password=hunter2", "password=***"),
        ("mqtts://user:hunter2@broker:8883", "mqtts://user:***@broker:8883"),
        ("api_key = None", "api_key = None"),
        ("api_key = **********", "api_key = **********"),
        ("prompt_tokens=12 http://127.0.0.1:8100/x", "prompt_tokens=12 http://127.0.0.1:8100/x"),
    ],
)
def test_secrets_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert as_json(record("%s", text))["message"] == expected
    assert expected in TextFormatter().format(record("%s", text))


class TestRequestIds:
    def test_an_id_is_made_up(self, client: TestClient) -> None:
        first, second = (client.get("/health").headers["x-request-id"] for _ in range(2))
        assert len(first) == len(second) == 32
        assert first != second

    @pytest.mark.parametrize("given", ["a", "3f2b-77_x", "x" * 128])
    def test_the_clients_own_is_taken(self, client: TestClient, given: str) -> None:
        answer = client.get("/v1/workflows/none", headers={"X-Request-ID": given})
        assert answer.status_code == 404
        assert answer.headers.get_list("x-request-id") == [given]

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é"])
    def test_an_odd_one_is_not(self, client: TestClient, given: str) -> None:
        headers = {"X-Request-ID": given.encode()}
        assert len(client.get("/health", headers=headers).headers["x-request-id"]) == 32  # type: ignore[arg-type]

    def test_a_refused_request_has_one(self, client: TestClient) -> None:
        answer = client.post("/v1/workflows", content=b"x", headers={"X-Request-ID": "r"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (415, "r")

    def test_a_defect_is_logged_with_it(
        self, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("a defect")

        caplog.handler.setFormatter(JsonFormatter())
        monkeypatch.setattr(type(service.workflows), "get", broken)
        with TestClient(service.app, raise_server_exceptions=False) as client:
            answer = client.get("/v1/workflows/w-9", headers={"X-Request-ID": "r-500"})

        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "r-500")
        lines = [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]
        (logged,) = [line for line in lines if "incident" in line["message"]]
        assert (logged["request_id"], logged["workflow_id"]) == ("r-500", "w-9")
        assert "RuntimeError: a defect" in logged["exception"]

    async def test_requests_at_the_same_time_are_told_apart(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        service = build_service(ServiceSettings())
        caplog.handler.setFormatter(JsonFormatter())
        caplog.set_level(logging.INFO)

        @service.app.get("/slow/{workflow_id}")
        async def slow(workflow_id: str) -> None:
            await asyncio.sleep(0.01)
            logging.getLogger("kvflow.server").info("in %s", workflow_id)

        transport = httpx2.ASGITransport(service.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as http:
            await asyncio.gather(
                *(http.get(f"/slow/w{n}", headers={"X-Request-ID": f"r{n}"}) for n in range(8))
            )
        lines = [json.loads(line) for line in caplog.text.splitlines()]
        told = {line["message"]: line["request_id"] for line in lines if "in w" in line["message"]}
        assert told == {f"in w{n}": f"r{n}" for n in range(8)}


def test_the_whole_log_of_a_process_is_json_without_the_key(tmp_path: Path) -> None:
    port, key = free_port(), "the-secret-key-1234"
    log = tmp_path / "log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("KVFLOW_")},
        **{"KVFLOW_API_KEY": key, "KVFLOW_LOG_FORMAT": "json", "KVFLOW_ACCESS_LOG": "1"},
    }
    command = [sys.executable, "-m", "kvflow.cli.main", "serve", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stderr=file, stdout=file)
    try:
        base = f"http://127.0.0.1:{port}"
        eventually(lambda: _answers(base))
        auth = {"Authorization": f"Bearer {key}", "X-Request-ID": "r-77"}
        assert httpx2.get(f"{base}/v1/workflows/w", headers=auth).status_code == 404
        wrong = {"Authorization": f"Bearer {key}-wrong"}
        assert httpx2.get(f"{base}/v1/engines?api_key={key}", headers=wrong).status_code == 401
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)

    assert key not in log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"kvflow.server", "uvicorn.access"} <= {line["logger"] for line in lines}
    (access,) = [line for line in lines if line.get("path") == "/v1/workflows/w"]
    assert (access["request_id"], access["workflow_id"], access["status"]) == ("r-77", "w", 404)


def _answers(base: str) -> bool:
    try:
        return httpx2.get(f"{base}/health").status_code == 200
    except httpx2.TransportError:
        return False
