"""What ``kvflow serve --record`` wrote, as workflows.

The service sees steps, not prompts. So a step is a call whose prompt begins with its agent's fixed
prefix (``fixed_prefix_tokens`` as declared) and goes on with tokens of its own; its lengths are
those its ``step_finished`` brought. ``kvflow.workload.converters.defaults`` has what is taken
where a length is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from kvflow.errors import InvalidInputError
from kvflow.graph import AgentStepGraph, GraphPool
from kvflow.protocol import StepEvent
from kvflow.workload.base import Piece, WorkloadCall, WorkloadWorkflow
from kvflow.workload.converters.defaults import FIXED_TOKENS, OUTPUT_TOKENS, prompt_of
from kvflow.workload.converters.observed import calls_before
from kvflow.workload.graph_lines import graph_in
from kvflow.workload.lines import first_problem, place, text_lines
from kvflow.workload.recording_format import (
    RecordedClose,
    RecordedEvents,
    RecordedWorkflow,
    RecordingHeader,
    RecordingLine,
    recording_line,
)

__all__ = ["read_recording"]


@dataclass(slots=True)
class _Step:
    """A run of an agent. Its ranks order all beginnings and ends of its workflow."""

    agent_id: str
    step_id: str | None
    begin_s: float
    begin_rank: int
    end_s: float = float("inf")
    end_rank: float = float("inf")
    prompt_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(slots=True)
class _Open:
    """A workflow as far as it has been read."""

    workflow_id: str
    client_id: str
    begin_s: float
    graph: AgentStepGraph
    steps: list[_Step] = field(default_factory=list)
    running: dict[str, list[_Step]] = field(default_factory=dict)
    rank: int = 0

    def apply(self, event: StepEvent, at_s: float) -> None:
        """Take an event. A finish whose start is missing (lines were dropped) does nothing."""
        running = self.running.setdefault(event.agent_id, [])
        self.rank += 1
        if event.type == "step_started":
            step = _Step(event.agent_id, event.step_id, at_s, self.rank)
            self.steps.append(step)
            running.append(step)
            return
        named = [step for step in running if event.step_id in (None, step.step_id)]
        if named:
            step = named[0]
            running.remove(step)
            step.end_s, step.end_rank = at_s, self.rank
            step.prompt_tokens, step.output_tokens = event.prompt_tokens, event.output_tokens


def read_recording(path: Path) -> Iterator[WorkloadWorkflow]:
    """Yield the recorded workflows that made a step. Holds the whole recording.

    A step that was never finished is a call that no other waits for. What happened to workflows
    created before the recording began is left out.

    Raises:
        InvalidInputError: a line is wrong, or a graph cannot work.
    """
    graphs = GraphPool()
    begun: list[_Open] = []
    live: dict[str, _Open] = {}
    offset_s = latest_s = 0.0
    for number, text in text_lines(path):
        here = place(path, number)
        line = _parse(here, text)
        if number == 1 and not isinstance(line, RecordingHeader):
            raise InvalidInputError([here], "is not the header of a recording")
        if isinstance(line, RecordingHeader):
            offset_s = latest_s
            live.clear()
            continue
        at_s = latest_s = max(latest_s, offset_s + line.at_s)
        if isinstance(line, RecordedWorkflow):
            opened = _Open(line.workflow_id, line.client_id, at_s, graph_in(line, [here], graphs))
            begun.append(opened)
            live[line.workflow_id] = opened
        elif isinstance(line, RecordedClose):
            live.pop(line.workflow_id, None)
        elif isinstance(line, RecordedEvents) and line.workflow_id in live:
            for event in line.events:
                live[line.workflow_id].apply(event, at_s)
    for count, workflow in enumerate(begun):
        if workflow.steps:
            yield _workflow(workflow, count)


def _parse(here: str, text: str) -> RecordingLine:
    try:
        return recording_line.validate_json(text)
    except ValidationError as error:
        wrong, problem = first_problem(error)
        raise InvalidInputError([here, *wrong], problem) from error


def _workflow(recorded: _Open, count: int) -> WorkloadWorkflow:
    # An id may be in use again once its workflow is over; keys must not be.
    workflow_id = f"{recorded.workflow_id[:240]}.{count}"
    declared = {agent.agent_id: agent.fixed_prefix_tokens for agent in recorded.graph.agents}
    before = calls_before([(step.begin_rank, step.end_rank) for step in recorded.steps])
    calls = []
    for position, (step, after) in enumerate(zip(recorded.steps, before, strict=True)):
        key = f"{workflow_id}/{position}"
        fixed_tokens = declared.get(step.agent_id)
        fixed = Piece(
            f"{recorded.client_id}/{step.agent_id}",
            FIXED_TOKENS if fixed_tokens is None else fixed_tokens,
        )
        prompt, fixed_pieces = prompt_of(fixed, step.prompt_tokens, key)
        ready_s = max((recorded.steps[one].end_s for one in after), default=recorded.begin_s)
        tokens = OUTPUT_TOKENS if step.output_tokens is None else max(step.output_tokens, 1)
        calls.append(
            WorkloadCall(
                step.agent_id,
                after,
                step.begin_s - ready_s,
                prompt,
                fixed_pieces,
                Piece(f"{key}/answer", tokens),
            )
        )
    return WorkloadWorkflow(
        recorded.client_id, workflow_id, recorded.begin_s, recorded.graph, tuple(calls)
    )
