"""What the bus is told of workflows, and in which form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kvflow.graph import EventOutcome
from kvflow.protocol import StepEvent
from kvflow.server.event_bus import EventBus, EventKind
from kvflow.server.store import WorkflowRecord
from kvflow.server.turns import AT_ONCE, others_turn

__all__ = ["publish_closed", "publish_created", "publish_steps"]

_KINDS: Final[dict[str, EventKind]] = {
    "step_started": "step.started",
    "step_finished": "step.finished",
}
_COUNTS: Final = ("prompt_tokens", "cached_tokens", "output_tokens")


def publish_created(bus: EventBus, record: WorkflowRecord) -> None:
    """A workflow is new."""
    data = {**_who(record), "name": record.name, "ttl_s": record.ttl_s}
    data["agents"] = list(record.graph.agent_ids)
    bus.publish("workflow.created", data, namespace=record.namespace)


def publish_closed(bus: EventBus, record: WorkflowRecord, reason: str) -> None:
    """A workflow ended: ``deleted`` or ``expired``."""
    data = {**_who(record), "reason": reason}
    bus.publish("workflow.closed", data, namespace=record.namespace)


async def publish_steps(
    bus: EventBus,
    record: WorkflowRecord,
    events: Sequence[StepEvent],
    outcomes: Sequence[EventOutcome],
) -> None:
    """Events of one request were applied, after which the workflow is ``record``.

    Duplicates are no news. O(events), in turns, and O(1) while nobody listens.
    """
    if not (bus.wanted("step.started") or bus.wanted("step.finished")):
        return
    who = {**_who(record), "version": record.version}
    for index, (event, outcome) in enumerate(zip(events, outcomes, strict=True)):
        if index and index % AT_ONCE == 0:
            await others_turn()
        if outcome.duplicate:
            continue
        data: dict[str, Any] = {**who, "agent_id": event.agent_id, "step_id": event.step_id}
        if event.type == "step_started":
            data["misprediction"] = outcome.misprediction
        else:
            data |= {name: getattr(event, name) for name in _COUNTS}
        if event.traceparent is not None:
            data["traceparent"] = event.traceparent
        bus.publish(_KINDS[event.type], data, namespace=record.namespace)


def _who(record: WorkflowRecord) -> dict[str, Any]:
    return {"client_id": record.client_id, "workflow_id": record.workflow_id}
