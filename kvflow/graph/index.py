"""Steps over many workflows: for each agent of a client, the minimum counts."""

from __future__ import annotations

from collections.abc import Mapping

from kvflow.graph.base import INFINITE_STEPS
from kvflow.graph.state import WorkflowState

__all__ = ["StepsIndex"]


class _AgentSteps:
    """One agent of one client: how many workflows give it which steps."""

    __slots__ = ("agent_id", "counts", "layouts", "minimum")

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.counts: dict[float, int] = {}
        self.minimum: float = INFINITE_STEPS
        self.layouts = 0


class _Layout:
    """A sequence of agents, shared by the workflows that have just these."""

    __slots__ = ("agent_ids", "agents", "positions", "workflows")

    def __init__(self, agent_ids: tuple[str, ...], agents: tuple[_AgentSteps, ...]) -> None:
        self.agent_ids = agent_ids
        self.agents = agents
        self.positions: dict[str, int] | None = None
        self.workflows = 0


class _Workflow:
    __slots__ = ("layout", "steps")

    def __init__(self, layout: _Layout, steps: tuple[float, ...]) -> None:
        self.layout = layout
        self.steps = steps


class _Client:
    __slots__ = ("agents", "layouts", "workflows")

    def __init__(self) -> None:
        self.agents: dict[str, _AgentSteps] = {}
        self.layouts: dict[tuple[str, ...], _Layout] = {}
        self.workflows: dict[str, _Workflow] = {}

    def layout(self, agent_ids: tuple[str, ...]) -> _Layout:
        layout = self.layouts.get(agent_ids)
        if layout is None:
            agents = tuple(
                self.agents.get(agent_id) or self.agents.setdefault(agent_id, _AgentSteps(agent_id))
                for agent_id in agent_ids
            )
            for agent in agents:
                agent.layouts += 1
            layout = self.layouts[agent_ids] = _Layout(agent_ids, agents)
        return layout

    def release(self, layout: _Layout) -> None:
        """One workflow less uses the layout."""
        layout.workflows -= 1
        if layout.workflows == 0:
            del self.layouts[layout.agent_ids]
            for agent in layout.agents:
                agent.layouts -= 1
                if agent.layouts == 0:
                    del self.agents[agent.agent_id]


class StepsIndex:
    """Steps-to-execution of many workflows, keyed by client and workflow.

    Agents are shared by the workflows of one client; clients are kept apart. Each agent has a small
    table that counts its workflows by steps. An update costs O(agents of that workflow) however
    many workflows there are, plus, for an agent whose last workflow at the minimum went up, a scan
    of the distinct steps in its table. An agent is forgotten with its last workflow.

    Steps are non-negative integers or INFINITE_STEPS; the caller sees to that, and to the order of
    updates. Not safe for use by several threads at once.
    """

    __slots__ = ("_clients",)

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}

    def __len__(self) -> int:
        """Return the number of workflows."""
        return sum(len(client.workflows) for client in self._clients.values())

    def update(
        self, client_id: str, workflow_id: str, steps: Mapping[str, float]
    ) -> dict[str, float]:
        """Set the steps of all agents of a workflow, in place of what was known of it.

        Returns:
            The agents of the client whose minimum changed, with the new minimum.
        """
        return self._set(client_id, workflow_id, tuple(steps), tuple(steps.values()))

    def update_state(
        self, client_id: str, workflow_id: str, state: WorkflowState
    ) -> dict[str, float]:
        """Do ``update`` with ``state.steps_to_execution()``, without building that dict."""
        return self._set(client_id, workflow_id, state.graph.agent_ids, state.step_values())

    def remove(self, client_id: str, workflow_id: str) -> dict[str, float]:
        """Forget a workflow; one that is not known is no error.

        Returns:
            The agents of the client whose minimum changed, with the new minimum (INFINITE_STEPS if
            no workflow has the agent any more).
        """
        client = self._clients.get(client_id)
        if client is None or workflow_id not in client.workflows:
            return {}
        workflow = client.workflows.pop(workflow_id)
        changed: dict[str, float] = {}
        for agent, old in zip(workflow.layout.agents, workflow.steps, strict=True):
            counts = agent.counts
            counts[old] -= 1
            if counts[old] == 0:
                del counts[old]
                if old == agent.minimum != INFINITE_STEPS:
                    agent.minimum = changed[agent.agent_id] = min(counts, default=INFINITE_STEPS)
        client.release(workflow.layout)
        if not client.workflows:
            del self._clients[client_id]
        return changed

    def agent_steps(self, client_id: str, agent_id: str) -> float:
        """Return the minimum over the client's workflows; INFINITE_STEPS if none has the agent."""
        client = self._clients.get(client_id)
        if client is None or (agent := client.agents.get(agent_id)) is None:
            return INFINITE_STEPS
        return agent.minimum

    def workflow_steps(self, client_id: str, workflow_id: str, agent_id: str) -> float:
        """Return the agent's steps in one workflow; INFINITE_STEPS if it is not known there."""
        client = self._clients.get(client_id)
        if client is None or (workflow := client.workflows.get(workflow_id)) is None:
            return INFINITE_STEPS
        layout = workflow.layout
        if layout.positions is None:
            layout.positions = {known: i for i, known in enumerate(layout.agent_ids)}
        position = layout.positions.get(agent_id)
        return INFINITE_STEPS if position is None else workflow.steps[position]

    def clear(self) -> None:
        """Forget everything."""
        self._clients.clear()

    def _set(
        self,
        client_id: str,
        workflow_id: str,
        agent_ids: tuple[str, ...],
        steps: tuple[float, ...],
    ) -> dict[str, float]:
        client = self._clients.get(client_id)
        workflow = None if client is None else client.workflows.get(workflow_id)
        if workflow is None:
            return self._add(client_id, workflow_id, agent_ids, steps)
        known_ids = workflow.layout.agent_ids
        if known_ids is not agent_ids and known_ids != agent_ids:
            return self._replace(client_id, workflow_id, agent_ids, steps)
        changed: dict[str, float] = {}
        if workflow.steps is steps:
            return changed
        for agent, old, new in zip(workflow.layout.agents, workflow.steps, steps, strict=True):
            if old == new:
                continue
            counts = agent.counts
            counts[new] = counts.get(new, 0) + 1
            left = counts[old] - 1
            if left:
                counts[old] = left
            else:
                del counts[old]
            if new < agent.minimum:
                agent.minimum = changed[agent.agent_id] = new
            elif not left and old == agent.minimum:
                agent.minimum = changed[agent.agent_id] = min(counts)
        workflow.steps = steps
        return changed

    def _add(
        self,
        client_id: str,
        workflow_id: str,
        agent_ids: tuple[str, ...],
        steps: tuple[float, ...],
    ) -> dict[str, float]:
        client = self._clients.setdefault(client_id, _Client())
        layout = client.layout(agent_ids)
        layout.workflows += 1
        client.workflows[workflow_id] = _Workflow(layout, steps)
        changed: dict[str, float] = {}
        for agent, new in zip(layout.agents, steps, strict=True):
            agent.counts[new] = agent.counts.get(new, 0) + 1
            if new < agent.minimum:
                agent.minimum = changed[agent.agent_id] = new
        return changed

    def _replace(
        self,
        client_id: str,
        workflow_id: str,
        agent_ids: tuple[str, ...],
        steps: tuple[float, ...],
    ) -> dict[str, float]:
        """Set a workflow whose agents are not those it had."""
        before: dict[str, float] = {}
        for agent_id in (
            *self._clients[client_id].workflows[workflow_id].layout.agent_ids,
            *agent_ids,
        ):
            before[agent_id] = self.agent_steps(client_id, agent_id)
        self.remove(client_id, workflow_id)
        self._add(client_id, workflow_id, agent_ids, steps)
        after = {agent_id: self.agent_steps(client_id, agent_id) for agent_id in before}
        return {agent_id: now for agent_id, now in after.items() if now != before[agent_id]}
