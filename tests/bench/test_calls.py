from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from kvflow.bench.calls import EngineCalls
from kvflow.demo.calls import CallFailedError
from tests.bench.test_reply import Clock, chunk, generated


async def test_identity_and_priority_go_where_each_route_has_them() -> None:
    bodies: list[dict[str, Any]] = []

    def engine(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        if request.url.path == "/generate":
            last = generated(4, finish="length")
        else:
            last = chunk("a", usage={"prompt_tokens": 1, "completion_tokens": 1})
        return httpx2.Response(200, text=f"data: {json.dumps(last)}\n\n")

    metadata = {"kvflow": {"agent_id": "a"}}
    body = {"input_ids": [1], "sampling_params": {"temperature": 0}}
    async with EngineCalls("http://e", Clock(), transport=httpx2.MockTransport(engine)) as calls:
        await calls.ask("/generate", body, metadata, 7)
        await calls.ask("/v1/chat/completions", {"messages": []}, metadata)
        await calls.ask("/generate", body)
    assert bodies[0]["sampling_params"] == {"temperature": 0, "custom_params": metadata}
    assert bodies[0]["priority"] == 7
    assert bodies[1] == {"messages": [], "custom_params": metadata}
    assert bodies[2] == body


async def test_a_refusal_says_what_the_engine_said() -> None:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(400, text="too long"))
    async with EngineCalls("http://e", Clock(), transport=transport) as calls:
        with pytest.raises(CallFailedError, match="HTTP 400: too long"):
            await calls.ask("/generate", {"input_ids": []})
