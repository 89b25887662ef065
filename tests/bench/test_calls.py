from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from kvflow.bench.calls import CallFailedError, EngineCalls, read_chat, read_generate
from tests.bench.made_up import reply


class Clock:
    """Advances by a second each time it is asked."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


async def lines(*events: dict[str, Any] | str) -> AsyncIterator[str]:
    for event in events:
        yield f"data: {event if isinstance(event, str) else json.dumps(event)}"
        yield ""


def generated(*output_ids: int, finish: str | None = None, **meta: Any) -> dict[str, Any]:
    return {
        "text": "t",
        "output_ids": list(output_ids),
        "meta_info": {
            "finish_reason": finish and {"type": finish},
            "prompt_tokens": 3,
            "completion_tokens": len(output_ids),
            "cached_tokens": 2,
            "cached_tokens_details": {"device": 1, "host": 1},
            **meta,
        },
    }


async def test_generate_is_timed_at_its_first_token_and_read_at_its_last() -> None:
    stream = lines(generated(), generated(4), generated(4, 5, finish="length"), "[DONE]")
    answer = await read_generate(stream, (1, 2, 3), 0.5, Clock())
    assert answer.output_ids == (4, 5)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (3, 2, 2)
    assert (answer.device_tokens, answer.host_tokens, answer.storage_tokens) == (1, 1, 0)
    assert (answer.ttft_s, answer.total_s) == (0.5, 1.5)


async def test_without_details_what_is_cached_is_on_the_device() -> None:
    stream = lines(generated(4, finish="length", cached_tokens_details=None))
    answer = await read_generate(stream, (1, 2, 3), 0.0, Clock())
    assert answer.device_tokens == 2


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([generated(4)], "broke off"),
        ([], "broke off"),
        ([generated(4), {"error": {"message": "too long"}}], "too long"),
        ([generated(5, finish="length", completion_tokens=2)], "1 of 2 tokens"),
    ],
)
async def test_a_generated_answer_that_is_not_whole_is_an_error(
    events: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(CallFailedError, match=problem):
        await read_generate(lines(*events), (), 0.0, Clock())


def chunk(text: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if text is None else [{"delta": {"content": text}}]
    return {"choices": choices, **more}


async def test_a_chat_is_timed_at_its_first_text() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    extension = {
        "input_ids": [1, 2],
        "output_ids": [[5, 6]],
        "cached_tokens_details": {"device": 4, "host": 0, "storage": 2},
    }
    stream = lines(chunk(""), chunk("a"), chunk("b"), chunk(sglext=extension), chunk(usage=usage))
    answer = await read_chat(stream, 0.0, Clock())
    assert answer.text == "ab"
    assert (answer.prompt_ids, answer.output_ids) == ((1, 2), (5, 6))
    assert (answer.cached_tokens, answer.device_tokens, answer.storage_tokens) == (6, 4, 2)
    assert (answer.ttft_s, answer.total_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("events", "problem"),
    [([chunk("a")], "without a report"), ([chunk("a"), {"error": "no room"}], "no room")],
)
async def test_a_chat_that_is_not_whole_is_an_error(
    events: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(CallFailedError, match=problem):
        await read_chat(lines(*events), 0.0, Clock())


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


def test_answers_are_told_apart_by_their_tokens() -> None:
    assert reply(output_ids=(1, 2)).output_hash == reply(output_ids=(1, 2)).output_hash
    assert reply(output_ids=(1, 2)).output_hash != reply(output_ids=(12,)).output_hash
