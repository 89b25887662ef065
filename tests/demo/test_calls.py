from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from kvflow.demo.calls import ask, connect
from tests.demo.conftest import make_answer
from tests.demo.wire import ChatWire

openai = pytest.importorskip("openai")

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


def test_an_engine_that_reports_no_ids_is_read_all_the_same(wire: ChatWire, client: Any) -> None:
    wire.reports_ids = False
    answer = ask(client, MESSAGES, max_tokens=16)
    assert answer.prompt_ids == ()
    assert answer.output_ids == ()


def test_a_refused_call_is_not_tried_again(wire: ChatWire, client: Any) -> None:
    wire.status = 500
    with pytest.raises(openai.OpenAIError):
        ask(client, MESSAGES, max_tokens=16)
    assert len(wire.bodies) == 1


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
