"""Prefetch and status-aware scheduling in a real SGLang with a real model.

The link from host to device is the CPU's (``kvflow.engine.cpu_link``): copies run beside the
computing, and can be slowed or delayed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engines import Engines, RunningEngine, words
from tests.sglang_plugin.engine_plugins import NAIVE_PREFETCH, install_plugin
from tests.sglang_plugin.workload import PAGE_SIZE, Ring, hit_rate, token_ids

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CAPACITY_TOKENS = 1280
NO_SERVICE = {"KVFLOW_SERVICE_URL": "off"}
DELAYED = {"KVFLOW_CPU_LINK_DELAY_S": "1.5"}
SLOW = {"KVFLOW_CPU_LINK_BYTES_PER_S": "100e6"}
HOST_RATIO = 4.0


def kvflow_engine(engines: Engines, **options: Any) -> RunningEngine:
    env = {**NO_SERVICE, **options.pop("env", {})}
    options.setdefault("max_total_tokens", CAPACITY_TOKENS)
    options.setdefault("hicache_ratio", HOST_RATIO)
    return engines.start(radix="kvflow", page_size=PAGE_SIZE, env=env, **options)


class TestPrefetch:
    def test_predicted_calls_find_their_prefix_on_the_device(self, engines: Engines) -> None:
        stock = engines.start(max_total_tokens=8192, page_size=PAGE_SIZE)
        cold = [Ring(agents=8).round(stock, n) for n in range(3)]
        engine = kvflow_engine(engines, env=SLOW)
        before = engine.metric("kvflow_prefetch_outcome_tokens_total", outcome="used")
        answers = [Ring(agents=8).round(engine, n) for n in range(3)]
        predicted = answers[1] + answers[2]
        # The device holds three of the eight; the others come from the host, ahead of their turn.
        assert hit_rate(predicted) > 0.85
        assert sum(a.host_tokens == 0 for a in predicted) >= 0.95 * len(predicted)
        assert engine.metric("kvflow_prefetch_outcome_tokens_total", outcome="used") > before
        assert engine.metric("kvflow_prefetch_outcome_tokens_total", outcome="wasted") == 0
        assert [[a.text for a in r] for r in answers] == [[a.text for a in r] for r in cold]

    def test_switched_off_it_loads_on_demand(self, engines: Engines) -> None:
        """What the test above sees is prefetching, not a device pool that holds everything."""
        engine = kvflow_engine(engines, env={**SLOW, "KVFLOW_PREFETCH": "off"})
        answers = [Ring(agents=8).round(engine, n) for n in range(2)]
        assert sum(a.host_tokens > 0 for a in answers[1]) >= 4
        assert engine.metric("kvflow_prefetched_tokens_total") == 0

    def test_prefetched_equals_cold(self, engines: Engines) -> None:
        engine = kvflow_engine(engines)
        cold, prefetched = _cold_and_prefetched(engine, wait_s=1.0)
        assert prefetched["meta_info"]["cached_tokens_details"]["host"] == 0
        assert prefetched["meta_info"]["cached_tokens_details"]["device"] > 200
        assert prefetched["text"] == cold["text"]
        assert _logprobs(prefetched) == pytest.approx(_logprobs(cold), abs=2e-4)

    def test_so_does_one_under_a_salt(self, engines: Engines) -> None:
        engine = kvflow_engine(engines)
        cold, prefetched = _cold_and_prefetched(engine, wait_s=1.0, salt="theirs")
        assert prefetched["meta_info"]["cached_tokens_details"]["host"] == 0
        assert prefetched["meta_info"]["cached_tokens_details"]["device"] > 200
        assert prefetched["text"] == cold["text"]
        assert _logprobs(prefetched) == pytest.approx(_logprobs(cold), abs=2e-4)

    def test_flush_while_a_copy_is_under_way(self, engines: Engines) -> None:
        engine = kvflow_engine(engines, env=DELAYED)
        _cold_and_prefetched(engine, wait_s=0, ask_again=False)
        engine.flush(timeout_s=5)
        answer = engine.chat([{"role": "user", "content": "What is the capital of France?"}])
        assert answer.cached_tokens == 0

    def test_write_back(self, engines: Engines) -> None:
        engine = kvflow_engine(engines, extra_args=("--hicache-write-policy", "write_back"))
        answers = [Ring(agents=8).round(engine, n) for n in range(3)]
        predicted = answers[1] + answers[2]
        assert sum(a.host_tokens == 0 for a in predicted) >= 0.9 * len(predicted)
        assert hit_rate(predicted) > 0.8


class TestCopyThatHasNotArrived:
    """The prefix is marked as resident while its copy still waits on the link."""

    def test_request_waits_for_it(self, engines: Engines) -> None:
        engine = kvflow_engine(engines, env=DELAYED)
        late_before = engine.metric("kvflow_prefetch_outcome_tokens_total", outcome="late")
        cold, prefetched = _cold_and_prefetched(engine, wait_s=0)
        late = engine.metric("kvflow_prefetch_outcome_tokens_total", outcome="late") - late_before
        assert late > 200  # else the copy was there in time and nothing was shown
        assert prefetched["meta_info"]["cached_tokens_details"]["device"] > 200
        assert prefetched["text"] == cold["text"]
        assert _logprobs(prefetched) == pytest.approx(_logprobs(cold), abs=2e-4)

    def test_naive_prefetch_reads_what_was_there_before(
        self, engines: Engines, tmp_path: Path
    ) -> None:
        """Negative control: without the wait the same request reads another agent's KV."""
        env = install_plugin(tmp_path, "kvflow_test_naive", NAIVE_PREFETCH)
        engine = kvflow_engine(engines, env={**DELAYED, **env})
        try:
            cold, prefetched = _cold_and_prefetched(engine, wait_s=0)
        finally:
            engines.stop(engine)
        assert prefetched["meta_info"]["cached_tokens_details"]["device"] > 200
        assert _logprobs(prefetched) != pytest.approx(_logprobs(cold), abs=2e-4)

    def test_requests_that_are_ready_go_first(self, engines: Engines) -> None:
        """Two requests in one batch of the HTTP API reach the scheduler in the same step."""
        engine = kvflow_engine(engines, env=DELAYED)
        waited_s = engine.metric("kvflow_stall_seconds_total", cause="wait")
        cold: list[dict[str, Any]] = []
        ids = _prepare_prefetch(engine, cold)
        ready = token_ids([{"role": "user", "content": " ".join(words("ready", 40))}])
        body = _body(ids)
        late, other = engine.generate(**{**body, "input_ids": [ids, ready]})
        assert late["meta_info"]["cached_tokens_details"]["device"] > 200
        assert late["text"] == cold[0]["text"]
        assert _logprobs(late) == pytest.approx(_logprobs(cold[0]), abs=2e-4)
        assert other["meta_info"]["e2e_latency"] < late["meta_info"]["e2e_latency"]
        assert engine.metric("kvflow_stall_seconds_total", cause="wait") > waited_s


class TestTensorParallel:
    def test_ranks_agree(self, engines: Engines) -> None:
        engine = kvflow_engine(
            engines, tp=3, env={**SLOW, "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
        )
        answers = [Ring(agents=6, max_tokens=4).round(engine, n) for n in range(3)]
        predicted = answers[1] + answers[2]
        assert hit_rate(predicted) > 0.8
        assert engine.metric("kvflow_prefetch_outcome_tokens_total", outcome="used") > 0
        assert engine.process.is_running()
        engines.stop(engine)


def _body(ids: Sequence[int], salt: str | None = None, **custom_params: Any) -> dict[str, Any]:
    return {
        "input_ids": list(ids),
        **({} if salt is None else {"cache_salt": salt}),
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": 8,
            "custom_params": custom_params or None,
        },
        "return_logprob": True,
        "return_cached_tokens_details": True,
    }


def _hints(agent_id: str, workflow_id: str, steps: dict[str, int | None]) -> dict[str, Any]:
    return {
        "kvflow": {"workflow_id": workflow_id, "agent_id": agent_id},
        "kvflow_steps": steps,
    }


def _prepare_prefetch(
    engine: RunningEngine, cold: list[dict[str, Any]] | None = None, salt: str | None = None
) -> list[int]:
    """Have an agent's prefix in host memory alone, and announce that it is called next."""
    workflow_id = agent = f"late-{time.monotonic_ns()}"
    ids = token_ids([{"role": "system", "content": " ".join(words(workflow_id, 240))}])
    answer = engine.generate(**_body(ids, salt, **_hints(agent, workflow_id, {agent: None})))
    if cold is not None:
        cold.append(answer)
    for number in range(5):
        text = " ".join(words(f"{workflow_id} filler {number}", 240))
        engine.chat([{"role": "user", "content": text}])
    # No step has been timed yet, so nothing tells that the copy will come too late.
    short = token_ids([{"role": "user", "content": "Hello."}])
    engine.generate(**_body(short, salt, **_hints("first", workflow_id, {"first": 0, agent: 1})))
    return ids


def _cold_and_prefetched(
    engine: RunningEngine, *, wait_s: float, ask_again: bool = True, salt: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    cold: list[dict[str, Any]] = []
    ids = _prepare_prefetch(engine, cold, salt)
    time.sleep(wait_s)
    return cold[0], engine.generate(**_body(ids, salt)) if ask_again else {}


def _logprobs(answer: dict[str, Any]) -> list[float]:
    return [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
