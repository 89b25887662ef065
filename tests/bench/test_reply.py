from __future__ import annotations

import json
from typing import Any

import pytest

from kvflow.bench.reply import ChatReading, GenerateReading, Reply
from kvflow.demo.calls import CallFailedError
from tests.bench.made_up import reply


class Clock:
    """Advances by a second each time it is asked."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def read(reading: GenerateReading | ChatReading, *events: dict[str, Any] | str) -> Reply:
    for event in events:
        reading.take(f"data: {event if isinstance(event, str) else json.dumps(event)}")
        reading.take("")
    return reading.reply()


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


def test_generate_is_timed_at_its_first_token_and_read_at_its_last() -> None:
    stream = [generated(), generated(4), generated(4, 5, finish="length"), "[DONE]"]
    answer = read(GenerateReading((1, 2, 3), 0.5, Clock()), *stream)
    assert answer.output_ids == (4, 5)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (3, 2, 2)
    assert (answer.device_tokens, answer.host_tokens, answer.storage_tokens) == (1, 1, 0)
    assert (answer.ttft_s, answer.total_s) == (0.5, 1.5)


def test_without_details_what_is_cached_is_on_the_device() -> None:
    last = generated(4, finish="length", cached_tokens_details=None)
    answer = read(GenerateReading((1, 2, 3), 0.0, Clock()), last)
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
def test_a_generated_answer_that_is_not_whole_is_an_error(
    events: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(CallFailedError, match=problem):
        read(GenerateReading((), 0.0, Clock()), *events)


def chunk(text: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if text is None else [{"delta": {"content": text}}]
    return {"choices": choices, **more}


def test_a_chat_is_timed_at_its_first_text() -> None:
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
    stream = [chunk(""), chunk("a"), chunk("b"), chunk(sglext=extension), chunk(usage=usage)]
    answer = read(ChatReading(0.0, Clock()), *stream)
    assert answer.text == "ab"
    assert (answer.prompt_ids, answer.output_ids) == ((1, 2), (5, 6))
    assert (answer.cached_tokens, answer.device_tokens, answer.storage_tokens) == (6, 4, 2)
    assert (answer.ttft_s, answer.total_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("events", "problem"),
    [([chunk("a")], "without a report"), ([chunk("a"), {"error": "no room"}], "no room")],
)
def test_a_chat_that_is_not_whole_is_an_error(events: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(CallFailedError, match=problem):
        read(ChatReading(0.0, Clock()), *events)


def test_an_empty_answer_came_at_its_end() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1}
    answer = read(ChatReading(0.0, Clock()), chunk(usage=usage))
    assert (answer.text, answer.ttft_s, answer.total_s, answer.cached_tokens) == ("", 1.0, 1.0, 0)


def test_answers_are_told_apart_by_their_tokens() -> None:
    assert reply(output_ids=(1, 2)).output_hash == reply(output_ids=(1, 2)).output_hash
    assert reply(output_ids=(1, 2)).output_hash != reply(output_ids=(12,)).output_hash
