"""Short notation for graphs, and hypothesis strategies that draw them."""

from __future__ import annotations

from hypothesis import strategies as st

from kvflow.errors import GraphError
from kvflow.graph import Agent, AgentStepGraph, Edge, EdgeKind, Join, WorkflowState


def graph(agents: str, edges: str = "", entry: str = "") -> AgentStepGraph:
    """Build a graph, e.g. ``graph("a b c|any", "a>b a?c c>a*3", "a")``: ``>`` always, ``?`` choice,
    ``*3`` at most three times."""
    declared = []
    for word in agents.split():
        agent_id, _, join = word.partition("|")
        declared.append(Agent(agent_id, join="any" if join == "any" else "all"))
    connections = []
    for word in edges.split():
        kind: EdgeKind = "choice" if "?" in word else "always"
        ends, _, limit = word.partition("*")
        source, target = ends.replace("?", ">").split(">")
        most = int(limit) if limit else None
        connections.append(Edge(source, target, kind, max_iterations=most))
    return AgentStepGraph(declared, connections, entry.split() or [declared[0].agent_id])


def play(state: WorkflowState, events: str) -> WorkflowState:
    """Apply events, e.g. ``"+a -a +b:s1"``: start a, finish a, start b as step s1."""
    for word in events.split():
        agent_id, _, step_id = word[1:].partition(":")
        apply = state.start if word[0] == "+" else state.finish
        apply(agent_id, step_id or None)
    return state


SOME_LIMITS = (None, None, 1, 2)


@st.composite
def declarations(
    draw: st.DrawFn,
    max_agents: int = 8,
    joins: tuple[Join, ...] = ("all", "any"),
    kinds: tuple[EdgeKind, ...] = ("always", "choice"),
    limits: tuple[int | None, ...] = (None,),
) -> tuple[list[Agent], list[Edge], list[str]]:
    """Draw agents, edges and entry; some agents may never be able to run."""
    count = draw(st.integers(1, max_agents))
    ids = [f"a{i}" for i in range(count)]
    agents = [Agent(agent_id, join=draw(st.sampled_from(joins))) for agent_id in ids]
    pairs = st.tuples(st.sampled_from(ids), st.sampled_from(ids))
    edges = [
        Edge(
            source,
            target,
            draw(st.sampled_from(kinds)),
            max_iterations=draw(st.sampled_from(limits)),
        )
        for source, target in draw(st.lists(pairs, unique=True, max_size=3 * count))
    ]
    entry = draw(st.lists(st.sampled_from(ids), unique=True, min_size=1, max_size=3))
    return agents, edges, entry


@st.composite
def graphs(
    draw: st.DrawFn,
    max_agents: int = 8,
    joins: tuple[Join, ...] = ("all", "any"),
    kinds: tuple[EdgeKind, ...] = ("always", "choice"),
    limits: tuple[int | None, ...] = (None,),
) -> AgentStepGraph:
    """Draw graphs that are accepted; agents that could never run are made entry agents."""
    agents, edges, entry = draw(declarations(max_agents, joins, kinds, limits))
    while True:
        try:
            return AgentStepGraph(agents, edges, entry)
        except GraphError as error:
            entry.append(error.agent_ids[0])
