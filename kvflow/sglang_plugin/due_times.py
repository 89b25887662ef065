"""When agents are expected to run, on one clock, for an eviction order by time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from kvflow.graph import INFINITE_STEPS, StepsIndex
from kvflow.sglang_plugin.control import WorkflowKey

__all__ = ["UNKNOWN_STEP_S", "DueTimes", "Order"]

Order = Literal["steps", "time"]
"""``KVFLOW_ORDER``: by steps-to-execution, or by expected time to execution."""

UNKNOWN_STEP_S: Final = 1.0
"""What a step counts in a workflow of which no durations are known, as all share one order."""


class DueTimes:
    """Due times by agent and workflow, the earliest of an agent's workflows counting.

    Reads no clock: times come with the service's messages, so ranks agree. Between two messages
    nothing has to be ranked anew, as a due time does not move; what is overdue stays the most
    urgent. An agent that runs counts 0.

    Attributes:
        index: the due times.
        now_s: when the last message came.
    """

    __slots__ = ("_told", "index", "now_s")

    def __init__(self) -> None:
        self.index = StepsIndex()
        self.now_s = 0.0
        self._told: dict[WorkflowKey, Mapping[str, float]] = {}

    def told(self, key: WorkflowKey, due_s: Mapping[str, float] | None) -> None:
        """What the service says of a workflow; None if nothing, or nothing any more."""
        if due_s is None:
            self._told.pop(key, None)
        else:
            self._told[key] = due_s

    def set(
        self, key: WorkflowKey, scope: str, steps: Mapping[str, float] | None
    ) -> dict[str, float]:
        """Let the workflow's agents count in this scope, or (None) no more.

        Returns:
            The agents of the scope whose earliest due time changed.
        """
        if steps is None:
            return self.index.remove(scope, key[1])
        told = self._told.get(key, {})
        return self.index.update(
            scope,
            key[1],
            {agent_id: self._due_s(n, told.get(agent_id)) for agent_id, n in steps.items()},
        )

    def _due_s(self, steps: float, told_s: float | None) -> float:
        if steps in (0, INFINITE_STEPS):
            return steps
        if told_s is not None and told_s < INFINITE_STEPS:
            return told_s
        return self.now_s + (steps - 1) * UNKNOWN_STEP_S
