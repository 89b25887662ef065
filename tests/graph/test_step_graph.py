import networkx
import pytest
from hypothesis import given

from kvflow.errors import GraphError, InvalidInputError
from kvflow.graph import INFINITE_STEPS, Agent, AgentStepGraph, Edge, GraphPool
from tests.graph.builders import declarations, graph
from tests.graph.oracle import solve

A, B, C = Agent("a"), Agent("b"), Agent("c")
AB, BC = Edge("a", "b"), Edge("b", "c")


@pytest.mark.parametrize(
    ("agents", "edges", "entry", "field", "text"),
    [
        ([], [], ["a"], ("agents",), "is empty"),
        ([A, Agent("")], [], ["a"], ("agents", 1, "agent_id"), "non-empty string"),
        ([A, B, Agent("a", "any")], [AB], ["a"], ("agents", 2, "agent_id"), "agents[0]"),
        ([A, Agent("b", "some")], [AB], ["a"], ("agents", 1, "join"), "'all' or 'any'"),  # type: ignore[arg-type]
        (
            [Agent("a", fixed_prefix_tokens=-1)],
            [],
            ["a"],
            ("agents", 0, "fixed_prefix_tokens"),
            "0 or more",
        ),
        ([A, B], [AB, Edge("x", "b")], ["a"], ("edges", 1, "source"), "declares 'a', 'b'"),
        ([A, B, C], [AB, BC, Edge("c", "x")], ["a"], ("edges", 2, "target"), "agent_id 'x'"),
        ([A, B], [Edge("a", "b", "maybe")], ["a"], ("edges", 0, "kind"), "'always' or 'choice'"),  # type: ignore[arg-type]
        ([A, B], [AB, AB], ["a"], ("edges", 1), "edges[0]"),
        ([A, B], [AB, Edge("a", "b", "choice")], ["a"], ("edges", 1), "edges[0]"),
        (
            [Agent("a", expected_duration_s=-1.0)],
            [],
            ["a"],
            ("agents", 0, "expected_duration_s"),
            "0 or more",
        ),
        (
            [A, B],
            [Edge("a", "b", expected_duration_s=float("nan"))],
            ["a"],
            ("edges", 0, "expected_duration_s"),
            "seconds",
        ),
        (
            [A, B],
            [Edge("a", "b", "choice", probability=0.0)],
            ["a"],
            ("edges", 0, "probability"),
            "never taken",
        ),
        (
            [A, B],
            [Edge("a", "b", "choice", probability=1.5)],
            ["a"],
            ("edges", 0, "probability"),
            "at most 1",
        ),
        (
            [A, B],
            [Edge("a", "b", probability=0.5)],
            ["a"],
            ("edges", 0, "probability"),
            "make it a 'choice'",
        ),
        (
            [A, B],
            [Edge("a", "a", "choice", 0.7), Edge("a", "b", "choice", 0.4)],
            ["a"],
            ("edges", 1, "probability"),
            "add up to 1.1",
        ),
        (
            [A, B],
            [Edge("a", "b", max_iterations=0)],
            ["a"],
            ("edges", 0, "max_iterations"),
            "1 or more",
        ),
        ([A, B], [AB], [], ("entry",), "is empty"),
        ([A, B], [AB], ["a", "x"], ("entry", 1), "agent_id 'x'"),
        ([A, B], [AB], ["a", "b", "a"], ("entry", 2), "entry[0]"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(
    agents: list[Agent],
    edges: list[Edge],
    entry: list[str],
    field: tuple[str | int, ...],
    text: str,
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        AgentStepGraph(agents, edges, entry)
    assert caught.value.field == field
    assert text in caught.value.problem
    assert not isinstance(caught.value, GraphError)


@pytest.mark.parametrize(
    ("agents", "edges", "dead", "problem"),
    [
        pytest.param(
            "a b c",
            "a>b b>c c>b",
            ["b", "c"],
            "'b', 'c' can never run from the start: 'b' waits (join 'all') on a loop's back edge, "
            "for 'c', which comes after it (give 'b' join 'any', or add it to entry); "
            "'c' can only come after these",
            id="all waits on a back edge",
        ),
        pytest.param(
            "a b",
            "a>b b>b",
            ["b"],
            "'b' can never run from the start: 'b' waits (join 'all') on a loop's back edge, "
            "for itself (give 'b' join 'any', or add it to entry)",
            id="all waits on itself",
        ),
        pytest.param(
            "a b c d",
            "a>b c>d d>c",
            ["c", "d"],
            "'c', 'd' can never run from the start: 'c' is not reachable from the entry (add an "
            "edge that leads to it, or add it to entry); 'd' is not reachable from the entry (add "
            "an edge that leads to it, or add it to entry)",
            id="not reachable",
        ),
        pytest.param(
            "a b c",
            "a>b c>b",
            ["b", "c"],
            "'b', 'c' can never run from the start: 'b' waits (join 'all') for 'c' (or give 'b' "
            "join 'any'); 'c' is not reachable from the entry (add an edge that leads to it, or "
            "add it to entry)",
            id="all waits for an unreachable one",
        ),
        pytest.param(
            "a b c d e",
            "a>b a>c b>d c>e d>c e>b",
            ["b", "c", "d", "e"],
            "'b', 'c', 'd', 'e' can never run from the start: 'b' waits (join 'all') on a loop's "
            "back edge, for 'e', which comes after it (give 'b' join 'any', or add it to entry); "
            "'c' waits (join 'all') on a loop's back edge, for 'd', which comes after it (give 'c' "
            "join 'any', or add it to entry); 'd', 'e' can only come after these",
            id="two joins wait for each other",
        ),
    ],
)
def test_agents_that_can_never_run_are_named_with_the_remedy(
    agents: str, edges: str, dead: list[str], problem: str
) -> None:
    with pytest.raises(GraphError) as caught:
        graph(agents, edges, "a")
    assert list(caught.value.agent_ids) == dead
    assert caught.value.problem == problem
    index = caught.value.field[1]
    assert isinstance(index, int)
    assert agents.split()[index] in dead


def test_a_long_list_of_dead_agents_is_cut_in_the_text_and_whole_in_the_error() -> None:
    agents = [Agent("start"), *(Agent(f"lost{i}") for i in range(5_000))]
    with pytest.raises(GraphError) as caught:
        AgentStepGraph(agents, [], ["start"])
    assert len(caught.value.agent_ids) == 5_000
    assert "and 4950 more can never run" in caught.value.problem
    assert len(caught.value.problem) < 10_000


@given(declarations())
def test_a_graph_is_refused_when_the_oracle_finds_agents_without_steps_and_the_remedies_help(
    declaration: tuple[list[Agent], list[Edge], list[str]],
) -> None:
    agents, edges, entry = declaration
    steps = solve(agents, edges, running=(), entry_marks=entry, marked=())
    dead = [agent_id for agent_id, value in steps.items() if value == INFINITE_STEPS]
    error = _refusal(agents, edges, entry)
    assert ([] if error is None else list(error.agent_ids)) == dead
    for _ in agents:
        if error is None:
            return
        agents, entry = _apply_first_remedy(error, agents, edges, entry)
        error = _refusal(agents, edges, entry)
    assert error is None, "following the remedies one by one leads to an accepted graph"


def _refusal(agents: list[Agent], edges: list[Edge], entry: list[str]) -> GraphError | None:
    try:
        AgentStepGraph(agents, edges, entry)
    except GraphError as error:
        return error
    return None


def _apply_first_remedy(
    error: GraphError, agents: list[Agent], edges: list[Edge], entry: list[str]
) -> tuple[list[Agent], list[str]]:
    index = error.field[1]
    assert isinstance(index, int)
    agent_id = agents[index].agent_id
    if f"{agent_id!r} is not reachable" in error.problem:
        assert agent_id not in _reachable(agents, edges, entry)
        return agents, [*entry, agent_id]
    assert f"give {agent_id!r} join 'any'" in error.problem
    return [*agents[:index], Agent(agent_id, "any"), *agents[index + 1 :]], entry


def _reachable(agents: list[Agent], edges: list[Edge], entry: list[str]) -> set[str]:
    digraph = networkx.DiGraph([(edge.source, edge.target) for edge in edges])
    digraph.add_nodes_from(agent.agent_id for agent in agents)
    return set(entry).union(*(networkx.descendants(digraph, agent_id) for agent_id in entry))


def test_equality_is_by_content_whatever_the_order() -> None:
    first = AgentStepGraph([A, B], [AB, Edge("b", "a")], ["a", "b"])
    second = AgentStepGraph([B, A], [Edge("b", "a"), AB], ["b", "a"])
    assert first == second
    assert hash(first) == hash(second)
    assert second.agent_ids == ("b", "a")
    for other in (
        AgentStepGraph([A, Agent("b", "any")], [AB, Edge("b", "a")], ["a", "b"]),
        AgentStepGraph([A, Agent("b", fixed_prefix_tokens=9)], [AB, Edge("b", "a")], ["a", "b"]),
        AgentStepGraph([A, B], [Edge("a", "b", "choice"), Edge("b", "a")], ["a", "b"]),
        AgentStepGraph([A, B], [AB, Edge("b", "a")], ["a"]),
        "a graph",
    ):
        assert first != other


def test_a_graph_cannot_be_changed() -> None:
    built = graph("a b", "a>b")
    with pytest.raises(AttributeError):
        built.entry = ("b",)  # type: ignore[misc]


def test_the_pool_stores_equal_declarations_once_and_keeps_none_alive() -> None:
    pool = GraphPool()
    first = pool.graph([A, B], [AB], ["a"])
    assert pool.graph([Agent("a"), Agent("b")], [Edge("a", "b")], ["a"]) is first
    other = pool.graph([B, A], [AB], ["a"])
    assert other is not first
    assert other.agent_ids == ("b", "a")
    assert len(pool) == 2
    del other
    assert len(pool) == 1
    with pytest.raises(InvalidInputError):
        pool.graph([A], [], [])
    assert len(pool) == 1
