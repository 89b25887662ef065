"""What the service needs of a store, and what it keeps in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvflow.errors import KVFlowError
from kvflow.graph import INFINITE_STEPS, AgentStepGraph, WorkflowState
from kvflow.protocol import StepEvent

__all__ = ["StoreFullError", "StreamKey", "WorkflowKey", "WorkflowRecord", "WorkflowStore"]

WorkflowKey = tuple[str, str]
"""``(namespace, workflow_id)``: what a store keeps a workflow under."""

StreamKey = tuple[str, str]
"""``(client_id, workflow_id)``: what engines know a workflow by."""


class StoreFullError(KVFlowError):
    """The store holds as many workflows as it may (HTTP 503)."""

    def __init__(self, max_workflows: int) -> None:
        self.max_workflows = max_workflows
        super().__init__(
            f"the service holds {max_workflows} live workflows, the most it may "
            "(KVFLOW_MAX_WORKFLOWS); delete some, or create them with a shorter ttl_s"
        )


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """One live workflow at one version.

    ``state`` belongs to the record and is never changed: an update copies it, applies its events
    to the copy and makes a new record. Times are in seconds of the service's clock.

    ``namespace`` is where ``workflow_id`` is unique: ``""`` in a service without keys, else the
    ``client_id`` of the key.
    """

    workflow_id: str
    client_id: str
    name: str | None
    ttl_s: float
    graph: AgentStepGraph
    state: WorkflowState
    expires_at_s: float
    namespace: str = ""

    @property
    def key(self) -> WorkflowKey:
        return (self.namespace, self.workflow_id)

    @property
    def stream_key(self) -> StreamKey:
        return (self.client_id, self.workflow_id)

    @property
    def recorded_id(self) -> str:
        """The ``workflow_id`` in a recording, where there are no namespaces."""
        return f"{self.namespace}:{self.workflow_id}" if self.namespace else self.workflow_id

    @property
    def version(self) -> int:
        return self.state.version

    def wire_steps(self) -> dict[str, int | None]:
        """Steps-to-execution as they go over the wire: ``None`` for infinitely many. O(agents)."""
        values = self.state.step_values()
        return {
            agent_id: None if value == INFINITE_STEPS else int(value)
            for agent_id, value in zip(self.graph.agent_ids, values, strict=True)
        }


class WorkflowStore(Protocol):
    """Keeps the live workflows of one service process.

    The service holds a lock per workflow around each read-and-write of it, so a store needs no
    compare-and-set; calls for different workflows overlap. Each write is all or nothing: when it
    raises, nothing has changed. The store has no clock: an expired workflow is an ordinary one
    until the service deletes it.
    """

    async def insert(self, record: WorkflowRecord) -> None:
        """Keep a workflow whose key is not in the store.

        Raises:
            StoreFullError: the store holds as many workflows as it may.
        """

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        """Replace the record with the same key.

        ``events`` led from the old record to the new one, in order (none: only ``expires_at_s``
        has changed, and it never moves back). A durable store may write these, as applying them
        again to ``WorkflowState(record.graph)`` gives the same state, or the state as a whole.
        """

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        """The workflow, or ``None``."""

    async def delete(self, key: WorkflowKey) -> None:
        """Forget the workflow, which is in the store."""

    async def page(
        self,
        *,
        namespace: str | None,
        client_id: str | None,
        after: WorkflowKey | None,
        limit: int,
    ) -> list[WorkflowRecord]:
        """At most ``limit`` workflows with keys greater than ``after``, in the order of their keys.

        ``None`` means any namespace, or any client.
        """

    async def expired(self, now_s: float, limit: int) -> list[WorkflowRecord]:
        """At most ``limit`` workflows with ``expires_at_s <= now_s``, earliest first."""

    async def count(self) -> int:
        """How many workflows the store holds."""
