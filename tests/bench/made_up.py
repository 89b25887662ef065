"""Workloads, calls, runs and a result as a benchmark would have them, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvflow.bench.arms import ARMS, arm_cache
from kvflow.bench.reply import Reply
from kvflow.bench.result import ArmResult, BenchResult
from kvflow.bench.rows import CallRow, Run
from kvflow.graph import AgentStepGraph
from kvflow.workload import (
    CacheSizes,
    Piece,
    Scenario,
    Workload,
    WorkloadCall,
    WorkloadWorkflow,
    parse_scenario,
)

METRICS = {
    'kvflow_prefetched_tokens_total{copy="load"}': 900.0,
    'kvflow_prefetched_tokens_total{copy="fetch"}': 100.0,
    'kvflow_prefetched_bytes_total{copy="load"}': 9000.0,
    'kvflow_prefetched_bytes_total{copy="fetch"}': 1000.0,
    'kvflow_prefetch_outcome_tokens_total{outcome="used"}': 700.0,
    'kvflow_prefetch_outcome_tokens_total{outcome="wasted"}': 50.0,
    'kvflow_stall_seconds_total{cause="load"}': 0.25,
    'kvflow_predictions_total{result="hit"}': 8.0,
}


def scenario(**cache: Any) -> Scenario:
    return parse_scenario(
        {
            "name": "made-up",
            "description": "Agents <that> nobody asked.",
            "agents": {"agents": 2, "rounds": 2},
            "cache": {"device_tokens": 1600, **cache},
        }
    )


def call(
    agent_id: str,
    *,
    after: Sequence[int] = (),
    prompt: Sequence[Piece] = (Piece("p", 32),),
    fixed_pieces: int = 1,
    answer: str = "answer",
    pause_s: float = 0.0,
) -> WorkloadCall:
    return WorkloadCall(
        agent_id, tuple(after), pause_s, tuple(prompt), fixed_pieces, Piece(answer, 8)
    )


def workflow(
    *calls: WorkloadCall,
    workflow_id: str = "w0",
    client_id: str = "client0",
    arrival_s: float | None = None,
    graph: AgentStepGraph | None = None,
) -> WorkloadWorkflow:
    return WorkloadWorkflow(client_id, workflow_id, arrival_s, graph, calls)


def workload(
    *workflows: WorkloadWorkflow, concurrency: int | None = 1, warm_up_calls: int = 0
) -> Workload:
    return Workload("made-up", concurrency, lambda: iter(workflows), warm_up_calls)


def reply(
    *,
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (1, 2),
    started_s: float = 0.0,
    cached_tokens: int = 0,
) -> Reply:
    return Reply(
        text="yes",
        prompt_ids=tuple(prompt_ids),
        output_ids=tuple(output_ids),
        prompt_tokens=len(prompt_ids),
        cached_tokens=cached_tokens,
        device_tokens=cached_tokens,
        host_tokens=0,
        storage_tokens=0,
        output_tokens=len(output_ids),
        started_s=started_s,
        ttft_s=0.5,
        total_s=1.0,
    )


def row(number: int = 0, **changes: Any) -> CallRow:
    """The call at position ``number`` of a workflow of two agents, a second after the one before.

    Half of its 100 tokens are cached: 30 on the device, 20 on the host.
    """
    values: dict[str, Any] = {
        "workflow_id": "w0",
        "client_id": "client0",
        "agent_id": f"a{number % 2}",
        "position": number,
        "repeat": 1,
        "started_s": float(number),
        "ttft_s": 0.5,
        "total_s": 1.0,
        "prompt_tokens": 100,
        "cached_tokens": 50,
        "device_tokens": 30,
        "host_tokens": 20,
        "storage_tokens": 0,
        "fixed_tokens": 80,
        "output_tokens": 8,
        "output_hash": f"hash-{number}",
        "counted": number >= 2,
    }
    return CallRow(**{**values, **changes})


def run(repeat: int = 1, speed: float = 1.0, calls: int = 4, **changes: Any) -> Run:
    """A run of ``calls`` calls, the first two of which are warm-up, ``speed`` times as fast."""
    rows = [
        row(
            number,
            repeat=repeat,
            started_s=number / speed,
            ttft_s=0.5 / speed,
            total_s=1.0 / speed,
        )
        for number in range(calls)
    ]
    return Run(**{"repeat": repeat, "calls": rows, "counted_from_s": 2.0 / speed, **changes})


def result(
    arms: Sequence[str] = ("limit", "lru", "kvflow"), *, host_tokens: int = 3200, repeats: int = 2
) -> BenchResult:
    speeds = {"limit": 4.0, "lru": 1.0, "kvflow-eviction": 1.5, "kvflow": 2.0}
    given = scenario(host_tokens=host_tokens)
    return BenchResult(
        scenario=given,
        arms=[
            ArmResult(
                arm=ARMS[name],
                cache=arm_cache(ARMS[name], given.cache, needed_tokens=8000),
                runs=[
                    run(
                        repeat,
                        speeds[name] * (1 + repeat / 10),
                        metrics_delta=METRICS if ARMS[name].uses_kvflow else {},
                        bound_hits=[0, 0, 60, 70] if repeat == 1 else None,
                    )
                    for repeat in range(1, repeats + 1)
                ],
                flags=["--model-path", "smollm2", "--page-size", "16"],
                engine_start_s=25.0,
            )
            for name in arms
        ],
        environment={
            "versions": {"kvflow": "0.1.0", "sglang": "0.5.23"},
            "hardware": {"device": "cpu", "cpu": "a CPU", "cores": 2, "gpus": []},
            "seeds": {"scenario": 0, "engine": 0},
        },
        settings={
            "model": "smollm2",
            "repeats": repeats,
            "engines_at_once": 3,
            "warm_up_calls": 2,
            "needs": {"workflows": 1, "calls": 4},
            "agents": 2,
        },
        started_at="2026-01-01T00:00:00+00:00",
        elapsed_s=300.0,
    )


def cache_sizes(**sizes: Any) -> CacheSizes:
    return CacheSizes(**{"device_tokens": 1600, **sizes})
