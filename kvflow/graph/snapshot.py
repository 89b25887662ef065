"""A workflow's state as plain values, to be stored and brought back.

What follows from the rest (which agents are ready to be marked, the steps) is not part of it.
"""

from __future__ import annotations

from typing import Any

from kvflow.graph.state import WorkflowState
from kvflow.graph.step_graph import AgentStepGraph

__all__ = ["restore_state", "state_values"]


def state_values(state: WorkflowState) -> dict[str, Any]:
    """The state as JSON has values: dicts, lists, strings and numbers. O(size of the state).

    Agents and edges are their positions in the graph, so the values mean nothing without it.
    """
    marking, runs = state._marking, state._runs
    return {
        "version": state._version,
        "steps_started": state._steps_started,
        "mispredictions": state._mispredictions,
        "finishes": marking._finishes,
        "entry": sorted(marking.entry),
        "marks": [[edge, *finishes] for edge, finishes in marking.by_edge.items()],
        "ready": list(marking.ready),
        "early_starts": [[agent, count] for agent, count in marking._early_starts.items()],
        "taken": [[edge, count] for edge, count in marking._taken.items()],
        "used_up": sorted(marking.used_up),
        "runs": [[agent, *step_ids] for agent, step_ids in runs.by_agent.items()],
        "finished": [[step_id, agent] for step_id, agent in runs._finished.items()],
    }


def restore_state(graph: AgentStepGraph, values: dict[str, Any]) -> WorkflowState:
    """The state that ``state_values`` was called with, on an equal graph declared alike.

    Raises:
        KeyError, TypeError, ValueError, IndexError: these are no such values.
    """
    state = WorkflowState(graph)
    state._version = values["version"]
    state._steps_started = values["steps_started"]
    state._mispredictions = values["mispredictions"]
    runs = state._runs
    for agent, *step_ids in values["runs"]:
        runs.by_agent[agent] = step_ids
        runs._running.update((one, agent) for one in step_ids if one is not None)
    runs._finished.update(values["finished"])
    marking, adjacency = state._marking, graph.adjacency
    marking._finishes = values["finishes"]
    marking.entry = frozenset(values["entry"])
    for edge, *finishes in values["marks"]:
        marking.by_edge[edge] = tuple(finishes)
        source, target = adjacency.source[edge], adjacency.target[edge]
        marking.missing[target] -= 1
        unmarked = marking.unmarked_out.get(source, len(adjacency.out_edges[source]))
        marking.unmarked_out[source] = unmarked - 1
    marking.ready.update(dict.fromkeys(values["ready"]))
    marking._early_starts.update(values["early_starts"])
    marking._taken.update(values["taken"])
    marking.used_up = frozenset(values["used_up"])
    marking.used_up_sources = frozenset(adjacency.source[edge] for edge in marking.used_up)
    return state
