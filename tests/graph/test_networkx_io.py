import io
import json
import subprocess
import sys
from typing import Any

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.errors import EnvironmentProblemError, GraphError, InvalidInputError
from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.graph.networkx_io import from_networkx, to_networkx
from tests.graph.builders import declarations, graph, graphs, play

RICH = AgentStepGraph(
    [
        Agent("a", fixed_prefix_tokens=700),
        Agent("b", "any", 0),
        Agent("c", expected_duration_s=2.5),
    ],
    [
        Edge("b", "b", "choice", 0.25, max_iterations=3),
        Edge("a", "b", expected_duration_s=1.5),
        Edge("b", "c", "choice", 0.5),
    ],
    ["a", "b"],
)


def test_nodes_and_edges_carry_all_attributes() -> None:
    exported: Any = to_networkx(RICH)
    assert dict(exported.nodes(data=True)) == {
        "a": {"join": "all", "entry": True, "fixed_prefix_tokens": 700},
        "b": {"join": "any", "entry": True, "fixed_prefix_tokens": 0},
        "c": {"join": "all", "entry": False, "expected_duration_s": 2.5},
    }
    assert exported.edges["b", "b"] == {"kind": "choice", "probability": 0.25, "max_iterations": 3}
    assert exported.edges["a", "b"] == {"kind": "always", "expected_duration_s": 1.5}
    assert {(a, b): kind for a, b, kind in exported.edges(data="kind")} == {
        ("a", "b"): "always",
        ("b", "b"): "choice",
        ("b", "c"): "choice",
    }


@given(graphs(), st.data())
def test_round_trip(built: AgentStepGraph, data: st.DataObject) -> None:
    tokens = st.one_of(st.none(), st.integers(0, 10_000))
    built = AgentStepGraph(
        [Agent(a.agent_id, a.join, data.draw(tokens)) for a in built.agents],
        built.edges,
        built.entry,
    )
    returned = from_networkx(to_networkx(built))
    assert returned == built
    assert returned.agents == built.agents


@pytest.mark.parametrize("state", [None, play(WorkflowState(RICH), "+a -a +b")])
def test_round_trip_through_files(state: WorkflowState | None) -> None:
    exported: Any = to_networkx(RICH, state)
    formats: list[tuple[Any, Any]] = [
        (networkx.write_graphml, networkx.read_graphml),
        (networkx.write_gexf, networkx.read_gexf),
    ]
    for write, read in formats:
        file = io.BytesIO()
        write(exported, file)
        file.seek(0)
        assert from_networkx(read(file)) == RICH
    text = json.dumps(networkx.node_link_data(exported, edges="edges"))
    imported: Any = networkx.node_link_graph(json.loads(text), edges="edges")
    assert from_networkx(imported) == RICH


def test_a_state_adds_where_the_workflow_stands() -> None:
    state = play(WorkflowState(graph("a b c d", "a?b a?c c>d", "a d")), "+a -a +a -a +b")
    exported: Any = to_networkx(state.graph, state)
    assert dict(exported.nodes(data="running")) == {"a": 0, "b": 1, "c": 0, "d": 0}
    assert [n for n, held in exported.nodes(data="entry_mark") if held] == ["d"]
    assert {
        node: attributes["steps_to_execution"]
        for node, attributes in exported.nodes(data=True)
        if "steps_to_execution" in attributes
    } == {"b": 0, "c": 1, "d": 1}
    assert {(a, b): marks for a, b, marks in exported.edges(data="marks")} == {
        ("a", "b"): 1,
        ("a", "c"): 1,
        ("c", "d"): 0,
    }


def test_a_bare_graph_has_the_defaults_and_starts_where_nothing_leads() -> None:
    imported = from_networkx(networkx.DiGraph([("a", "b"), ("b", "c"), ("d", "c")]))
    assert imported == graph("a b c d", "a>b b>c d>c", "a d")


@pytest.mark.parametrize(
    ("digraph", "field"),
    [
        (networkx.Graph([("a", "b")]), ("edges",)),
        (networkx.MultiDiGraph([("a", "b")]), ("edges",)),
        (networkx.DiGraph([(1, 2)]), ("agents", 0, "agent_id")),
        (networkx.DiGraph([("a", "b"), ("b", "a")]), ("entry",)),
        (networkx.DiGraph([("a", "b", {"kind": "maybe"})]), ("edges", 0, "kind")),
    ],
)
def test_what_is_not_an_agent_step_graph_is_refused(
    digraph: "networkx.DiGraph[str]", field: tuple[str | int, ...]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        from_networkx(digraph)
    assert caught.value.field == field


@given(declarations())
def test_import_accepts_just_what_the_graph_accepts(
    declaration: tuple[list[Agent], list[Edge], list[str]],
) -> None:
    agents, edges, entry = declaration
    digraph: networkx.DiGraph[str] = networkx.DiGraph()
    for agent in agents:
        digraph.add_node(agent.agent_id, join=agent.join, entry=agent.agent_id in entry)
    for edge in edges:
        digraph.add_edge(edge.source, edge.target, kind=edge.kind)
    try:
        built = AgentStepGraph(agents, edges, entry)
    except GraphError:
        with pytest.raises(GraphError):
            from_networkx(digraph)
    else:
        assert from_networkx(digraph) == built


def test_the_graph_package_does_not_import_networkx() -> None:
    code = "import sys, kvflow.graph, kvflow.graph.networkx_io; sys.exit('networkx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_networkx_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(EnvironmentProblemError, match=r"kvflow\[graph\]"):
        to_networkx(RICH)
