"""What the service needs of a store, and what it keeps in one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple, Protocol

from kvflow.errors import KVFlowError
from kvflow.graph import INFINITE_STEPS, AgentStepGraph, WorkflowState
from kvflow.graph.learning import LearnedState
from kvflow.protocol import MAX_IDENTIFIER_CHARS, StepEvent, WorkflowSteps

__all__ = [
    "Change",
    "ExpectedTimes",
    "LearnedKey",
    "LearnedKind",
    "NoteKind",
    "StoreConflictError",
    "StoreFullError",
    "StoreUnavailableError",
    "StoredState",
    "StreamKey",
    "WorkflowKey",
    "WorkflowRecord",
    "WorkflowStore",
]

NoteKind = Literal["client", "engine"]
"""What the service remembers beside workflows: clients and engines, by their ids."""

LearnedKind = Literal["order", "durations"]
"""What is learned of a family of workflows: the order of its agents, and how long they take."""


class LearnedKey(NamedTuple):
    """What a store keeps something learned under."""

    kind: LearnedKind
    namespace: str
    client_id: str
    family: str


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


class StoreUnavailableError(KVFlowError):
    """The store cannot be read or written now, and nothing was changed (HTTP 503).

    If it was the connection that broke, the change may have been made after all.
    """


class StoreConflictError(KVFlowError):
    """Another replica has changed the workflow since it was read; read it again and retry."""


@dataclass(frozen=True, slots=True)
class ExpectedTimes:
    """In how many seconds from ``at_s`` on each agent is expected to run, in the graph's order."""

    at_s: float
    agent_ids: tuple[str, ...]
    seconds: tuple[float, ...]

    def wire(self, now_s: float) -> dict[str, float | None]:
        """From now on, to the millisecond, as they go over the wire."""
        elapsed_s = now_s - self.at_s
        return {
            agent_id: None if seconds == inf else round(max(0.0, seconds - elapsed_s), 3)
            for agent_id, seconds in zip(self.agent_ids, self.seconds, strict=True)
        }


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """One live workflow at one version.

    ``state`` belongs to the record and is never changed: an update copies it, applies its events
    to the copy and makes a new record. Times are in seconds of the service's clock.

    ``expected`` is when its agents are expected to run, if anything is known of that; it is not
    stored.

    ``namespace`` is where ``workflow_id`` is unique: ``""`` in a service without keys, else the
    ``client_id`` of the key. ``revision`` belongs to the store: by it a shared one tells whether
    the workflow was changed since.
    """

    workflow_id: str
    client_id: str
    name: str | None
    ttl_s: float
    graph: AgentStepGraph
    state: WorkflowState
    expires_at_s: float
    namespace: str = ""
    revision: str = ""
    expected: ExpectedTimes | None = None
    _steps_json: str | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def key(self) -> WorkflowKey:
        return (self.namespace, self.workflow_id)

    @property
    def stream_key(self) -> StreamKey:
        return (self.client_id, self.workflow_id)

    @property
    def recorded_id(self) -> str:
        """The ``workflow_id`` in a recording, where there are no namespaces: an ``Identifier``.

        Where the namespace before it would be too long, or its end could not be told, a digest of
        both comes first, and as much of either as there is room for.
        """
        if not self.namespace:
            return self.workflow_id
        both = f"{self.namespace}:{self.workflow_id}"
        if ":" not in self.namespace and len(both) <= MAX_IDENTIFIER_CHARS:
            return both
        digest = hashlib.sha256("\0".join(self.key).encode()).hexdigest()[:32]
        return f"{digest}:{self.namespace[:100]}:{self.workflow_id}"[:MAX_IDENTIFIER_CHARS]

    @property
    def version(self) -> int:
        return self.state.version

    @property
    def learned(self) -> bool:
        """Whether it declares nothing; then ``graph`` is what is known of it."""
        return isinstance(self.state, LearnedState)

    def wire_steps(self) -> dict[str, int | None]:
        """Steps-to-execution as they go over the wire: ``None`` for infinitely many. O(agents)."""
        values = self.state.step_values()
        return {
            agent_id: None if value == INFINITE_STEPS else int(value)
            for agent_id, value in zip(self.graph.agent_ids, values, strict=True)
        }

    def steps_json(self) -> str:
        """The workflow as engines are told of it: ``WorkflowSteps``. Encoded once."""
        if self._steps_json is None:
            # What is not predicted well enough to be used is not told.
            told = not isinstance(self.state, LearnedState) or self.state.predicts
            expected = self.expected if told else None
            # Not checked again: the values are our own, and checking takes longer than encoding.
            steps = WorkflowSteps.model_construct(
                client_id=self.client_id,
                workflow_id=self.workflow_id,
                version=self.version,
                ttl_s=self.ttl_s,
                steps_to_execution=self.wire_steps() if told else {},
                expected_s_to_execution=None if expected is None else expected.wire(expected.at_s),
                choice_probabilities=self.state.open_choices() or None,
                fixed_prefix_tokens={
                    agent.agent_id: agent.fixed_prefix_tokens
                    for agent in self.graph.agents
                    if agent.fixed_prefix_tokens is not None
                },
            )
            object.__setattr__(self, "_steps_json", steps.model_dump_json())
        assert self._steps_json is not None  # noqa: S101 - for the type checker
        return self._steps_json


@dataclass(frozen=True, slots=True)
class StoredState:
    """A workflow as engines are told of it, read back without what it follows from."""

    stream_key: StreamKey
    encoded: str

    @property
    def client_id(self) -> str:
        return self.stream_key[0]

    def steps_json(self) -> str:
        return self.encoded


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a workflow, at this replica or another: its state, or ``None`` if it ended.

    ``stream_key`` of ``None``: changes were missed, and all there is has to be read again.
    """

    stream_key: StreamKey | None
    state: StoredState | None = None


class WorkflowStore(Protocol):
    """Keeps the live workflows of a service.

    A write returns when it is as durable as the store makes it. It is all or nothing: when it
    raises, nothing has changed. Any method may raise ``StoreUnavailableError``.

    The service holds a lock per workflow around each read-and-write of it, so a store of one
    process needs no compare-and-set; one that several share raises ``StoreConflictError`` from a
    write whose workflow was changed since this store last gave it out. Calls for different
    workflows overlap. An expired workflow is an ordinary one until the service deletes it.
    """

    @property
    def shared(self) -> bool:
        """Whether other replicas write too. Then engines are told of what ``changes`` gives."""

    @property
    def problem(self) -> str | None:
        """Why nothing can be stored at present; ``None``: as far as is known, it can."""

    def now_s(self) -> float:
        """Seconds of a clock that only this store's services have: it never jumps, and goes on
        where it was when one is started again. Deadlines are told by it."""

    async def keep_time(self) -> None:
        """Called about every second, so that the clock can be kept."""

    async def insert(self, record: WorkflowRecord) -> None:
        """Keep a workflow whose key is not in the store.

        Raises:
            StoreFullError: the store holds as many workflows as it may.
            StoreConflictError: another replica has just created it.
        """

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        """Replace the record with the same key.

        ``events`` led from the old record to the new one, in order (none: only ``expires_at_s``
        has changed, and it never moves back). A durable store may write these, as applying them
        again gives the same state, or the state as a whole.

        Raises:
            StoreConflictError: another replica has changed or ended it.
        """

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        """The workflow, or ``None``. One that cannot be read back is lost: there is none, its id
        is free again, and ``changes`` says that it has ended."""

    async def delete(self, record: WorkflowRecord) -> None:
        """Forget the workflow, which is in the store as this record.

        Raises:
            StoreConflictError: another replica has changed or ended it.
        """

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

    async def expired(self, now_s: float, limit: int) -> list[WorkflowKey]:
        """At most ``limit`` workflows with ``expires_at_s <= now_s``, earliest first."""

    async def count(self) -> int:
        """How many workflows the store holds."""

    def live(self) -> AsyncIterator[Sequence[WorkflowRecord | StoredState]]:
        """All workflows as engines are told of them, some at a time."""

    def changes(self) -> AsyncIterator[Sequence[Change]]:
        """What happens from now on, in order for each workflow. Of a store that is not shared:
        which workflows it has lost, as they could not be read back."""

    async def note(self, kind: NoteKind, name: str, values: Mapping[str, object] | None) -> None:
        """Remember something small, or forget it."""

    async def notes(self, kind: NoteKind) -> dict[str, dict[str, object]]:
        """What is remembered, by name."""

    async def keep_learned(self, texts: Mapping[LearnedKey, str | None]) -> None:
        """Keep these texts, each in the place of the one before; ``None``: forget it. One write,
        however many they are. Where services share the store, the last one to write a key counts.
        """

    def learned(self) -> AsyncIterator[Sequence[tuple[LearnedKey, str]]]:
        """All texts that are kept, some at a time; what is not even text is left out, as the log
        says."""

    async def close(self) -> None:
        """Write what is under way and let go of everything. The last call."""
