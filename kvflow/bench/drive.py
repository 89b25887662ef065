"""Runs a workload against one engine: what waits for what, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kvflow.bench.hints import Hints
from kvflow.bench.reply import Reply
from kvflow.demo.calls import CallFailedError
from kvflow.workload import Workload, WorkloadCall, WorkloadWorkflow

__all__ = ["Answerer", "FinishedCall", "Prompts", "drive"]


class Prompts(Protocol):
    """Makes requests of calls."""

    @property
    def route(self) -> str: ...

    def body(self, call: WorkloadCall, answers: Mapping[str, Any]) -> dict[str, Any]:
        """The request; ``answers``: by key, what the engine answered earlier in the workflow."""


class Answerer(Protocol):
    """Makes calls to an engine."""

    async def ask(
        self,
        route: str,
        body: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> Reply: ...


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """A call and its answer. ``position``: in its workflow's calls."""

    workflow: WorkloadWorkflow
    position: int
    reply: Reply

    @property
    def call(self) -> WorkloadCall:
        return self.workflow.calls[self.position]


async def drive(
    workload: Workload,
    engine: Answerer,
    prompts: Prompts,
    hints: Hints,
    *,
    on_finished: Callable[[FinishedCall], Awaitable[None]],
    priority: Callable[[str, str], int] | None = None,
) -> None:
    """Make all calls of a workload, each as soon as it may be made.

    Closed loop: ``workload.concurrency`` workflows are under way, and the next begins when one
    ends. Open loop: each begins at its time, however many are under way. Hints are given before a
    call is sent and after it is answered; nothing waits for them to arrive.

    Args:
        on_finished: awaited after each call, in the order in which they end, before what comes
            after it in its workflow is begun.
        priority: of ``(client_id, agent_id)``, for requests that say it.

    Raises:
        CallFailedError: a call failed; the others are cancelled.
    """
    runner = _Runner(engine, prompts, hints, on_finished, priority)
    workflows = workload.workflows()
    try:
        async with asyncio.TaskGroup() as group:
            if workload.concurrency is None:
                await _open_loop(group, runner, workflows)
            else:
                for number in range(workload.concurrency):
                    group.create_task(_worker(runner, workflows), name=f"worker-{number}")
    except* CallFailedError as failures:
        raise _first(failures) from failures


async def _worker(runner: _Runner, workflows: Iterator[WorkloadWorkflow]) -> None:
    for workflow in workflows:
        await runner.run(workflow)


async def _open_loop(
    group: asyncio.TaskGroup, runner: _Runner, workflows: Iterator[WorkloadWorkflow]
) -> None:
    loop = asyncio.get_running_loop()
    origin_s = loop.time()
    for workflow in workflows:
        await asyncio.sleep(max(0.0, origin_s + (workflow.arrival_s or 0.0) - loop.time()))
        group.create_task(runner.run(workflow), name=workflow.workflow_id)


@dataclass(frozen=True, slots=True)
class _Runner:
    engine: Answerer
    prompts: Prompts
    hints: Hints
    on_finished: Callable[[FinishedCall], Awaitable[None]]
    priority: Callable[[str, str], int] | None

    async def run(self, workflow: WorkloadWorkflow) -> None:
        """Run one workflow; its calls side by side where they may be."""
        over = [asyncio.Event() for _ in workflow.calls]
        answers: dict[str, Any] = {}
        self.hints.workflow_began(workflow)
        try:
            async with asyncio.TaskGroup() as group:
                for position in range(len(workflow.calls)):
                    group.create_task(
                        self._call(workflow, position, over, answers),
                        name=f"{workflow.workflow_id}-{position}",
                    )
        finally:
            self.hints.workflow_ended(workflow)

    async def _call(
        self,
        workflow: WorkloadWorkflow,
        position: int,
        over: list[asyncio.Event],
        answers: dict[str, Any],
    ) -> None:
        call = workflow.calls[position]
        for earlier in call.after:
            await over[earlier].wait()
        if call.pause_s:
            await asyncio.sleep(call.pause_s)
        body = self.prompts.body(call, answers)
        priority = None
        if self.priority is not None:
            priority = self.priority(workflow.client_id, call.agent_id)
        self.hints.step_started(workflow, position)
        try:
            reply = await self.engine.ask(
                self.prompts.route, body, self.hints.metadata(workflow, position), priority
            )
        finally:
            self.hints.step_finished(workflow, position)
        answers[call.answer.key] = reply.output_ids if "input_ids" in body else reply.text
        await self.on_finished(FinishedCall(workflow, position, reply))
        over[position].set()


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
