from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from kvflow.demo.calls import CallFailedError, ask, connect
from kvflow.engine import free_port
from tests.demo.conftest import make_answer
from tests.demo.wire import ChatWire

pytest.importorskip("openai")

MESSAGES = [{"role": "user", "content": "Is the berth free?"}]


@pytest.fixture
def client(wire: ChatWire) -> Iterator[Any]:
    with closing(connect(wire.url)) as connected:
        yield connected


def test_reads_the_answer_and_what_it_took(wire: ChatWire, client: Any) -> None:
    answer = ask(client, MESSAGES, max_tokens=16)
    assert answer.text == "answer 1"
    assert (answer.prompt_tokens, answer.cached_tokens, answer.host_tokens) == (100, 64, 16)
    assert answer.output_tokens == 3
    assert answer.prompt_ids == tuple(range(100))
    assert answer.output_ids == (1, 2, 1)


def test_asks_greedily_for_a_stream_with_usage(wire: ChatWire, client: Any) -> None:
    ask(client, MESSAGES, max_tokens=16)
    body = wire.bodies[0]
    assert body["messages"] == MESSAGES
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 16, True)
    assert body["stream_options"] == {"include_usage": True}
    assert "custom_params" not in body


def test_the_first_token_is_the_first_text_not_the_first_chunk(wire: ChatWire, client: Any) -> None:
    wire.pause_before_text_s = 0.2
    answer = ask(client, MESSAGES, max_tokens=16)
    assert 0.2 <= answer.ttft_s <= answer.total_s


def test_times_are_those_of_the_first_text_and_of_the_end(wire: ChatWire, client: Any) -> None:
    ticks = itertools.count(0.0)
    answer = ask(client, MESSAGES, max_tokens=16, clock=lambda: next(ticks))
    assert (answer.ttft_s, answer.total_s) == (1.0, 2.0)


def test_an_empty_answer_has_its_first_token_at_the_end(wire: ChatWire, client: Any) -> None:
    wire.texts = ("", "")
    ticks = itertools.count(0.0)
    answer = ask(client, MESSAGES, max_tokens=16, clock=lambda: next(ticks))
    assert (answer.text, answer.ttft_s, answer.total_s) == ("", 1.0, 1.0)


def test_an_engine_that_reports_no_ids_is_read_all_the_same(wire: ChatWire, client: Any) -> None:
    wire.reports_ids = False
    answer = ask(client, MESSAGES, max_tokens=16)
    assert answer.prompt_ids == ()
    assert answer.output_ids == ()


def test_a_refused_call_is_not_tried_again(wire: ChatWire, client: Any) -> None:
    wire.status = 500
    with pytest.raises(CallFailedError, match="500"):
        ask(client, MESSAGES, max_tokens=16)
    assert len(wire.bodies) == 1


@pytest.mark.parametrize("events", [1, 3])
def test_a_broken_off_answer_is_an_error_and_not_a_short_answer(
    wire: ChatWire, client: Any, events: int
) -> None:
    wire.break_off_after = events
    with pytest.raises(CallFailedError, match="RemoteProtocolError"):
        ask(client, MESSAGES, max_tokens=16)


def test_an_answer_without_usage_is_an_error(wire: ChatWire, client: Any) -> None:
    wire.reports_usage = False
    with pytest.raises(CallFailedError, match="without a report"):
        ask(client, MESSAGES, max_tokens=16)


def test_no_engine_is_an_error() -> None:
    with (
        closing(connect(f"http://127.0.0.1:{free_port()}")) as client,
        pytest.raises(CallFailedError, match="APIConnectionError"),
    ):
        ask(client, MESSAGES, max_tokens=16)


def test_no_proxy_is_asked(wire: ChatWire, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with closing(connect(wire.url)) as client:
        assert ask(client, MESSAGES, max_tokens=16).text == "answer 1"


def test_the_hash_is_of_the_ids_and_without_them_of_the_text() -> None:
    assert (
        make_answer("a", output_ids=(1, 2)).output_hash
        == make_answer("b", output_ids=(1, 2)).output_hash
    )
    assert (
        make_answer("a", output_ids=(1, 2)).output_hash
        != make_answer("a", output_ids=(12,)).output_hash
    )
    assert (
        make_answer("a", output_ids=()).output_hash != make_answer("b", output_ids=()).output_hash
    )
