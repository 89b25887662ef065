"""Calls and answers pass through as they are, and as they come."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from kvflow.server import ServiceSettings
from tests.server.front_door.conftest import Door
from tests.server.front_door.upstream import USAGE, WORDS, Upstream, curt_port, silent_port
from tests.server.running import PATIENCE_S, eventually, running_service


def metric(door: Door, name: str, **labels: str) -> float:
    for line in door.http.get("/metrics").text.splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.partition("{")[0] == name and all(
            f'{key}="{text}"' in sample for key, text in labels.items()
        ):
            return float(value)
    return 0.0


def is_error(answer: httpx2.Response, status: int, code: str) -> bool:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return (answer.status_code, error["code"]) == (status, code)


@pytest.mark.parametrize("route", ["chat/completions", "completions", "responses", "embeddings"])
def test_a_whole_answer(door: Door, route: str) -> None:
    body = {"model": "whole", "input": "x"}
    answer = door.http.post(f"/v1/{route}?beta=1", json=body, headers={"X-Mine": "yes"})

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "".join(WORDS)
    assert len(answer.headers.get_list("date")) == 1
    path, headers, sent = door.upstream.requests[0]
    assert path == f"/v1/{route}?beta=1"
    assert json.loads(sent) == body
    assert headers["x-mine"] == "yes"
    assert headers["host"] == door.upstream.url.removeprefix("http://")
    assert headers["accept-encoding"] == "identity"


def test_a_streamed_answer(door: Door) -> None:
    answer = door.chat("words", stream=True)

    assert answer.headers["content-type"] == "text/event-stream"
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert [
        json.loads(event)["choices"][0]["delta"]["content"] for event in events[: len(WORDS)]
    ] == WORDS
    assert json.loads(events[-2])["usage"] == USAGE


def test_models(door: Door) -> None:
    assert door.http.get("/v1/models").json()["data"][0]["id"] == "m"
    door.http.get("/v1/models/org/name")
    assert door.upstream.requests[-1][0] == "/v1/models/org/name"


def test_an_event_arrives_before_the_next_is_made(door: Door) -> None:
    body = {"model": "slow", "messages": [], "stream": True}
    with door.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_raw()
        assert b"first" in next(chunks)
        assert not door.upstream.go_on.is_set()
        door.upstream.go_on.set()
        assert b"[DONE]" in b"".join(chunks)


def test_an_error_of_the_engine_is_the_answer(door: Door) -> None:
    answer = door.chat("refuses")

    assert answer.status_code == 418
    assert answer.content == b'{"error": {"message": "no tea here"}}'
    assert answer.headers["x-engine"] == "yes"
    assert answer.headers["content-type"] == "application/problem+json"
    headers = {"content-type": "application/json"}
    answer = door.http.post("/v1/chat/completions", content=b"{nonsense", headers=headers)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "what is this?")
    assert door.upstream.requests[-1][2] == b"{nonsense"


def test_hanging_up_reaches_a_streaming_engine(door: Door) -> None:
    body = {"model": "slow", "messages": [], "stream": True}
    with door.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
    assert door.upstream.hung_up.wait(PATIENCE_S)
    route = "/v1/chat/completions"
    eventually(
        lambda: metric(door, "kvflow_front_door_calls_total", route=route, outcome="cancelled") == 1
    )
    assert metric(door, "kvflow_front_door_calls_running") == 0


def test_hanging_up_reaches_an_engine_that_has_not_answered(door: Door) -> None:
    body = {"model": "mute", "messages": []}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{door.service.url}/v1/chat/completions", json=body, timeout=0.5)
    assert door.upstream.hung_up.wait(PATIENCE_S)


def test_a_reader_that_is_slow_slows_the_engine_down(door: Door) -> None:
    body = {"model": "endless", "messages": [], "stream": True}
    with door.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        sent = -1
        # It stops once what lies in between is full: sockets, and nothing that grows.
        while sent != door.upstream.sent_bytes:
            sent = door.upstream.sent_bytes
            time.sleep(0.3)
        assert sent < 64 * 1024 * 1024
        for _ in range(2000):
            next(chunks)
        assert door.upstream.sent_bytes > sent
    assert door.upstream.hung_up.wait(PATIENCE_S)


def test_an_answer_that_breaks_off_breaks_off(door: Door) -> None:
    body = {"model": "breaks", "messages": [], "stream": True}
    with door.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        chunks = answer.iter_raw()
        assert b"half" in next(chunks)
        with pytest.raises(httpx2.RemoteProtocolError):
            next(chunks)
    eventually(
        lambda: metric(door, "kvflow_front_door_calls_total", outcome="failed") == 1,
    )


def test_an_engine_that_breaks_off_before_it_answers() -> None:
    with curt_port() as url, running_service(ServiceSettings(engine_url=url)) as service:
        answer = httpx2.post(f"{service.url}/v1/completions", json={}, timeout=PATIENCE_S)
        assert is_error(answer, 502, "engine_broke_off")


def test_an_engine_that_is_not_there() -> None:
    with (
        silent_port() as url,
        running_service(ServiceSettings(engine_url=url)) as service,
    ):
        answer = httpx2.post(
            f"{service.url}/v1/chat/completions",
            json={"agent_hints": {"priority": 1}},
            timeout=PATIENCE_S,
        )
        assert is_error(answer, 502, "engine_unreachable")
        assert url in answer.json()["error"]["message"]
        assert json.loads(answer.headers["x-kvflow-hints"])["engine"] == "unknown"


def test_an_engine_that_says_nothing(upstream: Upstream) -> None:
    settings = ServiceSettings(engine_url=upstream.url, engine_timeout_s=0.5)
    with running_service(settings) as service:
        answer = httpx2.post(
            f"{service.url}/v1/completions", json={"model": "mute"}, timeout=PATIENCE_S
        )
        assert is_error(answer, 504, "engine_timeout")
        assert upstream.hung_up.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
    ],
)
def test_no_engine(method: str, path: str) -> None:
    from starlette.testclient import TestClient

    from kvflow.server import create_app

    with TestClient(create_app(ServiceSettings())) as client:
        answer: Any = client.request(method, path, json={} if method == "POST" else None)
        assert is_error(answer, 503, "no_engine")
        assert "KVFLOW_ENGINE_URL" in answer.json()["error"]["message"]


def test_our_own_errors_have_openais_shape(upstream: Upstream) -> None:
    settings = ServiceSettings(
        engine_url=upstream.url, api_key=SecretStr("k3y"), max_body_bytes=2000
    )
    with (
        running_service(settings) as service,
        httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
    ):
        refused = http.post("/v1/chat/completions", json={})
        assert is_error(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert http.get("/v1/workflows").json()["type"] == "urn:kvflow:problem:unauthorized"

        http.headers["authorization"] = "Bearer k3y"
        large = http.post("/v1/chat/completions", json={"messages": "x" * 3000})
        assert is_error(large, 413, "body_too_large")
        form = http.post("/v1/chat/completions", content=b"x", headers={"content-type": "text/x"})
        assert is_error(form, 415, "not_json")
        assert is_error(http.get("/v1/chat/completions"), 405, "method_not_allowed")
        assert http.post("/v1/chat/completions", json={}).status_code == 200


def test_keys_stay_on_their_side(upstream: Upstream) -> None:
    def sent(settings: ServiceSettings, **headers: str) -> dict[str, str]:
        with running_service(settings) as service:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            url = f"{service.url}/v1/chat/completions"
            httpx2.post(url, json={}, headers=given, timeout=PATIENCE_S)
        return upstream.requests[-1][1]

    ours, engines = SecretStr("ours"), SecretStr("engines")
    guarded = ServiceSettings(engine_url=upstream.url, api_key=ours)
    assert "authorization" not in sent(guarded, authorization="Bearer ours")
    both = ServiceSettings(engine_url=upstream.url, api_key=ours, engine_api_key=engines)
    assert sent(both, authorization="Bearer ours")["authorization"] == "Bearer engines"
    opened = ServiceSettings(engine_url=upstream.url)
    headers = sent(
        opened,
        authorization="Bearer theirs",
        cookie="a=b",
        x_kvflow_agent_id="a",
        x_dynamo_session_id="s",
        x_override_priority="3",
        connection="x-private",
        x_private="p",
    )
    assert headers["authorization"] == "Bearer theirs"
    assert headers["x-override-priority"] == "3"
    assert not {"cookie", "x-kvflow-agent-id", "x-dynamo-session-id", "x-private"} & set(headers)
    assert "x-override-priority" not in sent(
        guarded, authorization="Bearer ours", x_override_priority="3"
    )


def test_what_the_engine_is(upstream: Upstream) -> None:
    def told(**settings: Any) -> dict[str, Any]:
        given = ServiceSettings(engine_url=upstream.url, **settings)
        with running_service(given) as service:
            body = {"agent_hints": {"priority": 7}}
            url = f"{service.url}/v1/chat/completions"
            answer = httpx2.post(url, json=body, timeout=PATIENCE_S)
        account: dict[str, Any] = json.loads(answer.headers["x-kvflow-hints"])
        assert upstream.bodies[-1].get("priority") == account.get("sent", {}).get("priority")
        return account

    assert told()["engine"] == "kvflow"
    upstream.server_info = {"enable_priority_scheduling": True}
    assert (told()["engine"], told()["sent"]) == ("sglang", {"priority": 7})
    assert "sent" not in told(engine_priority="off")
    assert told(engine_kind="kvflow")["engine"] == "kvflow"
    upstream.server_info = None
    assert (told()["engine"], "sent" in told()) == ("sglang", False)
    upstream.owned_by = "vllm"
    assert (told()["engine"], "sent" in told()) == ("vllm", False)
    assert told(engine_priority="on")["sent"] == {"priority": -7}
    upstream.owned_by = "somebody"
    assert (told()["engine"], "sent" in told()) == ("unknown", False)


def test_the_engine_is_not_asked_for_every_call(door: Door) -> None:
    for _ in range(5):
        door.chat()
    assert door.upstream.asked == 1
