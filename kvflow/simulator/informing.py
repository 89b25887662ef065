"""What the service makes of what the clients tell it, with the service's own code."""

from __future__ import annotations

from math import inf

from kvflow.errors import AgentNotFoundError
from kvflow.graph import WorkflowState
from kvflow.graph.learning import LearnedFamilies, LearnedState, family_of
from kvflow.graph.timing import FamilyDurations, StepTimes
from kvflow.sglang_plugin.control import ServiceUpdate, WorkflowKey, WorkflowUpdate
from kvflow.simulator.base import Graphs
from kvflow.workload import WorkloadWorkflow

__all__ = ["InformedService", "InformedWorkflow"]


class InformedService:
    """What outlives a workflow: the order and the durations that were learned.

    Args:
        graphs: whether clients declare their graphs.
        times: whether engines are told expected times.
    """

    def __init__(self, graphs: Graphs, *, times: bool) -> None:
        self._graphs = graphs
        self._families = LearnedFamilies()
        self._durations: dict[str, FamilyDurations] = {}
        self._times = times

    def workflow(self, workflow: WorkloadWorkflow) -> InformedWorkflow | None:
        """A workflow that begins; None if its client tells nothing of it."""
        if self._graphs == "declared":
            return None if workflow.graph is None else InformedWorkflow(workflow, self)
        return InformedWorkflow(workflow, self)

    def state(
        self, workflow: WorkloadWorkflow, first_agent: str | None
    ) -> WorkflowState | LearnedState | None:
        """Its state at the beginning; None if that depends on the first agent to run."""
        if self._graphs == "declared":
            assert workflow.graph is not None  # noqa: S101
            return WorkflowState(workflow.graph)
        if first_agent is None:
            return None
        key = ("", workflow.client_id, family_of(None, first_agent))
        return LearnedState(self._families.model(key))

    def times(self, client_id: str) -> StepTimes | None:
        """For the times of a workflow; None if engines are not told of them."""
        if not self._times:
            return None
        return StepTimes(self._durations.setdefault(client_id, FamilyDurations()))


class InformedWorkflow:
    """One workflow as the service knows it."""

    __slots__ = ("_fixed", "_key", "_service", "_state", "_times", "_workflow")

    def __init__(self, workflow: WorkloadWorkflow, service: InformedService) -> None:
        self._key: WorkflowKey = (workflow.client_id, workflow.workflow_id)
        self._workflow = workflow
        self._service = service
        self._state = service.state(workflow, None)
        self._times = service.times(workflow.client_id)
        self._fixed: dict[str, int] = {}
        if isinstance(self._state, WorkflowState):
            self._fixed = {
                agent.agent_id: agent.fixed_prefix_tokens
                for agent in self._state.graph.agents
                if agent.fixed_prefix_tokens is not None
            }

    def started(self, agent_id: str, now_s: float) -> bool:
        """A call started; whether the service took it."""
        if self._state is None:
            self._state = self._service.state(self._workflow, agent_id)
        state = self._state
        assert state is not None  # noqa: S101
        try:
            sources = state.predecessors(agent_id)
            state.start(agent_id)
        except AgentNotFoundError:
            return False  # An agent that the declared graph does not have: the service says 404.
        if self._times is not None:
            self._times.started(agent_id, None, sources, now_s)
        self._learn()
        return True

    def finished(self, agent_id: str, now_s: float) -> bool:
        """A call finished; likewise."""
        state = self._state
        assert state is not None  # noqa: S101
        try:
            state.finish(agent_id)
        except AgentNotFoundError:
            return False
        if self._times is not None:
            self._times.finished(agent_id, None, now_s)
        self._learn()
        return True

    def over(self) -> ServiceUpdate:
        """The workflow ended: what engines are told."""
        if isinstance(self._state, LearnedState):
            self._state.end()
            self._learn()
        return ServiceUpdate(closed=(self._key,))

    def update(self, now_s: float) -> ServiceUpdate:
        """What engines are told of the workflow now."""
        state = self._state
        if state is None:
            return ServiceUpdate(received_s=now_s)
        if isinstance(state, LearnedState) and not state.predicts:
            return ServiceUpdate(
                (WorkflowUpdate(self._key, state.version, {}, {}),), received_s=now_s
            )
        steps = state.steps_to_execution()
        expected = None if self._times is None else state.expected_times(self._times, now_s)
        due_s = None
        if expected is not None:
            due_s = {
                agent_id: inf if seconds == inf else now_s + seconds
                for agent_id, seconds in zip(steps, expected, strict=True)
            }
        choices = state.open_choices() or None
        told = WorkflowUpdate(self._key, state.version, steps, self._fixed, due_s, choices)
        return ServiceUpdate((told,), received_s=now_s)

    def _learn(self) -> None:
        if isinstance(self._state, LearnedState):
            self._state.model.learn(self._state.take_lessons())
