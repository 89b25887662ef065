"""Text that draws a graph: Mermaid (renders in Markdown) and DOT (Graphviz).

An entry agent has a double border, a join ``any`` is written out, a ``choice`` edge is dashed.
With a state, an agent shows its steps (``never`` if it cannot run again) and its runs, an edge
its marks.
"""

from __future__ import annotations

from kvflow.graph.base import INFINITE_STEPS, Agent, Edge
from kvflow.graph.state import WorkflowState
from kvflow.graph.step_graph import AgentStepGraph

__all__ = ["to_dot", "to_mermaid"]


def to_mermaid(graph: AgentStepGraph, state: WorkflowState | None = None) -> str:
    """Return a Mermaid flowchart.

    Args:
        graph: what to draw.
        state: a workflow that runs it, to show where it stands.
    """
    lines = ["flowchart TD"]
    names = {agent_id: f"n{i}" for i, agent_id in enumerate(graph.agent_ids)}
    labels = _agent_labels(graph, state)
    for agent_id, name in names.items():
        text = "<br/>".join(map(_mermaid_text, labels[agent_id]))
        opening, closing = ("[[", "]]") if agent_id in graph.entry else ("[", "]")
        lines.append(f'    {name}{opening}"{text}"{closing}')
    for edge, label in _edge_labels(graph, state).items():
        arrow = "-.->" if edge.kind == "choice" else "-->"
        text = f'|"{label}"|' if label else ""
        lines.append(f"    {names[edge.source]} {arrow}{text} {names[edge.target]}")
    return "\n".join(lines) + "\n"


def to_dot(graph: AgentStepGraph, state: WorkflowState | None = None) -> str:
    """Return a DOT digraph.

    Args:
        graph: what to draw.
        state: a workflow that runs it, to show where it stands.
    """
    lines = ["digraph {", "    node [shape=box];"]
    for agent_id, agent_label in _agent_labels(graph, state).items():
        text = "\\n".join(map(_dot_text, agent_label))
        border = ", peripheries=2" if agent_id in graph.entry else ""
        lines.append(f'    "{_dot_text(agent_id)}" [label="{text}"{border}];')
    for edge, label in _edge_labels(graph, state).items():
        attributes = ["style=dashed"] if edge.kind == "choice" else []
        if label:
            attributes.append(f'label="{label}"')
        suffix = f" [{', '.join(attributes)}]" if attributes else ""
        lines.append(f'    "{_dot_text(edge.source)}" -> "{_dot_text(edge.target)}"{suffix};')
    return "\n".join([*lines, "}"]) + "\n"


def _agent_labels(graph: AgentStepGraph, state: WorkflowState | None) -> dict[str, list[str]]:
    """Return the label of each agent, in lines."""
    steps = None if state is None else state.steps_to_execution()
    labels = {}
    for agent in graph.agents:
        label = [agent.agent_id, *_join_label(agent)]
        if state is not None and steps is not None:
            runs = state.running(agent.agent_id)
            value = steps[agent.agent_id]
            if runs:
                label.append("running" if runs == 1 else f"running {runs} times")
            label.append("never" if value == INFINITE_STEPS else f"steps {value}")
        labels[agent.agent_id] = label
    return labels


def _join_label(agent: Agent) -> list[str]:
    return ["join any"] if agent.join == "any" else []


def _edge_labels(graph: AgentStepGraph, state: WorkflowState | None) -> dict[Edge, str]:
    marks = {} if state is None else state.marks()
    labels = {}
    for edge in graph.edges:
        count = marks.get((edge.source, edge.target), 0)
        labels[edge] = {0: "", 1: "1 mark"}.get(count, f"{count} marks")
    return labels


def _mermaid_text(text: str) -> str:
    for character, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, entity)
    return text


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
