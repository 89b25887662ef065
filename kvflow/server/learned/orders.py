"""What all workflows have taught: the order of agents, and how long they take."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvflow.errors import FamilyNotFoundError
from kvflow.graph import AgentStepGraph, WorkflowState
from kvflow.graph.learning import (
    FamilyKey,
    LearnedFamilies,
    LearnedState,
    TransitionModel,
    declarable_graph,
    family_of,
)
from kvflow.graph.learning.base import MAX_FAMILIES
from kvflow.graph.timing import FamilyDurations, StepTimes
from kvflow.protocol import StepEvent
from kvflow.server.learned.pending import PendingDurations
from kvflow.server.store import (
    ExpectedTimes,
    LearnedKey,
    LearnedKind,
    StreamKey,
    WorkflowRecord,
)

__all__ = ["LearnedFamily", "LearnedOrders", "Sources", "expected_times"]

Sources = tuple[str, ...] | None
"""The agents whose finishes a start came after; None for a duplicate, which teaches nothing."""


@dataclass(frozen=True, slots=True)
class LearnedFamily:
    """A family and its model."""

    client_id: str
    family: str
    model: TransitionModel


class LearnedOrders:
    """In memory, for one service process; ``LearnedPersistence`` brings it over a restart.

    Belongs to the process's event loop.

    The order is learned from workflows that declare nothing, durations from all: per namespace,
    client, and name of the workflow (the same family for all that have none).
    """

    def __init__(self) -> None:
        self._families = LearnedFamilies()
        self._durations: OrderedDict[FamilyKey, FamilyDurations] = OrderedDict()
        self._times: dict[StreamKey, StepTimes] = {}

    @staticmethod
    def fresh_state() -> LearnedState:
        """The state of a workflow of which nothing has run: its family may not be known yet."""
        return LearnedState(TransitionModel())

    def state(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> LearnedState | None:
        """The state that these events are to be applied to, a copy; None if it is a declared one.

        A workflow joins its family with its first event.
        """
        state = record.state
        if not isinstance(state, LearnedState):
            return None
        if state.steps_started == 0 and events:
            family = family_of(record.name, events[0].agent_id)
            key = (record.namespace, record.client_id, family)
            return LearnedState(self._families.model(key))
        return state.copy()

    def times(self, record: WorkflowRecord) -> StepTimes:
        """The workflow's times before events that are about to be applied, a copy.

        What these teach of durations is taken when ``applied`` gets the copy back.
        """
        known = self._times.get(record.stream_key)
        times = StepTimes(self._durations_of(record)) if known is None else known.copy()
        times.durations = PendingDurations(times.durations)
        return times

    def applied(self, record: WorkflowRecord, times: StepTimes) -> None:
        """The workflow was stored after events: keep its times, take what it teaches."""
        if isinstance(times.durations, PendingDurations):
            times.durations = times.durations.hand_on()
        self._times[record.stream_key] = times
        if isinstance(record.state, LearnedState):
            record.state.model.learn(record.state.take_lessons())

    def expected(self, record: WorkflowRecord, now_s: float) -> ExpectedTimes | None:
        """When the workflow's agents are expected to run, as seen now."""
        times = self._times.get(record.stream_key)
        if times is None:
            times = StepTimes(self._durations_of(record))
        return expected_times(record.state, times, now_s)

    def closed(self, record: WorkflowRecord) -> None:
        """The workflow is over."""
        self.gone(record.stream_key)
        if isinstance(record.state, LearnedState):
            state = record.state.copy()
            state.end()
            state.model.learn(state.take_lessons())

    def gone(self, key: StreamKey) -> None:
        """The workflow is over, here or at another service on the same store."""
        self._times.pop(key, None)

    def families(self, namespace: str, client_id: str | None) -> Iterator[LearnedFamily]:
        """What is known there, the family used least recently first; of all clients if None."""
        for (within, client, family), model in self._families.models.items():
            if within == namespace and client_id in (None, client):
                yield LearnedFamily(client, family, model)

    def graph(self, namespace: str, client_id: str, family: str) -> AgentStepGraph:
        """What was learned of a family, to be declared; with the durations that were measured.

        Raises:
            FamilyNotFoundError: nothing is known of it.
        """
        model = self._families.get((namespace, client_id, family))
        durations = self._durations.get(_durations_key(namespace, client_id, family))
        graph = None
        if model is not None and durations is not None:
            graph = declarable_graph(model, durations.measured_run_s, durations.measured_gap_s)
        elif model is not None:
            graph = declarable_graph(model)
        if graph is None:
            raise FamilyNotFoundError(family, client_id)
        return graph

    def check_known(self, namespace: str, client_id: str, family: str) -> None:
        """Raises:
        FamilyNotFoundError: nothing is known of it.
        """
        if self._families.get((namespace, client_id, family)) is None:
            raise FamilyNotFoundError(family, client_id)

    def forget(self, namespace: str, client_id: str, family: str) -> None:
        """Forget what was learned of the order of a family, if anything was."""
        self._families.forget((namespace, client_id, family))

    def known(self, kind: LearnedKind) -> Mapping[FamilyKey, TransitionModel | FamilyDurations]:
        """All that is known, as it is now and as it changes."""
        return self._families.models if kind == "order" else self._durations

    def restore(self, key: LearnedKey, learned: TransitionModel | FamilyDurations) -> None:
        """Take what an earlier process has learned. Before the first event."""
        if isinstance(learned, TransitionModel):
            self._families.put(key[1:], learned)
        else:
            self._put_durations(key[1:], learned)

    def _durations_of(self, record: WorkflowRecord) -> FamilyDurations:
        key = _durations_key(record.namespace, record.client_id, record.name or "")
        durations = self._durations.get(key)
        if durations is None:
            durations = FamilyDurations()
            self._put_durations(key, durations)
        self._durations.move_to_end(key)
        return durations

    def _put_durations(self, key: FamilyKey, durations: FamilyDurations) -> None:
        self._durations[key] = durations
        if len(self._durations) > MAX_FAMILIES:
            self._durations.popitem(last=False)


def expected_times(state: WorkflowState, times: StepTimes, now_s: float) -> ExpectedTimes | None:
    """When the workflow's agents are expected to run; None if no duration is known."""
    seconds = state.expected_times(times, now_s)
    return None if seconds is None else ExpectedTimes(now_s, state.graph.agent_ids, seconds)


def _durations_key(namespace: str, client_id: str, family: str) -> FamilyKey:
    """Workflows without a name share their durations: an agent is the same one in all of them."""
    return (namespace, client_id, "" if family.startswith("from:") else family)
