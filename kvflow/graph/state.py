"""The state of one workflow, as its events make it."""

from __future__ import annotations

from typing import Final

from kvflow.errors import AgentNotFoundError
from kvflow.graph.base import EventOutcome
from kvflow.graph.marking import Marking
from kvflow.graph.runs import Runs
from kvflow.graph.step_graph import AgentStepGraph
from kvflow.graph.steps import compute_steps, steps_after_finish
from kvflow.graph.timing import StepTimes, expected_times

__all__ = ["WorkflowState"]

_APPLIED: Final = EventOutcome(duplicate=False, misprediction=False)
_MISPREDICTED: Final = EventOutcome(duplicate=False, misprediction=True)
_DUPLICATE: Final = EventOutcome(duplicate=True, misprediction=False)


class WorkflowState:
    """A workflow that runs ``graph``: its marks, its runs, and the steps that follow from them.

    ``kvflow.graph.marking`` says which marks a start takes and a finish puts,
    ``kvflow.graph.steps`` what the steps are.

    Has no clock and does no I/O. An event that raises changes nothing. An event costs O(edges of
    its agent), a misprediction also those of the agent predicted in its place; the steps are
    computed on demand, O(V + E), and kept until an event changes them.
    A state belongs to one thread at a time.
    """

    __slots__ = (
        "_graph",
        "_marking",
        "_mispredictions",
        "_runs",
        "_steps",
        "_steps_started",
        "_version",
    )

    def __init__(self, graph: AgentStepGraph) -> None:
        self._graph = graph
        self._runs = Runs(graph.agent_ids)
        self._marking = Marking(graph.adjacency, graph.entry_positions, self._runs.by_agent)
        self._version = 0
        self._steps_started = 0
        self._mispredictions = 0
        self._steps: tuple[float, ...] | None = None

    def copy(self) -> WorkflowState:
        """Return an independent state, so that several events can be applied all or none."""
        twin = WorkflowState(self._graph)
        twin._runs = self._runs.copy()
        twin._marking = self._marking.copy(twin._runs.by_agent)
        twin._version = self._version
        twin._steps_started = self._steps_started
        twin._mispredictions = self._mispredictions
        twin._steps = self._steps
        return twin

    @property
    def graph(self) -> AgentStepGraph:
        return self._graph

    @property
    def version(self) -> int:
        """Grows by one with every event that was applied; a duplicate is not."""
        return self._version

    @property
    def steps_started(self) -> int:
        return self._steps_started

    @property
    def mispredictions(self) -> int:
        """How many of ``steps_started`` the graph did not let start."""
        return self._mispredictions

    def running(self, agent_id: str) -> int:
        """Return how many runs of this agent have started and not finished.

        Raises:
            AgentNotFoundError: the graph has no such agent.
        """
        return len(self._runs.by_agent.get(self._position(agent_id), ()))

    def running_steps(self, agent_id: str) -> tuple[str | None, ...]:
        """Return the step_ids of these runs, oldest first; None for one without.

        Raises:
            AgentNotFoundError: the graph has no such agent.
        """
        return tuple(self._runs.by_agent.get(self._position(agent_id), ()))

    def marks(self) -> dict[tuple[str, str], int]:
        """Return the number of marks on each marked edge, by (source, target)."""
        edges = self._graph.edges
        return {
            (edges[edge].source, edges[edge].target): len(marks)
            for edge, marks in self._marking.by_edge.items()
        }

    def used_up(self) -> frozenset[tuple[str, str]]:
        """Return the edges that were taken ``max_iterations`` times, by (source, target)."""
        edges = self._graph.edges
        return frozenset((edges[edge].source, edges[edge].target) for edge in self._marking.used_up)

    def entry_marks(self) -> frozenset[str]:
        """Return the agents that still hold their entry mark."""
        return frozenset(self._graph.agent_ids[agent] for agent in self._marking.entry)

    def steps_to_execution(self) -> dict[str, float]:
        """Return the steps of every agent, in declaration order: int, or INFINITE_STEPS."""
        return dict(zip(self._graph.agent_ids, self.step_values(), strict=True))

    def step_values(self) -> tuple[float, ...]:
        """Return the values of ``steps_to_execution``, in the order of ``graph.agent_ids``."""
        steps = self._steps
        if steps is None:
            steps = self._steps = compute_steps(self._marking, self._runs.by_agent)
        return steps

    def predecessors(self, agent_id: str) -> tuple[str, ...]:
        """The agents whose finishes a start of this one comes after."""
        adjacency, agent_ids = self._graph.adjacency, self._graph.agent_ids
        edges = adjacency.in_edges[self._position(agent_id)]
        return tuple(agent_ids[adjacency.source[edge]] for edge in edges)

    def open_choices(self) -> dict[str, dict[str, float]]:
        """Return how likely each agent follows those whose choice is to come, where declared.

        By source and target, for sources that run, or have finished and one of whose choice edges
        is still marked. Without edges that are used up. Nothing that was learned is in it. O(edges
        of sources with a declaration).
        """
        marking, edges = self._marking, self._graph.edges
        return {
            source: {
                edges[edge].target: share
                for edge, share in shares.items()
                if edge not in marking.used_up
            }
            for source, shares in self._graph.declared_shares.items()
            if self._position(source) in self._runs.by_agent
            or any(edges[e].kind == "choice" and e in marking.by_edge for e in shares)
        }

    def expected_times(self, times: StepTimes, now_s: float) -> tuple[float, ...] | None:
        """In how many seconds each agent can run, in the order of ``graph.agent_ids``.

        See ``kvflow.graph.timing.expected``. O((V + E) log V).

        Args:
            times: of this workflow's events.
            now_s: on the clock of these.

        Returns:
            None if no duration is known, neither measured nor declared.
        """
        graph, durations = self._graph, times.durations
        agents, edges, agent_ids = graph.agents, graph.edges, graph.agent_ids
        declared = [a.expected_duration_s for a in agents if a.expected_duration_s is not None]
        if not durations.known and not declared:
            return None
        unknown_s = sum(declared) / len(declared) if declared else 0.0

        def duration_s(agent: int) -> float:
            known_s = durations.run_s(agent_ids[agent], agents[agent].expected_duration_s)
            return unknown_s if known_s is None else known_s

        def gap_s(edge: int) -> float:
            known = edges[edge]
            return durations.gap_s(known.source, known.target, known.expected_duration_s)

        return expected_times(
            self._marking,
            self._runs.by_agent,
            duration_s=duration_s,
            remaining_s=lambda agent: times.remaining_s(agent_ids[agent], duration_s(agent), now_s),
            gap_s=gap_s,
            gap_left_s=lambda edge: max(
                0.0, gap_s(edge) - times.since_finish_s(edges[edge].source, now_s)
            ),
        )

    def start(self, agent_id: str, step_id: str | None = None) -> EventOutcome:
        """A run of the agent started.

        Args:
            agent_id: which agent.
            step_id: names the run. A start with a step_id of this agent that is running, or is
                among the last ``RECENT_STEP_IDS`` finished ones, is a duplicate and does nothing.

        Raises:
            AgentNotFoundError: the graph has no such agent.
            ConflictError: the step_id is known as another agent's.
        """
        agent = self._position(agent_id)
        if step_id is not None and self._runs.is_repeat(agent, step_id):
            return _DUPLICATE
        predicted = self._marking.take(agent)
        if not predicted:
            self._mispredictions += 1
            if not self._marking.expect(agent):
                self._marking.mispredict(agent)
        self._runs.begin(agent, step_id)
        self._steps_started += 1
        self._version += 1
        self._steps = None
        return _APPLIED if predicted else _MISPREDICTED

    def finish(self, agent_id: str, step_id: str | None = None) -> EventOutcome:
        """A run of the agent finished: the one named, or else the oldest under way.

        A finish with a step_id of this agent that finished before is a duplicate and does nothing.

        Raises:
            AgentNotFoundError: the graph has no such agent.
            StepNotRunningError: the agent is not running, or not as this step_id.
            ConflictError: the step_id is known as another agent's.
        """
        agent = self._position(agent_id)
        if not self._runs.end(agent, step_id):
            return _DUPLICATE
        marks_stay = self._marking.put(agent)
        if not marks_stay:
            self._steps = None
        elif self._steps is not None and agent not in self._runs.by_agent:
            self._steps = steps_after_finish(self._steps, agent, self._marking)
        self._version += 1
        return _APPLIED

    def _position(self, agent_id: str) -> int:
        try:
            return self._graph.adjacency.position[agent_id]
        except KeyError:
            raise AgentNotFoundError(agent_id, self._graph.agent_ids) from None
