"""The plugin in a real SGLang with a real model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.engines import Engines, RunningEngine, words
from tests.sglang_plugin.engine_plugins import BROKEN_COPY, DEAF_RANKS, install_plugin
from tests.sglang_plugin.workload import PAGE_SIZE, Ring, hit_rate, token_ids

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CAPACITY_TOKENS = 1280
NO_SERVICE = {"KVFLOW_SERVICE_URL": "off"}
CHECK_RANKS = {"SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
WRITE_THROUGH: dict[str, Any] = {"hicache_ratio": 3.0}


def kvflow_engine(engines: Engines, **options: Any) -> RunningEngine:
    env = {**NO_SERVICE, **options.pop("env", {})}
    return engines.start(
        radix="kvflow", max_total_tokens=CAPACITY_TOKENS, page_size=PAGE_SIZE, env=env, **options
    )


class TestDeviceTier:
    def test_ring_keeps_what_any_policy_could(self, engines: Engines) -> None:
        stock = engines.start(max_total_tokens=CAPACITY_TOKENS, page_size=PAGE_SIZE)
        stock_ring = Ring()
        stock_answers = [stock_ring.round(stock, n) for n in range(3)]
        assert hit_rate(stock_answers[1] + stock_answers[2]) < 0.05

        ring = Ring()
        engine = kvflow_engine(engines)
        answers = [ring.round(engine, n) for n in range(3)]
        best = sum(ring.best_hit_tokens(CAPACITY_TOKENS)[ring.agents :])
        asked = sum(a.prompt_tokens for a in answers[1] + answers[2])
        assert best / asked > 0.4  # else there is nothing to show
        assert hit_rate(answers[1] + answers[2]) > best / asked - 0.03
        assert [[a.text for a in r] for r in answers] == [
            [a.text for a in r] for r in stock_answers
        ]

    def test_metrics_tell_what_was_evicted_and_hit(self, engines: Engines) -> None:
        engine = kvflow_engine(engines)
        before = _metrics(engine)
        ring = Ring(workflow_id="metered")
        answers = [a for n in range(2) for a in ring.round(engine, n)]
        after = _metrics(engine)
        grown = {name: after[name] - before[name] for name in after}
        assert grown["hit"] == sum(a.cached_tokens for a in answers)
        assert grown["query"] == sum(a.prompt_tokens for a in answers)
        assert grown["prefix"] > 0
        assert grown["suffix"] > 0
        assert grown["updates"] == len(answers)
        assert grown["decisions"] > 0
        assert engine.metric("kvflow_lease_held") == 0

    def test_chat_history_is_kept_while_suffixes_of_the_same_size_go(
        self, engines: Engines
    ) -> None:
        engine = kvflow_engine(engines)
        chat = [{"role": "system", "content": " ".join(words("chat agent", 60))}]
        steps = {"chat": 1, "worker": 1}
        suffix_calls: list[list[dict[str, str]]] = []
        last_length = 0
        for visit in range(3):
            chat.append({"role": "user", "content": " ".join(words(f"visit {visit}", 60))})
            answer = _ask(engine, "chat", chat, steps)
            if visit == 2:
                # Everything up to the last visit's answer, but for its last page.
                assert answer.cached_tokens > last_length - 2 * PAGE_SIZE
            chat.append({"role": "assistant", "content": answer.text})
            last_length = len(token_ids(chat[:-1])) + answer.body["usage"]["completion_tokens"]
            for number in range(3):
                suffix_calls.append(
                    [
                        {"role": "system", "content": " ".join(words("worker", 60))},
                        {"role": "user", "content": " ".join(words(f"{visit}.{number}", 60))},
                    ]
                )
                _ask(engine, "worker", suffix_calls[-1], steps)
        # The chat's three visits are older than the worker's last three questions; fill up what
        # is left of the device with requests that no workflow stands behind.
        for number in range(8):
            engine.chat([{"role": "user", "content": " ".join(words(f"stranger {number}", 120))}])
        worker_prefix = len(token_ids(suffix_calls[0][:1]))
        for call in suffix_calls[-2:]:
            again = _ask(engine, "worker", call, steps)
            assert again.cached_tokens <= worker_prefix
        chat.append({"role": "user", "content": "Thank you."})
        answer = _ask(engine, "chat", chat, steps)
        assert answer.cached_tokens > last_length - 2 * PAGE_SIZE

    @pytest.mark.parametrize(
        "custom_params",
        [
            {"kvflow": "nonsense"},
            {"kvflow": {"workflow_id": "w"}},
            {"kvflow": {"workflow_id": "w", "agent_id": "a", "client_id": ""}},
            {"kvflow": {"workflow_id": "w", "agent_id": "a"}, "kvflow_steps": {"a": -3}},
            {"kvflow": {"workflow_id": "w", "agent_id": "a"}, "kvflow_steps": {"a": "x"}},
            {"kvflow": {"workflow_id": "w", "agent_id": "a", "fixed_prefix_tokens": 10**9}},
        ],
    )
    def test_wrong_hints_never_fail_a_request(
        self, engines: Engines, custom_params: Mapping[str, Any]
    ) -> None:
        engine = kvflow_engine(engines)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        plain = engine.chat(question)
        hinted = engine.chat(question, custom_params=custom_params)
        assert hinted.text == plain.text
        assert "Traceback" not in engine.log().partition("fired up")[2]


class TestHostTier:
    def test_restored_from_host_equals_cold(self, engines: Engines) -> None:
        cold, restored = _cold_and_restored(kvflow_engine(engines, **WRITE_THROUGH))
        assert restored["meta_info"]["cached_tokens_details"]["host"] > 200
        assert restored["text"] == cold["text"]
        assert _logprobs(restored) == pytest.approx(_logprobs(cold), abs=2e-4)

    def test_broken_copy_is_noticed(self, engines: Engines, tmp_path: Path) -> None:
        """Negative control: the comparison above fails where the copies do nothing."""
        env = install_plugin(tmp_path, "kvflow_test_broken_copy", BROKEN_COPY)
        engine = kvflow_engine(engines, env=env, **WRITE_THROUGH)
        try:
            cold, restored = _cold_and_restored(engine)
        finally:
            engines.stop(engine)
        assert restored["meta_info"]["cached_tokens_details"]["host"] > 200
        assert _logprobs(restored) != pytest.approx(_logprobs(cold), abs=2e-4)

    def test_small_host_pool_keeps_what_is_needed_soonest(self, engines: Engines) -> None:
        """Device and host together hold part of the ring; LRU on both tiers keeps nothing."""
        # Eight agents of some 350 tokens: the device holds three of them, the host pool five.
        rates = {}
        for radix in ("stock", "kvflow"):
            engine = engines.start(
                radix=radix,
                max_total_tokens=CAPACITY_TOKENS,
                page_size=PAGE_SIZE,
                hicache_ratio=1.5,
                env=NO_SERVICE,
            )
            ring = Ring(agents=8, max_tokens=4)
            answers = [ring.round(engine, n) for n in range(3)]
            rates[radix] = hit_rate(answers[1] + answers[2])
        assert rates["kvflow"] > rates["stock"] + 0.25


class TestTensorParallel:
    """SGLang's own checker compares what each rank evicts, step by step, and ends the engine on
    a difference."""

    def test_ranks_agree(self, engines: Engines) -> None:
        engine = kvflow_engine(engines, tp=3, env=CHECK_RANKS)
        ring = Ring(agents=4, max_tokens=4)
        answers = [ring.round(engine, n) for n in range(3)]
        best = sum(ring.best_hit_tokens(CAPACITY_TOKENS)[ring.agents :])
        asked = sum(a.prompt_tokens for a in answers[1] + answers[2])
        assert hit_rate(answers[1] + answers[2]) > best / asked - 0.03
        assert engine.process.is_running()
        engines.stop(engine)

    def test_rank_that_does_not_hear_is_noticed(self, engines: Engines, tmp_path: Path) -> None:
        """Negative control: without the broadcast the ranks' decisions differ."""
        env = install_plugin(tmp_path, "kvflow_test_deaf_ranks", DEAF_RANKS)
        engine = kvflow_engine(engines, tp=3, env={**CHECK_RANKS, **env})
        ring = Ring(agents=4, max_tokens=4)
        try:
            with pytest.raises(httpx2.HTTPError):
                [ring.round(engine, number) for number in range(3)]
            assert "onsensus" in engine.log()
        finally:
            engines.stop(engine)


def _ask(
    engine: RunningEngine, agent: str, messages: Sequence[Mapping[str, str]], steps: dict[str, int]
) -> Any:
    params = {"kvflow": {"workflow_id": "talk", "agent_id": agent}, "kvflow_steps": steps}
    return engine.chat(messages, max_tokens=24, custom_params=params)


def _cold_and_restored(engine: RunningEngine) -> tuple[dict[str, Any], dict[str, Any]]:
    ids = token_ids([{"role": "user", "content": " ".join(words("to be restored", 240))}])
    body: dict[str, Any] = {
        "input_ids": ids,
        "sampling_params": {"temperature": 0, "max_new_tokens": 8},
        "return_logprob": True,
        "return_cached_tokens_details": True,
    }
    cold = engine.generate(**body)
    for number in range(5):
        engine.chat([{"role": "user", "content": " ".join(words(f"filler {number}", 240))}])
    return cold, engine.generate(**body)


def _logprobs(answer: dict[str, Any]) -> list[float]:
    return [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]


def _metrics(engine: RunningEngine) -> dict[str, float]:
    return {
        "hit": engine.metric("kvflow_hit_tokens_total"),
        "query": engine.metric("kvflow_query_tokens_total"),
        "updates": engine.metric("kvflow_updates_applied_total"),
        "decisions": engine.metric("kvflow_eviction_decision_seconds_count"),
        **{
            kind: engine.metric("kvflow_evicted_tokens_total", kind=kind, tier="device")
            for kind in ("prefix", "suffix")
        },
    }
