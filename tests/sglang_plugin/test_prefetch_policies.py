"""What governs prefetching, in a real SGLang: choices, storage tier, admission."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


class TestRecomputeOrLoad:
    def test_recompute_can_be_forced(self, engines: Engines) -> None:
        # The engine that test_prefetch_engine.py ends with.
        loading = kvflow_engine(engines, env={"KVFLOW_LOAD": "load", "KVFLOW_PREFETCH": "off"})
        before = loading.metric("kvflow_load_choice_tokens_total", choice="load")
        loaded = [Ring(agents=6).round(loading, n) for n in range(2)]
        assert sum(a.host_tokens > 0 for a in loaded[1]) >= 2
        assert loading.metric("kvflow_load_choice_tokens_total", choice="load") > before

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


@dataclass(frozen=True)
class Stored:
    """An engine whose files have what its two pools have not, and what was asked of it."""

    engine: RunningEngine
    trace_dir: Path
    cold: list[Answer]
    again: list[list[Answer]]


@pytest.fixture(scope="module")
def stored(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    files, traces = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("traces")
    engine = kvflow_engine(
        engines,
        hicache_ratio=1.1,  # the host pool is little more than a copy of the device pool
        extra_args=(
            *("--hicache-storage-backend", "file"),
            *("--hicache-storage-prefetch-policy", "wait_complete"),
        ),
        env={
            "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(files),
            "KVFLOW_TRACE_DIR": str(traces),
            "KVFLOW_ENGINE_ID": "traced",
        },
    )
    ring = Ring(agents=8, prefix_words=400)
    cold = ring.round(engine, 0)
    time.sleep(1)  # for what is on its way to the files
    yield Stored(engine, traces, cold, [ring.round(engine, 0), ring.round(engine, 0)])
    engines.stop(engine)  # its files go with the tests' folder


class TestStorageTier:
    def test_what_only_the_storage_has_is_on_the_device_when_called(self, stored: Stored) -> None:
        engine, answers = stored.engine, stored.again
        predicted = answers[0] + answers[1]
        fetched = engine.metric("kvflow_prefetched_tokens_total", copy="fetch")
        assert fetched > 2000
        assert hit_rate(predicted) > 0.8
        on_device = sum(a.device_tokens == a.cached_tokens > 0 for a in predicted)
        assert on_device >= 0.9 * len(predicted)
        # The same questions again: greedy answers do not depend on where the prefix came from.
        assert texts(answers[0]) == texts(stored.cold)
        assert texts(answers[1]) == texts(stored.cold)
        assert engine.process.is_running()

    def test_trace_on_demand(
        self, stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "trace.json"
        command = ["trace", "--dir", str(stored.trace_dir), "--engine-id", "traced"]
        assert main([*command, "--output", str(output)]) == 0
        assert "perfetto" in capsys.readouterr().err
        events = json.loads(output.read_text())["traceEvents"]
        names = {event["name"] for event in events if event["ph"] == "X"}
        assert {"prefill", "decode"} <= names
        assert any("prefetch" in str(event.get("cat", "")) + event["name"] for event in events)


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
