"""Token counts out of answers of any form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.server.front_door.usage import TokenUsage, UsageReader

CHAT = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 8},
}
COUNTED = TokenUsage(12, 8, 3)


def read(*chunks: bytes) -> TokenUsage:
    reader = UsageReader()
    for chunk in chunks:
        reader.feed(chunk)
    return reader.usage()


def event(data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def test_a_whole_answer() -> None:
    text = 'the word "usage": {"prompt_tokens": 1} in a text'
    answer = {"choices": [{"message": {"content": text}}], "usage": CHAT, "metadata": {"w": 1}}
    assert read(json.dumps(answer).encode()) == COUNTED
    assert read(json.dumps({"choices": answer["choices"]}).encode()) == TokenUsage()


def test_a_stream() -> None:
    words = [event({"choices": [{"delta": {"content": "x" * 500}}], "usage": None})] * 100
    assert read(*words, event({"choices": [], "usage": CHAT}), b"data: [DONE]\n\n") == COUNTED
    assert read(*words, b"data: [DONE]\n\n") == TokenUsage()


def test_the_responses_api() -> None:
    usage = {"input_tokens": 12, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 8}}
    completed = {"type": "response.completed", "response": {"output": ["x" * 99], "usage": usage}}
    assert read(event({"type": "response.created", "response": {}}), event(completed)) == COUNTED


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({}, TokenUsage()),
        ({"prompt_tokens": 5, "prompt_tokens_details": None}, TokenUsage(5, None, None)),
        ({"prompt_tokens": "5", "completion_tokens": True}, TokenUsage()),
        ({"prompt_tokens": -1, "completion_tokens": 2**40}, TokenUsage()),
        (
            {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}},
            TokenUsage(5, None, None),
        ),
        ([1, 2], TokenUsage()),
        ("many", TokenUsage()),
    ],
)
def test_counts_that_make_no_sense(usage: Any, counts: TokenUsage) -> None:
    assert read(json.dumps({"usage": usage}).encode()) == counts


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=10))
def test_however_it_is_cut(noise: bytes, cuts: list[int]) -> None:
    answer = noise.replace(b'"', b"'") + event({"usage": CHAT}) + b"data: [DONE]\n\n"
    chunks, start = [], 0
    for cut in cuts:
        chunks.append(answer[start : start + cut])
        start += cut
    assert read(*chunks, answer[start:]) == COUNTED


@given(st.lists(st.binary(max_size=300)))
def test_anything(chunks: list[bytes]) -> None:
    read(*chunks, b'"usage"', *chunks)


def test_it_holds_little() -> None:
    reader = UsageReader()
    for _ in range(1000):
        reader.feed(b"x" * 1000)
    assert sum(map(len, reader._chunks)) < 20_000
    assert reader.usage() == TokenUsage()
