from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvflow.bench.drive import FinishedCall, drive
from kvflow.bench.hints import NoHints
from kvflow.bench.prompts import TokenPrompts
from kvflow.bench.reply import Reply
from kvflow.bench.vocabulary import TokenVocabulary
from kvflow.demo.calls import CallFailedError
from kvflow.workload import Piece, Workload, WorkloadWorkflow
from tests.bench.made_up import call, reply, workflow, workload
from tests.bench.virtual_time import run_virtually

CALL_S = 2.0


@dataclass
class FakeEngine:
    """Takes ``CALL_S`` for every call, any number at once, and says who was called when."""

    fails_at: int | None = None
    started: list[tuple[float, int, int | None]] = field(default_factory=list)
    """Time, number of prompt tokens, priority."""
    bodies: list[Mapping[str, Any]] = field(default_factory=list)
    cancelled: int = 0
    at_once: int = 0
    most_at_once: int = 0

    async def ask(
        self,
        route: str,
        body: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> Reply:
        number = len(self.started)
        now_s = asyncio.get_running_loop().time()
        self.started.append((now_s, len(body["input_ids"]), priority))
        self.bodies.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(CALL_S)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        if number == self.fails_at:
            raise CallFailedError("no more")
        return reply(prompt_ids=body["input_ids"], output_ids=(900 + number,))


class RecordedHints(NoHints):
    def __init__(self) -> None:
        self.events: list[str] = []

    def workflow_began(self, workflow: WorkloadWorkflow) -> None:
        self.events.append(f"{workflow.workflow_id} began")

    def step_started(self, workflow: WorkloadWorkflow, position: int) -> None:
        self.events.append(f"{workflow.workflow_id}.{position} started")

    def step_finished(self, workflow: WorkloadWorkflow, position: int) -> None:
        self.events.append(f"{workflow.workflow_id}.{position} finished")

    def workflow_ended(self, workflow: WorkloadWorkflow) -> None:
        self.events.append(f"{workflow.workflow_id} ended")


def driven(
    given: Workload,
    engine: FakeEngine | None = None,
    *,
    hints: NoHints | None = None,
    priority: Callable[[str, str], int] | None = None,
) -> tuple[FakeEngine, list[FinishedCall]]:
    engine = engine or FakeEngine()
    over: list[FinishedCall] = []

    async def finished(one: FinishedCall) -> None:
        over.append(one)

    run_virtually(
        drive(
            given,
            engine,
            TokenPrompts(TokenVocabulary(500)),
            hints or NoHints(),
            on_finished=finished,
            priority=priority,
        )
    )
    return engine, over


def starts(engine: FakeEngine) -> list[float]:
    return [started for started, _, _ in engine.started]


def test_a_call_waits_for_those_before_it_and_then_its_pause() -> None:
    engine, over = driven(
        workload(
            workflow(
                call("planner"),
                call("worker", after=[0]),
                call("other worker", after=[0], pause_s=3.0),
                call("joiner", after=[1, 2], pause_s=0.5),
            )
        )
    )
    assert starts(engine) == [0.0, 2.0, 5.0, 7.5]
    assert [one.position for one in over] == [0, 1, 2, 3]


def test_the_first_call_may_wait_too() -> None:
    assert starts(driven(workload(workflow(call("a", pause_s=4.0))))[0]) == [4.0]


def test_calls_without_an_order_run_side_by_side() -> None:
    engine, _ = driven(workload(workflow(call("a"), call("b"), call("c"))))
    assert starts(engine) == [0.0, 0.0, 0.0]


def test_a_closed_loop_begins_the_next_workflow_when_one_ends() -> None:
    short = [workflow(call("a"), workflow_id=f"w{n}") for n in range(3)]
    long = workflow(call("a"), call("b", after=[0]), workflow_id="long")
    engine, over = driven(workload(long, *short, concurrency=2))
    assert starts(engine) == [0.0, 0.0, 2.0, 2.0, 4.0]
    assert engine.most_at_once == 2
    assert {one.workflow.workflow_id for one in over} == {"long", "w0", "w1", "w2"}


def test_an_open_loop_begins_each_at_its_time() -> None:
    engine, _ = driven(
        workload(
            *(
                workflow(call("a"), workflow_id=f"w{number}", arrival_s=arrival_s)
                for number, arrival_s in enumerate((0.5, 1.0, 7.0))
            ),
            concurrency=None,
        )
    )
    assert starts(engine) == [0.5, 1.0, 7.0]
    assert engine.most_at_once == 2


def test_an_answer_goes_into_the_prompts_that_have_it() -> None:
    first = call("a", answer="said")
    second = call("a", after=[0], prompt=(Piece("p", 32), Piece("said", 8), Piece("next", 4)))
    engine, _ = driven(workload(workflow(first, second)))
    assert engine.bodies[1]["input_ids"][32] == 900
    assert engine.started[1][1] == 32 + 1 + 4


def test_answers_of_another_workflow_are_not_taken() -> None:
    reads = call("a", prompt=(Piece("p", 32), Piece("said", 8)))
    engine, _ = driven(
        workload(workflow(call("a", answer="said")), workflow(reads, workflow_id="w1"))
    )
    assert engine.started[1][1] == 32 + 8


def test_hints_come_before_a_call_and_after_it() -> None:
    hints = RecordedHints()
    driven(workload(workflow(call("a"), call("b", after=[0]))), hints=hints)
    assert hints.events == [
        "w0 began",
        "w0.0 started",
        "w0.0 finished",
        "w0.1 started",
        "w0.1 finished",
        "w0 ended",
    ]


def test_requests_say_their_priority_where_they_have_one() -> None:
    given = workload(workflow(call("a"), call("b", after=[0])))
    assert [p for _, _, p in driven(given)[0].started] == [None, None]
    engine, _ = driven(given, priority=lambda client, agent: ord(agent[0]))
    assert [p for _, _, p in engine.started] == [97, 98]


def test_a_failed_call_ends_everything_and_its_steps() -> None:
    hints = RecordedHints()
    engine = FakeEngine(fails_at=0)
    given = workload(
        workflow(call("a"), call("b", after=[0])),
        workflow(call("a"), call("b"), workflow_id="w1"),
        concurrency=2,
    )
    with pytest.raises(CallFailedError, match="no more"):
        driven(given, engine, hints=hints)
    assert len(engine.started) == 3
    assert "w0 ended" in hints.events
    assert "w1 ended" in hints.events


def test_cancelling_cancels_the_calls_under_way() -> None:
    engine = FakeEngine()

    async def interrupted() -> None:
        work = asyncio.create_task(
            drive(
                workload(workflow(call("a"), call("b"))),
                engine,
                TokenPrompts(TokenVocabulary(500)),
                NoHints(),
                on_finished=nothing,
            )
        )
        await asyncio.sleep(1.0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    async def nothing(one: FinishedCall) -> None:
        raise AssertionError("no call is over by then")

    run_virtually(interrupted())
    assert engine.cancelled == 2
