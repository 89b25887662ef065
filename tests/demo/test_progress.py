from __future__ import annotations

import io

import pytest

from kvflow.demo.progress import LiveProgress, PlainProgress, Progress
from kvflow.demo.summary import ArmResult
from tests.demo.conftest import make_arm


def _play(progress: Progress, result: ArmResult) -> None:
    with progress:
        progress.arm_begins(result.arm, 2, 4, len(result.records))
        progress.stage("warming up")
        for record in result.records:
            progress.call_done(record)
        progress.arm_ends(result)


def test_plain_lines() -> None:
    lines: list[str] = []
    _play(PlainProgress(lines.append), make_arm("kvflow", warm_hits=60, wall_s=40.0))
    assert lines == [
        "[2/4] KVFlow",
        "  warming up",
        "  round 1: 10 calls in 15.0 s, 0 of 1000 prompt tokens from cache",
        "  round 2: 10 calls in 15.0 s, 600 of 1000 prompt tokens from cache",
        "  round 3: 10 calls in 15.0 s, 600 of 1000 prompt tokens from cache",
        "  KVFlow: hit rate 0.600, TTFT p50 1.00 s, p95 1.00 s, wall 40.0 s",
    ]


def test_plain_lines_of_a_second_arm_start_afresh() -> None:
    lines: list[str] = []
    progress = PlainProgress(lines.append)
    result = make_arm("stock")
    progress.arm_begins(result.arm, 1, 2, len(result.records))
    progress.call_done(result.records[0])
    _play(progress, result)
    assert sum(line.startswith("  round 1") for line in lines) == 1


def test_a_live_bar_leaves_a_line_per_arm() -> None:
    console = pytest.importorskip("rich.console")
    written = io.StringIO()
    live = LiveProgress(console.Console(file=written, force_terminal=True, width=120))
    _play(live, make_arm("kvflow", warm_hits=60, wall_s=40.0))
    last = written.getvalue().rstrip().splitlines()[-1]
    assert "[2/4] KVFlow" in written.getvalue()
    assert "KVFlow: hit rate 0.600, TTFT p50 1.00 s, p95 1.00 s, wall 40.0 s" in written.getvalue()
    assert "calls" not in last
