"""A real engine behind the service's front door, for clients that have no SDK.

Sorts before ``test_engine``, which goes on with the same engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from kvflow.server import ServiceSettings
from tests.engines import Engines, RunningEngine, words
from tests.server.running import PATIENCE_S, RunningService, eventually, running_service

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

MESSAGES: list[Any] = [
    {"role": "system", "content": " ".join(words("behind the door", 60))},
    {"role": "user", "content": "What is the capital of France?"},
]
ASKED: dict[str, Any] = {
    "model": "default",
    "messages": MESSAGES,
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.fixture
def engine(engines: Engines) -> RunningEngine:
    return engines.start(
        radix="kvflow", max_total_tokens=1280, page_size=16, env={"KVFLOW_SERVICE_URL": "off"}
    )


@pytest.fixture
def service(engine: RunningEngine) -> Iterator[RunningService]:
    with running_service(ServiceSettings(engine_url=engine.base_url)) as service:
        yield service


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0)


def test_the_same_tokens_and_the_plugin_sees_the_agent(
    engine: RunningEngine, service: RunningService
) -> None:
    with _client(engine.base_url) as direct, _client(service.url) as through:
        models = [model.id for model in through.models.list()]
        assert models == [model.id for model in direct.models.list()]
        plain = direct.chat.completions.create(**ASKED)
        assert through.chat.completions.create(**ASKED).choices == plain.choices

        text = plain.choices[0].message.content
        before = engine.metric("kvflow_requests_total", agent_class="unpredicted")
        hints = {"workflow_id": "behind", "agent_id": "asker"}
        raw: Any = through.chat.completions.with_raw_response.create(
            **ASKED, stream=True, extra_body={"agent_hints": hints}
        )
        told = json.loads(raw.headers["x-kvflow-hints"])
        streamed = "".join(
            chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices
        )
    assert streamed == text
    assert told["engine"] == "kvflow"
    assert told["sent"] == {"custom_params": "kvflow"}
    eventually(
        lambda: engine.metric("kvflow_requests_total", agent_class="unpredicted") == before + 1
    )


def test_a_response_is_a_step_too(engine: RunningEngine, service: RunningService) -> None:
    with _client(service.url) as client:
        (model,) = client.models.list()
        raw = client.responses.with_raw_response.create(
            model=model.id,  # SGLang takes no other name here
            input="What is the capital of France?",
            max_output_tokens=4,
            extra_body={"agent_hints": {"workflow_id": "responding", "agent_id": "asker"}},
        )
    assert raw.parse().output_text
    assert json.loads(raw.headers["x-kvflow-hints"])["steps"] == "learned from"
    url = f"{service.url}/v1/workflows/responding"
    eventually(lambda: httpx2.get(url).json().get("steps_started") == 1)


def test_steps_in_band_pass_through(engine: RunningEngine, service: RunningService) -> None:
    predicted = engine.metric("kvflow_requests_total", agent_class="predicted")
    params = {
        "kvflow": {"workflow_id": "in-band", "agent_id": "asker", "ttl_s": 5},
        "kvflow_steps": {"asker": 0, "other": 1},
    }
    answer = httpx2.post(
        f"{service.url}/v1/chat/completions", json={**ASKED, "custom_params": params}, timeout=120
    )
    assert answer.status_code == 200
    eventually(
        lambda: engine.metric("kvflow_requests_total", agent_class="predicted") == predicted + 1
    )


def test_a_client_that_hangs_up_ends_its_generation(
    engine: RunningEngine, service: RunningService
) -> None:
    body = {**ASKED, "max_tokens": 600, "ignore_eos": True, "stream": True}
    with (
        httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        chunks = answer.iter_raw()
        next(chunks)
        eventually(lambda: engine.metric("sglang:num_running_reqs") == 1)
    eventually(lambda: engine.metric("sglang:num_running_reqs") == 0)
