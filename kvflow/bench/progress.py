"""Showing how far a benchmark is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from kvflow.bench.arms import BenchArm
from kvflow.bench.rows import CallRow, Run
from kvflow.demo.summary import percentile

if TYPE_CHECKING:
    from rich.status import Status

__all__ = ["LineProgress", "Progress", "run_line"]

_CALLS_PER_LINE: Final = 50


class Progress(Protocol):
    """Told about everything as it happens."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def run_begins(self, arm: BenchArm, repeat: int, repeats: int, calls: int) -> None:
        """A repeat (from 1) of an arm begins; it will make ``calls`` calls."""

    def call_done(self, row: CallRow) -> None:
        """A call was answered."""

    def run_ends(self, arm: BenchArm, run: Run) -> None:
        """All calls of a repeat were answered."""


def run_line(arm: BenchArm, run: Run) -> str:
    """A run in one line."""
    rows = run.counted
    hits = sum(row.cached_tokens for row in rows) / sum(row.prompt_tokens for row in rows)
    ttft_s = [row.ttft_s for row in rows]
    return (
        f"  {arm.name}, repeat {run.repeat}: hit rate {hits:.3f}, "
        f"TTFT p50 {percentile(ttft_s, 50):.3f} s, p99 {percentile(ttft_s, 99):.3f} s, "
        f"wall {run.wall_s:.1f} s"
    )


class LineProgress:
    """A line per run, and one for every so many calls; on a terminal a status line instead."""

    def __init__(self, write: Callable[[str], None], status: Status | None = None) -> None:
        self._write = write
        self._status = status
        self._title = ""
        self._calls = self._done = 0

    def note(self, text: str) -> None:
        self._write(text)

    def run_begins(self, arm: BenchArm, repeat: int, repeats: int, calls: int) -> None:
        self._title = f"{arm.name}, repeat {repeat} of {repeats}"
        self._calls, self._done = calls, 0

    def call_done(self, row: CallRow) -> None:
        self._done += 1
        if self._status is not None:
            self._status.update(f"{self._title}: {self._done} of {self._calls} calls")
        elif self._done % _CALLS_PER_LINE == 0 and self._done < self._calls:
            self._write(f"  {self._title}: {self._done} of {self._calls} calls")

    def run_ends(self, arm: BenchArm, run: Run) -> None:
        self._write(run_line(arm, run))
