"""Which runs of which agents are under way, and which step_ids are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvflow.errors import ConflictError, StepNotRunningError

__all__ = ["RECENT_STEP_IDS", "Runs"]

RECENT_STEP_IDS: Final = 1024
"""How many finished step_ids of a workflow are remembered. A repeat of an event comes from a retry,
seconds later; one that comes after this many other steps is taken for a new step."""

_MAX_NAMED = 20


class Runs:
    """The runs of one workflow. Agents are positions in its graph.

    Memory: one entry per run that has not finished, plus at most RECENT_STEP_IDS ids.
    """

    __slots__ = ("_agent_ids", "_finished", "_running", "by_agent")

    def __init__(self, agent_ids: Sequence[str]) -> None:
        self._agent_ids = agent_ids
        # Step ids of the runs under way (None: has no id), oldest first. Only agents that run.
        self.by_agent: dict[int, list[str | None]] = {}
        self._running: dict[str, int] = {}
        self._finished: dict[str, int] = {}

    def copy(self, agent_ids: Sequence[str] | None = None) -> Runs:
        """Return an independent copy; ``agent_ids`` in the place of this one's, if given."""
        twin = Runs(self._agent_ids if agent_ids is None else agent_ids)
        twin.by_agent = {agent: runs.copy() for agent, runs in self.by_agent.items()}
        twin._running = self._running.copy()
        twin._finished = self._finished.copy()
        return twin

    def is_repeat(self, agent: int, step_id: str) -> bool:
        """Tell whether a start with this step_id was seen before.

        Raises:
            ConflictError: the step_id is known as another agent's.
        """
        owner = self._running.get(step_id)
        if owner is None:
            owner = self._finished.get(step_id)
        if owner is None:
            return False
        self._check_owner(agent, step_id, owner)
        return True

    def begin(self, agent: int, step_id: str | None) -> None:
        """Add a run; its step_id must be new."""
        runs = self.by_agent.get(agent)
        if runs is None:
            self.by_agent[agent] = [step_id]
        else:
            runs.append(step_id)
        if step_id is not None:
            self._running[step_id] = agent

    def place(self, agent: int, step_id: str | None) -> int:
        """Return which of the agent's runs, oldest first, ``end`` would remove; 0 if none."""
        runs = self.by_agent.get(agent)
        return 0 if step_id is None or runs is None or step_id not in runs else runs.index(step_id)

    def end(self, agent: int, step_id: str | None) -> bool:
        """Remove the run with this step_id, or the agent's oldest run if it is None.

        Returns:
            False if the run with this step_id had finished before.

        Raises:
            StepNotRunningError: there is no such run.
            ConflictError: the step_id is another agent's.
        """
        runs = self.by_agent.get(agent)
        if step_id is None:
            if runs is None:
                raise self._not_running(agent, None)
            ended = runs.pop(0)
        else:
            owner = self._running.get(step_id)
            if owner is None:
                if self.is_repeat(agent, step_id):
                    return False
                raise self._not_running(agent, step_id)
            self._check_owner(agent, step_id, owner)
            assert runs is not None  # noqa: S101  (a running step_id is in its agent's runs)
            runs.remove(step_id)
            ended = step_id
        if not runs:
            del self.by_agent[agent]
        if ended is not None:
            self._remember(ended, self._running.pop(ended))
        return True

    def _remember(self, step_id: str, agent: int) -> None:
        finished = self._finished
        if len(finished) >= RECENT_STEP_IDS:
            del finished[next(iter(finished))]
        finished[step_id] = agent

    def _check_owner(self, agent: int, step_id: str, owner: int) -> None:
        if owner != agent:
            raise ConflictError(
                f"step_id {step_id!r} is a step of agent {self._agent_ids[owner]!r}, "
                f"not of {self._agent_ids[agent]!r}; give every run a step_id of its own"
            )

    def _not_running(self, agent: int, step_id: str | None) -> StepNotRunningError:
        agent_id = self._agent_ids[agent]
        runs = self.by_agent.get(agent)
        step = "" if step_id is None else f" as step_id {step_id!r}"
        if runs is None:
            problem = (
                f"agent {agent_id!r} is not running{step}, so it cannot finish; "
                "report step_started before step_finished"
            )
        else:
            named = [repr(run) for run in runs if run is not None]
            anonymous = len(runs) - len(named)
            if len(named) > _MAX_NAMED:
                named[_MAX_NAMED:] = [f"{len(named) - _MAX_NAMED} more"]
            if anonymous:
                named.append(f"{anonymous} without step_id")
            problem = (
                f"agent {agent_id!r} is not running{step}; its running steps are: "
                f"{', '.join(named)}"
            )
        return StepNotRunningError(agent_id, step_id, problem)
