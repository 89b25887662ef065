"""Results as the demo would have measured them, and an engine's wire format to read them from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from kvflow.demo.arms import ARMS
from kvflow.demo.calls import Answer
from kvflow.demo.summary import ArmResult, DemoResult
from kvflow.demo.team import TEAM
from kvflow.demo.workflow import CallRecord
from tests.demo.wire import ChatWire

METRICS = {
    'kvflow_prefetched_tokens_total{copy="load"}': 900.0,
    'kvflow_prefetched_tokens_total{copy="fetch"}': 1.0,
    'kvflow_prefetch_outcome_tokens_total{outcome="used"}': 700.0,
    'kvflow_prefetch_outcome_tokens_total{outcome="wasted"}': 50.0,
    'kvflow_prefetch_outcome_tokens_total{outcome="cancelled"}': 2.0,
    'kvflow_prefetch_outcome_tokens_total{outcome="late"}': 30.0,
}
"""What the plugin counts of prefetch, as its engine tells it."""


def make_answer(
    text: str = "Yes.",
    *,
    prompt_tokens: int = 100,
    cached_tokens: int = 0,
    ttft_s: float = 1.0,
    total_s: float = 2.0,
    host_tokens: int = 0,
    output_ids: Sequence[int] = (7, 8, 9),
    prompt_ids: Sequence[int] | None = None,
) -> Answer:
    return Answer(
        text=text,
        prompt_ids=tuple(range(prompt_tokens) if prompt_ids is None else prompt_ids),
        output_ids=tuple(output_ids),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        host_tokens=host_tokens,
        output_tokens=len(output_ids),
        ttft_s=ttft_s,
        total_s=total_s,
    )


def make_arm(
    name: str, *, warm_hits: int = 0, ttft_s: float = 1.0, wall_s: float = 60.0, rounds: int = 3
) -> ArmResult:
    """An arm whose calls took ``ttft_s`` (the first round's twice as long) and hit from round 2."""
    records = [
        CallRecord(
            round=number,
            agent_id=role.agent_id,
            started_s=10.0 * (number - 1) + position,
            answer=make_answer(
                f"{role.agent_id} {number}",
                cached_tokens=0 if number == 1 else warm_hits,
                ttft_s=ttft_s * (2 if number == 1 else 1),
                total_s=ttft_s + 0.5,
                output_ids=(number, position),
            ),
        )
        for number in range(1, rounds + 1)
        for position, role in enumerate(TEAM)
    ]
    return ArmResult(
        arm=ARMS[name],
        records=records,
        optimal_hits=[0 if record.round == 1 else 80 for record in records],
        wall_s=wall_s,
        engine_start_s=25.0,
        engine_flags=["--model-path", "smollm2"],
    )


def make_result(*arms: ArmResult) -> DemoResult:
    return DemoResult(
        arms=arms,
        versions={"kvflow": "0.1.0", "sglang": "0.5.23"},
        hardware={"cpu": "a CPU", "cores": 2},
        started_at="2026-01-01T00:00:00+00:00",
        elapsed_s=300.04,
    )


@pytest.fixture
def wire() -> Iterator[ChatWire]:
    with ChatWire() as running:
        yield running
