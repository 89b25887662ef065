"""One workflow that declares nothing, at one version."""

from __future__ import annotations

from typing import Final

from kvflow.errors import AgentNotFoundError, ConflictError
from kvflow.graph.base import EventOutcome
from kvflow.graph.learning.base import MAX_AGENTS, Began, Lesson, Scored
from kvflow.graph.learning.export import observed_graph
from kvflow.graph.learning.history import CallHistory
from kvflow.graph.learning.model import TransitionModel
from kvflow.graph.learning.prediction import next_probability, predicted_steps, predicted_times
from kvflow.graph.runs import Runs
from kvflow.graph.state import WorkflowState
from kvflow.graph.step_graph import AgentStepGraph
from kvflow.graph.timing import StepTimes

__all__ = ["LearnedState"]

MAX_NAMES: Final = 10_000
"""Agents of one workflow, as many as one may declare."""

SHOWN_FOR: Final = 32
"""Lessons after which a graph that was shown is made anew, as its shares have changed a little;
fewer while a quarter of what is known would be new."""

_NOTHING: Final = AgentStepGraph.observed((), (), ())
_APPLIED: Final = EventOutcome(duplicate=False, misprediction=False)
_MISPREDICTED: Final = EventOutcome(duplicate=False, misprediction=True)
_DUPLICATE: Final = EventOutcome(duplicate=True, misprediction=False)


class LearnedState(WorkflowState):
    """A workflow's runs, and the steps that what its family has taught says of it.

    Takes the same events as a declared one and answers the same questions, but for any agent: one
    that was never seen before is noted. There are no marks. Predicts from ``model`` and never
    changes it: what the events teach is kept until ``take_lessons``, for the owner to hand on once
    they are accepted.

    Steps are worked out at the first question after an event, from the model as it is then.
    A state belongs to one thread at a time.
    """

    __slots__ = (
        "_history",
        "_lessons",
        "_names",
        "_positions",
        "_predicted",
        "_shown",
        "_shown_revision",
        "_started_at",
        "model",
    )

    def __init__(self, model: TransitionModel) -> None:
        super().__init__(_NOTHING)
        self.model = model
        self._names: list[str] = []
        self._positions: dict[str, int] = {}
        self._runs = Runs(self._names)
        # Per agent, the places in the history at which its runs under way started, oldest first.
        self._started_at: dict[int, list[int]] = {}
        self._history = CallHistory()
        self._lessons: list[Lesson] = []
        self._predicted: dict[str, float] | None = None
        self._shown: AgentStepGraph | None = None
        self._shown_revision = 0

    def copy(self) -> LearnedState:
        """Return an independent state with the same model and no lessons to take."""
        twin = LearnedState(self.model)
        twin._names.extend(self._names)
        twin._positions = self._positions.copy()
        twin._runs = self._runs.copy(twin._names)
        twin._started_at = {agent: places.copy() for agent, places in self._started_at.items()}
        twin._history = self._history.copy()
        twin._version = self._version
        twin._steps_started = self._steps_started
        twin._mispredictions = self._mispredictions
        twin._predicted = self._predicted
        twin._shown = self._shown
        twin._shown_revision = self._shown_revision
        return twin

    @property
    def predicts(self) -> bool:
        """Whether the model predicts well enough for the steps to be used."""
        return self.model.score.used

    @property
    def graph(self) -> AgentStepGraph:
        """The agents that ``step_values`` is about, and what is known of their order."""
        steps = self.steps_to_execution()
        graph, revision = self._shown, self.model.revision
        since = self._shown_revision
        old = revision - since >= min(SHOWN_FOR, 1 + since // 4)
        if graph is None or old or graph.agent_ids != tuple(steps):
            graph = self._shown = observed_graph(self.model, tuple(steps))
            self._shown_revision = revision
        return graph

    def running(self, agent_id: str) -> int:
        """Return how many runs of this agent have started and not finished; 0 if it is unknown."""
        position = self._positions.get(agent_id)
        return 0 if position is None else len(self._runs.by_agent.get(position, ()))

    def running_steps(self, agent_id: str) -> tuple[str | None, ...]:
        """Return the step_ids of these runs, oldest first; none if the agent is unknown."""
        position = self._positions.get(agent_id)
        return () if position is None else tuple(self._runs.by_agent.get(position, ()))

    def steps_to_execution(self) -> dict[str, float]:
        """Return the steps of the family's agents and of its own: int, or INFINITE_STEPS.

        ``kvflow.graph.learning.prediction`` says what they are.
        """
        steps = self._predicted
        if steps is None:
            running = [self._names[position] for position in self._runs.by_agent]
            seen = self._names[-MAX_AGENTS:]
            agent_ids = dict.fromkeys((*self.model.agent_ids, *seen, *running))
            steps = self._predicted = predicted_steps(
                self.model,
                agent_ids,
                running,
                self._history.frontier,
                begun=self._steps_started > 0,
            )
        return steps

    def step_values(self) -> tuple[float, ...]:
        """Return the values of ``steps_to_execution``, in the order of ``graph.agent_ids``."""
        return tuple(self.steps_to_execution().values())

    def predecessors(self, agent_id: str) -> tuple[str, ...]:
        """The agents whose finishes a start that comes now comes after."""
        return tuple(dict.fromkeys(one.agent_id for one in self._history.frontier))

    def expected_times(self, times: StepTimes, now_s: float) -> tuple[float, ...] | None:
        """In how many seconds each agent runs, as predicted; as ``WorkflowState.expected_times``.

        Returns:
            None if no duration was measured.
        """
        if not times.durations.known:
            return None
        return predicted_times(
            self.model,
            self.steps_to_execution(),
            self._history.frontier,
            times,
            now_s,
        )

    def start(self, agent_id: str, step_id: str | None = None) -> EventOutcome:
        """A run of the agent started; ``step_id`` as for ``WorkflowState.start``.

        Raises:
            ConflictError: the step_id is known as another agent's, or the workflow has run
                MAX_NAMES agents.
        """
        position = self._positions.get(agent_id, len(self._names))
        if position == len(self._names):
            if position >= MAX_NAMES:
                raise ConflictError(
                    f"the workflow has run {MAX_NAMES:,} different agents, the most it may; "
                    "give an agent the same agent_id in each of its calls"
                )
            self._positions[agent_id] = position
            self._names.append(agent_id)
        if step_id is not None and self._runs.is_repeat(position, step_id):
            return _DUPLICATE
        frontier = self._history.frontier
        if frontier:
            probability = next_probability(self.model, frontier, agent_id)
            predicted = self.steps_to_execution().get(agent_id, 2) <= 1
        at, predecessors = self._history.start(agent_id)
        mispredicted = False
        if predecessors:
            self._lessons.append(Scored(agent_id, probability, predecessors))
            mispredicted = not predicted
        else:
            self._lessons.append(Began(agent_id, first=self._steps_started == 0))
        self._runs.begin(position, step_id)
        self._started_at.setdefault(position, []).append(at)
        self._steps_started += 1
        self._mispredictions += mispredicted
        self._changed()
        return _MISPREDICTED if mispredicted else _APPLIED

    def finish(self, agent_id: str, step_id: str | None = None) -> EventOutcome:
        """A run of the agent finished; as for ``WorkflowState.finish``.

        Raises:
            AgentNotFoundError: the agent has never started in this workflow.
            StepNotRunningError: the agent is not running, or not as this step_id.
            ConflictError: the step_id is known as another agent's.
        """
        position = self._positions.get(agent_id)
        if position is None:
            raise AgentNotFoundError(agent_id, tuple(self._names))
        place = self._runs.place(position, step_id)
        if not self._runs.end(position, step_id):
            return _DUPLICATE
        places = self._started_at[position]
        self._lessons.extend(self._history.finish(agent_id, places.pop(place)))
        if not places:
            del self._started_at[position]
        self._changed()
        return _APPLIED

    def end(self) -> None:
        """The workflow is over: nothing follows its last finishes."""
        self._lessons.extend(self._history.end())

    def take_lessons(self) -> list[Lesson]:
        """What the events since the last time teach, in order."""
        lessons, self._lessons = self._lessons, []
        return lessons

    def _changed(self) -> None:
        self._version += 1
        self._predicted = None
