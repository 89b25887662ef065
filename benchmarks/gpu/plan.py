"""Which runs fit into the time there is, the most valuable first. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["LeftOut", "Pace", "Plan", "Step", "Task", "Unit", "make_plan"]


_ASSUMED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Task:
    """One result file. ``estimate_s`` leaves out the unit's start."""

    id: str
    estimate_s: float


@dataclass(frozen=True, slots=True)
class Unit:
    """Tasks that share engines, in order of value.

    Attributes:
        start_s: what it takes to start the engines, whatever is done with them.
        obstacle: why it cannot run on this machine at all; empty if it can.
    """

    id: str
    piece: str
    start_s: float
    tasks: tuple[Task, ...]
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A unit that is to be run, with those of its tasks that are."""

    unit: Unit
    tasks: tuple[Task, ...]

    @property
    def estimate_s(self) -> float:
        return self.unit.start_s + sum(task.estimate_s for task in self.tasks)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A task that is not run now, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, in this order, and what is not."""

    budget_s: float
    steps: tuple[Step, ...]
    left_out: tuple[LeftOut, ...] = field(default=())

    @property
    def estimate_s(self) -> float:
        return sum(step.estimate_s for step in self.steps)


class Pace:
    """How much longer things take than they were estimated to, by what has been done so far.

    A minute of estimates that held is assumed at the beginning, so that one short task that was far
    off does not stop everything.
    """

    def __init__(self) -> None:
        self._estimated_s = self._took_s = _ASSUMED_S

    def note(self, estimate_s: float, took_s: float) -> None:
        self._estimated_s += estimate_s
        self._took_s += took_s

    @property
    def factor(self) -> float:
        return self._took_s / self._estimated_s


def make_plan(units: Iterable[Unit], budget_s: float, done: Collection[str] = ()) -> Plan:
    """Take units in the order given, and of each the tasks that still fit.

    A task that does not fit is left out, and a later, shorter one may take its place: what is left
    of the time is used. What is ``done`` is neither run nor left out.
    """
    left_s = budget_s
    steps: list[Step] = []
    left_out: list[LeftOut] = []
    for unit in units:
        open_tasks = [task for task in unit.tasks if task.id not in done]
        if unit.obstacle:
            left_out += [LeftOut(task.id, unit.obstacle) for task in open_tasks]
            continue
        chosen, spent_s = _fitting(open_tasks, left_s - unit.start_s)
        taken = {task.id for task in chosen}
        if chosen:
            steps.append(Step(unit, tuple(chosen)))
            left_s -= unit.start_s + spent_s
        left_out += [
            LeftOut(
                task.id,
                f"no time left: takes about {task.estimate_s:.0f} s"
                + ("" if chosen else f" and {unit.start_s:.0f} s to start")
                + f", {max(0.0, left_s):.0f} s are left",
            )
            for task in open_tasks
            if task.id not in taken
        ]
    return Plan(budget_s, tuple(steps), tuple(left_out))


def _fitting(tasks: Sequence[Task], left_s: float) -> tuple[list[Task], float]:
    chosen: list[Task] = []
    spent_s = 0.0
    for task in tasks:
        if spent_s + task.estimate_s <= left_s:
            chosen.append(task)
            spent_s += task.estimate_s
    return chosen, spent_s
