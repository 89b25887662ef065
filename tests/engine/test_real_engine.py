"""Stock SGLang on the CPU, as the launcher starts it: chat, cache, host tier, several ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvflow.engine import EngineOptions, EngineProcess, free_port, prepare
from kvflow.errors import EnvironmentProblemError
from tests.engines import Answer, Engines, RunningEngine, words

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

QUESTION = "What is the capital of France?"
SMALL_POOL = 1024
AGENTS = [f"agent {number}" for number in range(4)]


def ask(engine: RunningEngine, agent: str, *, max_tokens: int = 6) -> Answer:
    system = f"You are {agent}. " + " ".join(words(agent, 300))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}]
    return engine.chat(messages, max_tokens=max_tokens)


def test_stock_runs_without_kvflow_s_plugin(engines: Engines) -> None:
    engine = engines.start(max_total_tokens=SMALL_POOL)
    settings = engine.http.get("/get_server_info").json()
    assert settings["radix_cache_backend"] is None
    assert settings["max_total_tokens"] == SMALL_POOL
    names = [line.partition(" ")[0] for line in engine.http.get("/metrics").text.splitlines()]
    assert any(name.startswith("sglang:") for name in names)
    assert not [name for name in names if name.startswith("kvflow")]


def test_it_chats(engines: Engines) -> None:
    engine = engines.start(max_total_tokens=SMALL_POOL)
    answer = engine.chat([{"role": "user", "content": QUESTION}], max_tokens=16)
    assert "Paris" in answer.text
    assert answer.cached_tokens == 0


def test_a_prefix_seen_before_is_hit(engines: Engines) -> None:
    engine = engines.start(max_total_tokens=SMALL_POOL)
    cold = ask(engine, "planner")
    warm = ask(engine, "planner")
    assert cold.cached_tokens == 0
    assert warm.prompt_tokens - 16 <= warm.device_tokens < warm.prompt_tokens
    assert warm.text == cold.text


def test_it_streams(engines: Engines) -> None:
    engine = engines.start(max_total_tokens=SMALL_POOL)
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 16,
        "temperature": 0,
        "stream": True,
    }
    with engine.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert len([piece for piece in pieces if piece]) > 3
    assert "Paris" in "".join(pieces)


def test_it_answers_in_a_schema(engines: Engines) -> None:
    engine = engines.start(max_total_tokens=SMALL_POOL)
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string"}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    answer = engine.chat(
        [{"role": "user", "content": QUESTION}],
        max_tokens=32,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert list(json.loads(answer.text)) == ["capital"]


def test_metrics_count_hits(engines: Engines) -> None:
    engine = engines.start(max_total_tokens=SMALL_POOL)
    name, label = "sglang:realtime_tokens_total", {"mode": "prefill_cache"}
    before = engine.metric(name, **label)
    ask(engine, "tester")
    hit = ask(engine, "tester").cached_tokens
    assert hit > 0
    assert engine.metric(name, **label) - before == hit


def test_what_does_not_fit_is_computed_again(engines: Engines) -> None:
    engine = engines.start(max_total_tokens=SMALL_POOL)
    for agent in AGENTS:
        ask(engine, agent)
    again = ask(engine, AGENTS[0])
    assert again.cached_tokens < 0.2 * again.prompt_tokens


class TestHostTier:
    def test_what_the_device_lost_comes_back_from_the_host_and_is_the_same(
        self, engines: Engines
    ) -> None:
        engine = engines.start(max_total_tokens=SMALL_POOL, hicache_ratio=4)
        cold = {agent: ask(engine, agent) for agent in AGENTS}
        assert sum(answer.prompt_tokens for answer in cold.values()) > SMALL_POOL
        backed_up = engine.metric("sglang:hicache_backup_tokens_total")
        assert backed_up > SMALL_POOL
        again = ask(engine, AGENTS[0])
        assert again.host_tokens > 0.9 * again.prompt_tokens
        assert again.text == cold[AGENTS[0]].text
        assert engine.metric("sglang:load_back_tokens_total") >= again.host_tokens

    def test_the_file_tier_below_it(self, engines: Engines, tmp_path: Path) -> None:
        engine = engines.start(
            max_total_tokens=SMALL_POOL,
            hicache_ratio=1.2,
            extra_args=(
                *("--hicache-storage-backend", "file"),
                *("--hicache-storage-prefetch-policy", "wait_complete"),
            ),
            env={"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(tmp_path)},
        )
        try:
            cold = {agent: ask(engine, agent) for agent in AGENTS}
            assert list(tmp_path.iterdir())
            again = ask(engine, AGENTS[0])
            details = again.body["sglext"]["cached_tokens_details"]
            assert details["storage"] > 0.8 * again.prompt_tokens
            assert again.text == cold[AGENTS[0]].text
        finally:
            engines.stop(engine)


def test_three_ranks_on_any_number_of_cores(engines: Engines) -> None:
    engine = engines.start(tp=3, max_total_tokens=SMALL_POOL, hicache_ratio=4)
    try:
        assert "Paris" in engine.chat([{"role": "user", "content": QUESTION}], max_tokens=16).text
        cold = {agent: ask(engine, agent) for agent in AGENTS}
        again = ask(engine, AGENTS[0])
        assert again.host_tokens > 0.9 * again.prompt_tokens
        assert again.text == cold[AGENTS[0]].text
    finally:
        engines.stop(engine)


def test_a_flag_sglang_does_not_know_is_shown_in_its_own_words(tmp_path: Path) -> None:
    options = EngineOptions(device="cpu", port=free_port(), extra_args=("--no-such-flag",))
    process = EngineProcess(prepare(options), log_path=tmp_path / "engine.log")
    with pytest.raises(EnvironmentProblemError, match="unrecognized arguments: --no-such-flag"):
        process.start()
