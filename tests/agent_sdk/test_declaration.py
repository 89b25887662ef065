from __future__ import annotations

import pytest

from kvflow.agent_sdk.declaration import DecoratedAgents, choice, declared_graph, edge
from kvflow.errors import GraphError, InvalidInputError
from kvflow.graph import Agent, AgentStepGraph, Edge


def test_decorated_agents_make_a_graph() -> None:
    agents = DecoratedAgents()
    agents.add("planner", after=["reviewer"], entry=True)
    agents.add("coder", after="planner", fixed_prefix_tokens=100)
    agents.add("tester", after=choice("coder"))
    agents.add("writer", after=[choice("coder")])
    agents.add("reviewer", after=("tester", "writer"), join="any")
    assert agents.graph() == AgentStepGraph(
        [
            Agent("planner"),
            Agent("coder", fixed_prefix_tokens=100),
            Agent("tester"),
            Agent("writer"),
            Agent("reviewer", "any"),
        ],
        [
            Edge("reviewer", "planner"),
            Edge("planner", "coder"),
            Edge("coder", "tester", "choice"),
            Edge("coder", "writer", "choice"),
            Edge("tester", "reviewer"),
            Edge("writer", "reviewer"),
        ],
        ["planner"],
    )


def test_agents_after_nothing_are_entries_unless_told_otherwise() -> None:
    agents = DecoratedAgents()
    agents.add("a")
    agents.add("b")
    agents.add("c", after=["a"], entry=True)
    assert agents.graph().entry == ("a", "b", "c")


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("@agent(...).agent_id", {"agent_id": "two words"}),
        ("@agent(...).agent_id", {"agent_id": len}),
        ("@agent('x').join", {"join": "some"}),
        ("@agent('x').entry", {"entry": "yes"}),
        ("@agent('x').fixed_prefix_tokens", {"fixed_prefix_tokens": -1}),
        ("@agent('x').fixed_prefix_tokens", {"fixed_prefix_tokens": True}),
        ("@agent('x').fixed_prefix_tokens", {"fixed_prefix_tokens": 1.5}),
        ("@agent('x').after[1]", {"after": ["a", 3]}),
        ("@agent('x').after[1]", {"after": ["a", choice("a")]}),
        ("@agent('x').after[0]", {"after": choice("not ok")}),
    ],
)
def test_a_wrong_argument_is_named_at_once(field: str, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        DecoratedAgents().add(**{"agent_id": "x", **arguments})
    assert str(caught.value).startswith(field + ": ")


def test_a_wrong_agent_leaves_nothing_behind() -> None:
    agents = DecoratedAgents()
    with pytest.raises(InvalidInputError):
        agents.add("x", after=["a", 3])
    agents.add("x")
    with pytest.raises(InvalidInputError, match=r"^@agent\('x'\): is there already"):
        agents.add("x")


def test_an_unknown_name_is_found_when_all_are_there() -> None:
    agents = DecoratedAgents()
    agents.add("planner")
    agents.add("coder", after=["planner", "reviewr"])
    agents.add("reviewer", after=["coder"])
    with pytest.raises(InvalidInputError) as caught:
        agents.graph()
    assert str(caught.value) == (
        "@agent('coder').after[1]: no agent is called 'reviewr'; did you mean 'reviewer'?"
    )


def test_a_graph_needs_agents_and_an_entry() -> None:
    agents = DecoratedAgents()
    with pytest.raises(InvalidInputError, match=r"^agents: "):
        agents.graph()
    agents.add("a", after="b")
    agents.add("b", after="a")
    with pytest.raises(InvalidInputError, match=r"^entry: .*entry=True"):
        agents.graph()


def test_an_agent_that_can_never_run_is_named_by_its_decorator() -> None:
    agents = DecoratedAgents()
    agents.add("start")
    agents.add("worker", after=["start", "judge"])
    agents.add("judge", after=["worker"])
    with pytest.raises(GraphError) as caught:
        agents.graph()
    assert caught.value.agent_ids == ("worker", "judge")
    assert str(caught.value).startswith("@agent('worker'): ")


def test_declared_in_several_ways() -> None:
    expected = AgentStepGraph(
        [Agent("a"), Agent("b"), Agent("c", "any", fixed_prefix_tokens=5)],
        [Edge("a", "b"), Edge("a", "c", "choice"), Edge("b", "c"), Edge("c", "c")],
        ["a"],
    )
    agents = ["a", Agent("b"), {"agent_id": "c", "join": "any", "fixed_prefix_tokens": 5}]
    edges = [("a", "b"), ["a", "c", "choice"], Edge("b", "c"), {"source": "c", "target": "c"}]
    assert declared_graph(agents, edges, None) == expected
    assert declared_graph(agents, edges, ["a"]) == expected
    assert declared_graph(agents, edges, "a") == expected


@pytest.mark.parametrize(
    ("field", "agents", "edges", "entry"),
    [
        (("agents", 0, "agent_id"), ["not ok"], [], None),
        (("agents", 1, "joint"), ["a", {"agent_id": "b", "joint": "any"}], [], None),
        (("edges", 0), ["a"], ["ab"], None),
        (("edges", 0), ["a"], [("a",)], None),
        (("edges", 0, "kind"), ["a"], [("a", "a", "maybe")], None),
        (("edges", 0, "target"), ["a"], [("a", "b")], None),
        (("entry", 0), ["a"], [], ["b"]),
        (("agents",), [], [], None),
    ],
)
def test_declared_wrongly(
    field: tuple[str | int, ...], agents: list[object], edges: list[object], entry: object
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        declared_graph(agents, edges, entry)
    assert caught.value.field == field


def test_edges_say_what_is_known_of_them() -> None:
    agents = DecoratedAgents()
    agents.add("plan", expected_duration_s=2.0)
    agents.add("code", after=[edge("plan", expected_duration_s=0.5)], entry=False)
    agents.add("retry", after=[choice("code", probability=0.3, max_iterations=2)])
    assert agents.graph().agents[0].expected_duration_s == 2.0
    assert agents.graph().edges == (
        Edge("plan", "code", expected_duration_s=0.5),
        Edge("code", "retry", "choice", 0.3, max_iterations=2),
    )


def test_a_wrong_probability_is_named() -> None:
    agents = DecoratedAgents()
    with pytest.raises(InvalidInputError, match=r"@agent\('b'\)\.after\[0\]\.probability"):
        agents.add("b", after=[choice("a", probability=2.0)])
    with pytest.raises(InvalidInputError, match=r"@agent\('b'\)\.expected_duration_s"):
        agents.add("b", expected_duration_s=-1.0)
