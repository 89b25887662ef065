import math

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.graph.marking import Marking
from kvflow.graph.steps import compute_steps
from tests.graph.builders import declarations, graph, graphs, play
from tests.graph.oracle import solve

NEVER = math.inf


@pytest.mark.parametrize(
    ("shape", "events", "steps"),
    [
        pytest.param(("a",), "", [1], id="an agent that may start now has 1"),
        pytest.param(("a",), "+a", [0], id="0 while it runs"),
        pytest.param(("a",), "+a -a", [NEVER], id="no second run without an in-edge"),
        pytest.param(("a b c", "a>b b>c"), "", [1, 2, 3], id="chain"),
        pytest.param(("a b c", "a>b b>c"), "+a", [0, 1, 2], id="chain, first runs"),
        pytest.param(("a b c", "a>b b>c"), "+a -a", [NEVER, 1, 2], id="chain, first has run"),
        pytest.param(("a b c", "a>b b>c"), "+a -a +b", [NEVER, 0, 1], id="chain, second runs"),
        pytest.param(
            ("a b c", "a>b b>c"), "+a -a +b -b +c -c", [NEVER] * 3, id="chain, all have run"
        ),
        pytest.param(("a b c d", "a>b a>c b>d c>d"), "", [1, 2, 2, 3], id="join all"),
        pytest.param(
            ("a b c d", "a>b b>c a>d c>d"), "", [1, 2, 3, 4], id="join all waits for the longest"
        ),
        pytest.param(
            ("a b c d|any", "a>b b>c a>d c>d"), "", [1, 2, 3, 2], id="join any takes the shortest"
        ),
        pytest.param(
            ("a b c d", "a>b a>c b>d c>d"),
            "+a -a +b",
            [NEVER, 0, 1, 2],
            id="join all, one branch runs, the other has not started",
        ),
        pytest.param(
            ("a b c d", "a>b a>c b>d c>d"),
            "+a -a +b -b",
            [NEVER, NEVER, 1, 2],
            id="join all, half marked",
        ),
        pytest.param(
            ("a b c d", "a>b a>c b>d c>d"),
            "+a -a +b -b +c -c",
            [NEVER, NEVER, NEVER, 1],
            id="join all, fully marked",
        ),
        pytest.param(
            ("a b c d|any", "a>b a>c b>d c>d"),
            "+a -a +b -b +d",
            [NEVER, NEVER, 1, 0],
            id="join any runs on the first mark",
        ),
        pytest.param(("a|any b c", "a>b b>c c>a"), "", [1, 2, 3], id="loop"),
        pytest.param(("a b c", "a>b b>c c>a"), "+a", [0, 1, 2], id="loop, first runs"),
        pytest.param(
            ("a b c", "a>b b>c c>a"), "+a -a", [3, 1, 2], id="loop, distance through the back edge"
        ),
        pytest.param(("a b c", "a>b b>c c>a"), "+a -a +b", [2, 0, 1], id="loop, second runs"),
        pytest.param(
            ("a b|any c d", "a>b b>c c?b c?d"), "+a -a +b -b", [NEVER, 2, 1, 2], id="inner loop"
        ),
        pytest.param(("a b c", "a?b a?c"), "+a -a", [NEVER, 1, 1], id="both choices are imminent"),
        pytest.param(
            ("a b c", "a?b a?c"), "+a -a +b", [NEVER, 0, NEVER], id="the choice not taken is not"
        ),
        pytest.param(("a b c", "a>b a>c"), "+a -a +b", [NEVER, 0, 1], id="fan-out keeps both"),
        pytest.param(("a b", "a>b b>a"), "+a +a -a", [0, 1], id="parallel runs, one is left"),
        pytest.param(("a b", "a>b b>a"), "+a +a -a -a", [2, 1], id="parallel runs, both finished"),
        pytest.param(
            ("a b c", "a>c b>c", "a b"), "+a", [0, 1, 2], id="an unused entry mark counts 1"
        ),
        pytest.param(("a b", "a>b b>a", "a b"), "+a", [0, 1], id="entry mark, at most 1"),
        pytest.param(("a", "a>a"), "+a -a", [1], id="an edge to itself"),
    ],
)
def test_value_table(shape: tuple[str, ...], events: str, steps: list[float]) -> None:
    state = play(WorkflowState(graph(*shape)), events)
    assert list(state.steps_to_execution().values()) == steps
    assert list(state.steps_to_execution()) == list(state.graph.agent_ids)


def test_finite_values_are_ints() -> None:
    state = play(WorkflowState(graph("a b c", "a>b b>c c>b".replace("c>b", ""))), "+a -a")
    assert [type(value) for value in state.step_values()] == [float, int, int]


@given(declarations(), st.data())
def test_any_marking_gives_the_values_of_the_oracle(
    declaration: tuple[list[Agent], list[Edge], list[str]], data: st.DataObject
) -> None:
    """The pass does not rely on the marking being one that events can lead to."""
    agents, edges, entry = declaration
    accepted = AgentStepGraph(agents, edges, [agent.agent_id for agent in agents])
    position = accepted.adjacency.position
    running = data.draw(st.sets(st.sampled_from(sorted(position))))
    marked = data.draw(st.sets(st.sampled_from(range(len(edges))))) if edges else set()
    marking = Marking(
        accepted.adjacency, frozenset(position[agent_id] for agent_id in entry), runs={}
    )
    for edge in marked:
        marking.add_mark(edge)
    values = compute_steps(marking, [position[agent_id] for agent_id in running])
    oracle = solve(
        agents, edges, running, entry, {(edges[i].source, edges[i].target) for i in marked}
    )
    assert values == tuple(oracle.values())


@given(graphs(joins=("any",), max_agents=12))
def test_joins_any_alone_are_shortest_paths(built: AgentStepGraph) -> None:
    digraph = _digraph(built)
    digraph.add_edges_from(("start", agent_id) for agent_id in built.entry)
    lengths = networkx.single_source_shortest_path_length(digraph, "start")
    assert WorkflowState(built).steps_to_execution() == {
        agent_id: lengths[agent_id] for agent_id in built.agent_ids
    }


@given(graphs(joins=("all",), max_agents=12))
def test_joins_all_alone_are_longest_paths(built: AgentStepGraph) -> None:
    digraph = _digraph(built)
    # The entry mark makes up for the in-edges of an entry agent.
    digraph.remove_edges_from([edge for edge in digraph.edges if edge[1] in built.entry])
    expected = {
        agent_id: networkx.dag_longest_path_length(
            digraph.subgraph(networkx.ancestors(digraph, agent_id) | {agent_id})
        )
        + 1
        for agent_id in built.agent_ids
    }
    assert WorkflowState(built).steps_to_execution() == expected


def _digraph(built: AgentStepGraph) -> "networkx.DiGraph[str]":
    digraph: networkx.DiGraph[str] = networkx.DiGraph()
    digraph.add_nodes_from(built.agent_ids)
    digraph.add_edges_from((edge.source, edge.target) for edge in built.edges)
    return digraph


def test_a_chain_of_10_000_agents_needs_no_recursion() -> None:
    ids = [f"a{i}" for i in range(10_000)]
    chain = AgentStepGraph(
        [Agent(agent_id) for agent_id in ids],
        [Edge(a, b) for a, b in zip(ids, [*ids[1:], ids[0]], strict=True)],
        [ids[0]],
    )
    state = WorkflowState(chain)
    assert list(state.step_values()) == list(range(1, 10_001))
    play(state, "+a0 -a0")
    assert list(state.step_values()) == [10_000, *range(1, 10_000)]


def test_a_hub_whose_marks_all_wait_for_another_agent_takes_one_pass() -> None:
    joins = [f"j{i}" for i in range(3_000)]
    state = WorkflowState(
        AgentStepGraph(
            [Agent("hub"), Agent("slow"), *map(Agent, joins)],
            [Edge(source, join) for source in ("hub", "slow") for join in joins],
            ["hub", "slow"],
        )
    )
    play(state, "+hub -hub")
    assert set(state.step_values()) == {NEVER, 1, 2}
    play(state, "+slow")
    assert state.step_values() == (NEVER, 0, *[1] * 3_000)
