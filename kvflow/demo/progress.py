"""Showing how far the demo is: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self

from kvflow.demo.arms import Arm
from kvflow.demo.summary import ArmResult
from kvflow.demo.workflow import CallRecord

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["LiveProgress", "PlainProgress", "Progress", "arm_line"]


class Progress(Protocol):
    """Told about everything as it happens. A context manager, open as long as the demo runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def arm_begins(self, arm: Arm, position: int, arms: int, calls: int) -> None:
        """The arm at ``position`` (from 1) of ``arms`` begins; it will make ``calls`` calls."""

    def stage(self, text: str) -> None:
        """What is done now, before the first call."""

    def call_done(self, record: CallRecord) -> None:
        """A call was answered."""

    def arm_ends(self, result: ArmResult) -> None:
        """All of its calls were answered, and its processes are gone."""


def arm_line(result: ArmResult) -> str:
    """An arm in one line."""
    return (
        f"{result.arm.title}: hit rate {result.hit_rate():.3f}, "
        f"TTFT p50 {result.ttft_s(50):.2f} s, p95 {result.ttft_s(95):.2f} s, "
        f"wall {result.wall_s:.1f} s"
    )


class PlainProgress:
    """A line per stage and per round."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._round: list[CallRecord] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def note(self, text: str) -> None:
        self._write(text)

    def arm_begins(self, arm: Arm, position: int, arms: int, calls: int) -> None:
        self._round = []
        self._calls_left = calls
        self._write(f"[{position}/{arms}] {arm.title}")

    def stage(self, text: str) -> None:
        self._write(f"  {text}")

    def call_done(self, record: CallRecord) -> None:
        if self._round and self._round[0].round != record.round:
            self._write_round()
        self._round.append(record)
        self._calls_left -= 1
        if self._calls_left == 0:
            self._write_round()

    def arm_ends(self, result: ArmResult) -> None:
        self._write(f"  {arm_line(result)}")

    def _write_round(self) -> None:
        answers = [record.answer for record in self._round]
        cached = sum(answer.cached_tokens for answer in answers)
        prompt = sum(answer.prompt_tokens for answer in answers)
        seconds = sum(answer.total_s for answer in answers)
        self._write(
            f"  round {self._round[0].round}: {len(answers)} calls in {seconds:.1f} s, "
            f"{cached} of {prompt} prompt tokens from cache"
        )
        self._round = []


class LiveProgress:
    """A bar for the arm that runs, lines for those that are done."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} calls  {task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bars.add_task("", total=1, visible=False, detail="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def arm_begins(self, arm: Arm, position: int, arms: int, calls: int) -> None:
        self._bars.reset(
            self._task,
            total=calls,
            visible=True,
            description=f"[{position}/{arms}] {arm.title}".replace("[", r"\["),
            detail="",
        )

    def stage(self, text: str) -> None:
        self._bars.update(self._task, detail=text)

    def call_done(self, record: CallRecord) -> None:
        answer = record.answer
        self._bars.update(
            self._task,
            advance=1,
            detail=f"round {record.round}, {record.agent_id}: {answer.cached_tokens} of "
            f"{answer.prompt_tokens} tokens from cache, TTFT {answer.ttft_s:.2f} s",
        )

    def arm_ends(self, result: ArmResult) -> None:
        self._bars.update(self._task, visible=False)
        self.note(arm_line(result))
