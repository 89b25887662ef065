"""The events of one request, applied to a state of which nobody else knows yet.

A long list is gone through some events at a time, and others get their turn in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvflow.errors import KVFlowError
from kvflow.graph import EventOutcome, WorkflowState
from kvflow.graph.timing import StepTimes
from kvflow.protocol import StepEvent
from kvflow.server.learned.orders import Sources
from kvflow.server.turns import AT_ONCE, others_turn

__all__ = ["EventRefusedError", "apply_all", "count_outcomes", "take_times"]


class EventRefusedError(KVFlowError):
    """One event of a request cannot be applied, so none was.

    Attributes:
        index: which event, counted from 0.
        cause: what is wrong with it.
    """

    def __init__(self, index: int, cause: KVFlowError) -> None:
        self.index = index
        self.cause = cause
        super().__init__(f"event {index}: {cause}")


async def apply_all(
    state: WorkflowState, events: Sequence[StepEvent]
) -> tuple[list[EventOutcome], list[Sources]]:
    """Apply the events in order: what became of each, and which agents' finishes it came after.

    Raises:
        EventRefusedError: one cannot be; the state has those before it.
    """
    outcomes, sources = list[EventOutcome](), list[Sources]()
    for index, event in enumerate(events):
        if index and index % AT_ONCE == 0:
            await others_turn()
        starts = event.type == "step_started"
        change = state.start if starts else state.finish
        try:
            before = state.predecessors(event.agent_id) if starts else ()
            outcomes.append(change(event.agent_id, event.step_id))
        except KVFlowError as error:
            raise EventRefusedError(index, error) from error
        sources.append(None if outcomes[-1].duplicate else before)
    return outcomes, sources


async def take_times(
    times: StepTimes, events: Sequence[StepEvent], sources: Sequence[Sources], now_s: float
) -> None:
    """Let the workflow's times have these events, all of this moment."""
    for index, (event, before) in enumerate(zip(events, sources, strict=True)):
        if index and index % AT_ONCE == 0:
            await others_turn()
        if before is None:
            continue
        if event.type == "step_started":
            times.started(event.agent_id, event.step_id, before, now_s)
        else:
            times.finished(event.agent_id, event.step_id, now_s)


def count_outcomes(
    events: Sequence[StepEvent], outcomes: Sequence[EventOutcome]
) -> Counter[tuple[str, str]]:
    """How many events there are of each ``(type, outcome)``: what the metric counts."""
    return Counter(
        (event.type, _outcome_name(outcome))
        for event, outcome in zip(events, outcomes, strict=True)
    )


def _outcome_name(outcome: EventOutcome) -> str:
    if outcome.duplicate:
        return "duplicate"
    return "misprediction" if outcome.misprediction else "applied"
