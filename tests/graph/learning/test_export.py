import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.graph import AgentStepGraph, Edge, WorkflowState
from kvflow.graph.learning import LearnedFamilies, TransitionModel, declarable_graph, family_of
from tests.graph.learning.playing import chain, whole


def test_what_was_declared_comes_out_again() -> None:
    model, rng = TransitionModel(), random.Random(1)
    for _ in range(60):
        again = "+write -write +check -check" if rng.random() < 0.3 else ""
        whole(model, f"+plan -plan +write -write +check -check {again} +a +b -b -a +send -send")
    graph = declarable_graph(model)
    assert graph is not None
    assert graph.entry == ("plan",)
    kinds = {(edge.source, edge.target): edge for edge in graph.edges}
    assert {ends for ends, edge in kinds.items() if edge.kind == "always"} == {
        ("plan", "write"),
        ("write", "check"),
        ("a", "send"),
        ("b", "send"),
    }
    assert kinds["check", "write"].probability == pytest.approx(0.23, abs=0.12)
    joins = {agent.agent_id: agent.join for agent in graph.agents}
    assert joins["send"] == "all"
    assert joins["write"] == "any"


def test_durations_are_exported() -> None:
    model = TransitionModel()
    for _ in range(5):
        whole(model, chain("ab"))
    graph = declarable_graph(model, {"a": 1.5}.get, lambda source, target: 0.5)
    assert graph is not None
    assert graph.agents[0].expected_duration_s == 1.5
    assert graph.edges == (Edge("a", "b", expected_duration_s=0.5),)


def test_nothing_known_is_no_graph() -> None:
    assert declarable_graph(TransitionModel()) is None


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=25), max_size=8)
)
def test_whatever_was_seen_can_be_declared(workflows: list[list[tuple[str, bool]]]) -> None:
    model = TransitionModel()
    for events in workflows:
        running, words = list[str](), list[str]()
        for agent_id, starts in events:
            if starts or agent_id not in running:
                words.append(f"+{agent_id}")
                running.append(agent_id)
            else:
                words.append(f"-{agent_id}")
                running.remove(agent_id)
        whole(model, " ".join(words))
    graph = declarable_graph(model)
    if graph is None:
        assert not any(workflows)
        return
    # It was checked: every agent can run, and probabilities are right.
    assert AgentStepGraph(graph.agents, graph.edges, graph.entry) == graph
    assert max(WorkflowState(graph).step_values()) < float("inf")


def test_families_are_kept_apart_and_bounded() -> None:
    families = LearnedFamilies(most=2)
    first = families.model(("", "c1", "x"))
    whole(first, chain("ab"))
    assert families.model(("", "c2", "x")) is not first
    assert families.model(("", "c1", "x")) is first
    families.model(("n", "c1", "x"))
    assert families.get(("", "c2", "x")) is None
    assert families.get(("", "c1", "x")) is first
    assert families.forget(("", "c1", "x"))
    assert not families.forget(("", "c1", "x"))
    assert len(families) == 1


def test_a_family_is_the_name_or_the_first_agent() -> None:
    assert family_of("review", "planner") == "review"
    assert family_of(None, "planner") == "from:planner"
    assert family_of("", "planner") == "from:planner"
