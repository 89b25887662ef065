"""What governs prefetching, in a real SGLang: storage tier, wrong hints, choices, admission."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvflow.cli.main import main
from tests.engines import Answer, Engines, RunningEngine, words
from tests.sglang_plugin.workload import PAGE_SIZE, Ring, hit_rate

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CAPACITY_TOKENS = 1280
NO_SERVICE = {"KVFLOW_SERVICE_URL": "off"}
OUTCOME = "kvflow_prefetch_outcome_tokens_total"


def kvflow_engine(engines: Engines, **options: Any) -> RunningEngine:
    env = {**NO_SERVICE, **options.pop("env", {})}
    return engines.start(
        radix="kvflow",
        max_total_tokens=CAPACITY_TOKENS,
        page_size=PAGE_SIZE,
        **{"hicache_ratio": 4.0, "env": env, **options},
    )


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def on_device(answers: list[Answer]) -> int:
    """How many found all that was cached for them on the device."""
    return sum(a.device_tokens == a.cached_tokens > 0 for a in answers)


class TestStorageTier:
    def test_what_only_the_storage_has_is_on_the_device_when_called(
        self, engines: Engines, tmp_path: Path
    ) -> None:
        engine = kvflow_engine(
            engines,
            hicache_ratio=1.1,  # the host pool is little more than a copy of the device pool
            extra_args=(
                *("--hicache-storage-backend", "file"),
                *("--hicache-storage-prefetch-policy", "wait_complete"),
            ),
            env={"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(tmp_path)},
        )
        ring = Ring(agents=8, prefix_words=400)
        cold = ring.round(engine, 0)
        time.sleep(1)  # for what is on its way to the files
        answers = ring.round(engine, 0)
        assert engine.metric("kvflow_prefetched_tokens_total", copy="fetch") > 1000
        assert hit_rate(answers) > 0.8
        assert on_device(answers) >= 7
        # The same questions again: greedy answers do not depend on where the prefix came from.
        assert texts(answers) == texts(cold)

        # Another workflow has the same agents under a salt. Storage has their prefixes twice then,
        # and brought are those that this workflow reads.
        idle = {f"a{n}": None for n in range(8)}
        params = {"kvflow": {"workflow_id": "ring", "agent_id": "a0"}, "kvflow_steps": idle}
        engine.chat([{"role": "user", "content": "Thank you."}], custom_params=params)
        ring = Ring(agents=8, prefix_words=400, workflow_id="salted")
        salted = ring.round(engine, 0, cache_salt="theirs")
        assert hit_rate(salted) == 0
        time.sleep(1)
        answers = ring.round(engine, 0, cache_salt="theirs")
        assert hit_rate(answers) > 0.8
        assert on_device(answers) >= 7
        assert texts(answers) == texts(salted) == texts(cold)
        assert engine.process.is_running()
        engines.stop(engine)  # its files go with the test's folder


class TestWrongHints:
    def test_prefetch_and_priorities_are_lost_and_come_back(self, engines: Engines) -> None:
        engine = kvflow_engine(engines)
        ring = Ring(agents=6, max_tokens=4, workflow_id="wrong")
        right = [ring.round(engine, n) for n in range(2)]
        assert engine.metric("kvflow_predictions_total", result="miss") == 0

        wrong = Ring(agents=6, max_tokens=4, workflow_id="wrong")
        wrong.steps = lambda running: {  # type: ignore[method-assign]
            f"a{n}": (running - n) % 6 for n in range(6)
        }
        answers = [wrong.round(engine, n) for n in range(2)]
        assert engine.metric("kvflow_predictions_total", result="miss") >= 8
        distrusted = engine.metric("kvflow_prefetched_tokens_total", copy="load")
        answers.append(wrong.round(engine, 2))
        assert engine.metric("kvflow_prefetched_tokens_total", copy="load") == distrusted
        assert [texts(a) for a in answers[:2]] == [texts(a) for a in right]

        for n in range(3):
            ring.round(engine, n)
        assert engine.metric("kvflow_prefetched_tokens_total", copy="load") > distrusted
        assert hit_rate(ring.round(engine, 3)) > 0.8


class TestRecomputeOrLoad:
    def test_recompute_can_be_forced(self, engines: Engines) -> None:
        loading = kvflow_engine(engines, env={"KVFLOW_LOAD": "load", "KVFLOW_PREFETCH": "off"})
        loaded = [Ring(agents=6).round(loading, n) for n in range(2)]
        assert sum(a.host_tokens > 0 for a in loaded[1]) >= 2
        assert loading.metric("kvflow_load_choice_tokens_total", choice="load") > 0

        engine = kvflow_engine(engines, env={"KVFLOW_LOAD": "recompute", "KVFLOW_PREFETCH": "off"})
        answers = [Ring(agents=6).round(engine, n) for n in range(2)]
        assert sum(a.host_tokens for a in answers[1]) == 0
        assert engine.metric("kvflow_load_choice_tokens_total", choice="recompute") > 0
        assert [texts(a) for a in answers] == [texts(a) for a in loaded]

    def test_slow_link_is_not_used_by_itself(self, engines: Engines) -> None:
        """2 MB/s are some 45 tokens a second; computing them takes a fraction of that."""
        engine = kvflow_engine(
            engines, env={"KVFLOW_CPU_LINK_BYTES_PER_S": "2e6", "KVFLOW_PREFETCH": "off"}
        )
        # Rates are told with the first rank's ticks, of which there is one a second.
        for n in range(2):
            answers = Ring(agents=6).round(engine, n)
        assert sum(a.host_tokens for a in answers) == 0
        assert engine.metric("kvflow_load_choice_tokens_total", choice="recompute") > 0


class TestAdmission:
    def test_all_workflows_get_their_turn(self, engines: Engines) -> None:
        engine = kvflow_engine(
            engines, hicache_ratio=None, env={"KVFLOW_ADMISSION_OVERCOMMIT": "1.0"}
        )

        def chat(workflow: int) -> int:
            messages = [{"role": "system", "content": " ".join(words("shared", 60))}]
            for turn in range(3):
                question = " ".join(words(f"{workflow} {turn}", 120))
                messages.append({"role": "user", "content": question})
                answer = engine.chat(
                    messages,
                    max_tokens=8,
                    custom_params={
                        "kvflow": {"workflow_id": f"w{workflow}", "agent_id": "chat"},
                        "kvflow_steps": {"chat": 0},
                    },
                )
                messages.append({"role": "assistant", "content": answer.text})
            return len(messages)

        with ThreadPoolExecutor(5) as pool:
            assert list(pool.map(chat, range(5))) == [7] * 5
        assert engine.metric("kvflow_stall_seconds_total", cause="wait") > 0


class TestTrace:
    def test_trace_on_demand(
        self, engines: Engines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        engine = kvflow_engine(
            engines, env={"KVFLOW_TRACE_DIR": str(tmp_path), "KVFLOW_ENGINE_ID": "traced"}
        )
        for n in range(2):
            Ring(agents=6, max_tokens=4).round(engine, n)
        output = tmp_path / "trace.json"
        command = ["trace", "--dir", str(tmp_path), "--engine-id", "traced"]
        assert main([*command, "--output", str(output)]) == 0
        assert "perfetto" in capsys.readouterr().err
        events = json.loads(output.read_text())["traceEvents"]
        names = {event["name"] for event in events if event["ph"] == "X"}
        assert {"prefill", "decode"} <= names
        assert any("prefetch" in str(event.get("cat", "")) + event["name"] for event in events)
        engines.stop(engine)
