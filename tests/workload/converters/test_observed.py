from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from kvflow.graph import Agent, Edge
from kvflow.workload.converters.observed import calls_before, observed_graph
from tests.workload.scenarios import workflows
from tests.workload.test_build import mispredictions

INFINITE = float("inf")


def test_calls_that_follow_each_other() -> None:
    assert calls_before([(0, 1), (1, 2), (5, 6)]) == [(), (0,), (1,)]


def test_a_fan_out_and_its_join() -> None:
    assert calls_before([(0, 1), (2, 3), (2, 6), (2, 4), (7, 8)]) == [
        (),
        (0,),
        (0,),
        (0,),
        (1, 2, 3),
    ]


def test_a_call_inside_another_does_not_wait_for_it() -> None:
    assert calls_before([(0, 9), (2, 3), (10, INFINITE), (11, 12)]) == [(), (), (0, 1), (0, 1)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=12))
def test_against_the_definition(drawn: list[tuple[int, int]]) -> None:
    spans = sorted((begin, begin + length) for begin, length in drawn)
    for (begin, _), before in zip(spans, calls_before(spans), strict=True):
        over = [n for n, (_, end) in enumerate(spans) if end <= begin]
        direct = [n for n in over if not any(spans[n][1] <= spans[k][0] for k in over)]
        assert list(before) == direct


def test_choices_and_joins() -> None:
    fan_out = [("p", ()), ("a", (0,)), ("b", (0,)), ("j", (1, 2))]
    graph = observed_graph([[*fan_out, ("x", (3,))], [*fan_out, ("y", (3,))]], {"p": 7})
    assert graph.agents[0] == Agent("p", "all", 7)
    assert {agent.agent_id: agent.join for agent in graph.agents}["j"] == "all"
    assert set(graph.edges) == {
        Edge("p", "a"),
        Edge("p", "b"),
        Edge("a", "j"),
        Edge("b", "j"),
        Edge("j", "x", "choice"),
        Edge("j", "y", "choice"),
    }
    assert graph.entry == ("p",)


def test_two_that_only_follow_each_other() -> None:
    graph = observed_graph([[("a", ()), ("b", ()), ("c", (0, 1)), ("a", (2,)), ("d", (3,))]], {})
    assert {agent.agent_id: agent.join for agent in graph.agents}["c"] == "all"
    assert set(graph.entry) == {"a", "b"}


@given(st.sampled_from(["sequence", "branch", "fan_out", "random"]), st.integers(1, 8))
def test_the_graph_of_what_was_seen_predicts_it(pattern: str, agents: int) -> None:
    made = workflows(
        agents={"pattern": pattern, "agents": agents, "branches": 2, "rounds": 2},
        load={"workflows": 5},
    )
    graph = observed_graph([[(c.agent_id, c.after) for c in w.calls] for w in made], {})
    for workflow in made:
        object.__setattr__(workflow, "graph", graph)
        assert mispredictions(workflow, random.Random(0)) == 0
