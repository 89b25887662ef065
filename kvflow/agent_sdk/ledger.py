"""What one run has reported, what the service has taken of it, and how to catch up. No I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from kvflow.protocol import StepEvent, WorkflowSpec

__all__ = ["MAX_HISTORY", "MAX_PENDING", "Event", "Ledger"]

MAX_PENDING: Final = 2048
"""Events of a run that may wait for the service; beyond it only the running steps are kept."""

MAX_HISTORY: Final = 1024
"""Events that are replayed to a service that has lost the workflow. A run with no more events than
this gets exactly its old state back; a longer one gets it back up to marks left longer ago."""


class Event(NamedTuple):
    """A step started or finished; ``traceparent`` names its span, if it has one."""

    type: Literal["step_started", "step_finished"]
    agent_id: str
    step_id: str
    traceparent: str | None = None


@dataclass(slots=True, eq=False)
class Ledger:
    """The reporting state of one run. Owned by the reporter's thread once it has been handed over.

    Attributes:
        spec: body of the creation request, with its ``workflow_id``.
        delete_on_close: whether closing the run deletes the workflow.
        pending: events the service has not taken yet, oldest first.
        history: events it has taken, oldest first.
        open: step_id -> agent_id of the starts it has taken without their finish.
        running: the same by what the agents reported, taken or not.
        registered: the service has the workflow, as far as is known.
        stale: what the service has is wrong; the workflow is to be deleted and made anew.
        refused: why nothing is reported any more; ``None`` while all is well.
        closing: the run is over.
    """

    spec: WorkflowSpec
    delete_on_close: bool = True
    pending: deque[Event] = field(default_factory=deque)
    history: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))
    open: dict[str, str] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)
    registered: bool = False
    stale: bool = False
    refused: Exception | None = None
    closing: bool = False

    @property
    def workflow_id(self) -> str:
        assert self.spec.workflow_id is not None  # noqa: S101  (a run chooses its id itself)
        return self.spec.workflow_id

    def admit(self, event: Event) -> None:
        """Take an event from an agent. O(1), but for the overflow."""
        if event.type == "step_started":
            self.running[event.step_id] = event.agent_id
        else:
            self.running.pop(event.step_id, None)
        self.pending.append(event)
        if len(self.pending) > MAX_PENDING:
            self.start_anew()

    def batch(self, limit: int) -> list[StepEvent]:
        """The oldest pending events, to be sent in one request."""
        return [
            StepEvent.model_construct(
                type=e.type, agent_id=e.agent_id, step_id=e.step_id, traceparent=e.traceparent
            )
            for _, e in zip(range(limit), self.pending, strict=False)
        ]

    def taken(self, count: int) -> None:
        """The service has taken this many pending events."""
        for _ in range(count):
            event = self.pending.popleft()
            self.history.append(event)
            if event.type == "step_started":
                self.open[event.step_id] = event.agent_id
            else:
                self.open.pop(event.step_id, None)

    def lost(self) -> None:
        """The service does not know the workflow (any more): replay what it had."""
        self.registered = False
        replayable: list[Event] = []
        started: set[str] = set()
        for event in self.history:
            if event.type == "step_started":
                started.add(event.step_id)
            elif event.step_id not in started:
                continue  # its start is too long ago
            replayable.append(event)
        older = [
            Event("step_started", agent_id, step_id)
            for step_id, agent_id in self.open.items()
            if step_id not in started
        ]
        self.pending.extendleft(reversed([*older, *replayable]))
        self.history.clear()
        self.open.clear()

    def start_anew(self) -> None:
        """Give up the past: next, the service is told the running steps and nothing else."""
        self.stale = self.stale or self.registered
        self.registered = False
        self.history.clear()
        self.open.clear()
        self.pending = deque(
            Event("step_started", agent_id, step_id) for step_id, agent_id in self.running.items()
        )

    def forget(self) -> None:
        """After a fork, in the child: the run and its events so far are the parent's."""
        self.delete_on_close = False
        self.pending.clear()
        self.history.clear()
        self.open.clear()
        self.running.clear()
