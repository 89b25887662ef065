import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.errors import AgentNotFoundError, ConflictError, StepNotRunningError
from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.graph.learning import LearnedState, TransitionModel
from kvflow.graph.learning.base import MAX_AGENTS, MAX_SUCCESSORS
from kvflow.graph.learning.score import LOST_BELOW, USED_FROM, HeldOutScore
from tests.graph.builders import play as play_declared
from tests.graph.learning.playing import chain, play, whole


def test_a_cycle_has_the_steps_of_the_declared_graph() -> None:
    ids = "abcde"
    edges = [Edge(a, b) for a, b in zip(ids, ids[1:] + ids[0], strict=True)]
    graph = AgentStepGraph([Agent(one, "any") for one in ids], edges, ["a"])
    model = TransitionModel()
    whole(model, chain(ids * 6))
    assert model.score.used
    learned, declared = LearnedState(model), WorkflowState(graph)
    for word in ["+a", "-a", "+b", "-b", "+c"]:
        play(learned, word)
        play_declared(declared, word)
        assert learned.steps_to_execution() == declared.steps_to_execution()


def test_a_fan_out_is_told_from_a_choice() -> None:
    model = TransitionModel()
    for number in range(30):
        whole(model, f"+p -p +v +w +x -w -x -v +j -j {chain('yz'[number % 2])}")
    state = play(LearnedState(model), "+p -p +v")
    assert state.steps_to_execution() == {
        "j": 1,
        "p": math.inf,
        "v": 0,
        "w": 1,
        "x": 1,
        "y": 2,
        "z": 2,
    }
    play(state, "+w -w +x -x -v +j -j")
    assert [state.steps_to_execution()[one] for one in "yz"] == [1, 1]
    play(state, "+y")
    assert [state.steps_to_execution()[one] for one in "yz"] == [0, math.inf]


def test_nothing_is_used_before_it_has_proved_itself() -> None:
    model = TransitionModel()
    used = []
    for _ in range(8):
        used.append(whole(model, chain("abcd")).predicts)
    assert used == sorted(used)
    assert (used[0], used[-1]) == (False, True)


def test_an_order_that_is_none_is_never_used() -> None:
    """Negative control: 12 agents, any after any."""
    rng, model = random.Random(0), TransitionModel()
    for _ in range(60):
        whole(model, chain("".join(rng.choice("abcdefghijkl") for _ in range(20))))
        assert not model.score.used
    assert model.score.value < LOST_BELOW


def test_what_changes_is_learned_anew() -> None:
    model = TransitionModel()
    for _ in range(40):
        whole(model, chain("abcd"))
    for _ in range(120):
        whole(model, chain("adcb"))
    assert model.score.used
    assert play(LearnedState(model), "+a -a").steps_to_execution() == {
        **{"a": math.inf, "b": 3, "c": 2, "d": 1}
    }


def test_an_order_that_is_lost_is_no_longer_used() -> None:
    rng, model = random.Random(0), TransitionModel()
    for _ in range(40):
        whole(model, chain("abcdefghijkl"))
    assert model.score.used
    for _ in range(20):
        whole(model, chain("".join(rng.choice("abcdefghijkl") for _ in range(20))))
    assert not model.score.used


def test_a_wrong_turn_is_a_misprediction_and_does_not_make_all_imminent() -> None:
    model = TransitionModel()
    for _ in range(20):
        whole(model, chain("abcd"))
    state = play(LearnedState(model), "+a -a")
    outcome = state.start("c")
    assert outcome.misprediction
    assert state.mispredictions == 1
    assert state.steps_to_execution() == {"a": math.inf, "b": math.inf, "c": 0, "d": 1}


def test_events_are_those_of_a_declared_workflow() -> None:
    state = LearnedState(TransitionModel())
    assert not state.start("a", "s1").duplicate
    assert state.start("a", "s1").duplicate
    with pytest.raises(ConflictError):
        state.start("b", "s1")
    with pytest.raises(AgentNotFoundError):
        state.finish("c")
    with pytest.raises(StepNotRunningError):
        state.finish("a", "s2")
    assert not state.finish("a", "s1").duplicate
    assert state.finish("a", "s1").duplicate
    with pytest.raises(StepNotRunningError):
        state.finish("a")
    assert (state.version, state.steps_started, state.running("a")) == (2, 1, 0)


def test_a_copy_leaves_the_state_and_the_model_alone() -> None:
    model = TransitionModel()
    whole(model, chain("abc"))
    state = play(LearnedState(model), "+a -a")
    before, revision = state.steps_to_execution(), model.revision
    twin = state.copy()
    twin.start("b", "s1")
    twin.start("new")
    twin.finish("b", "s1")
    assert twin.steps_to_execution()["new"] == 0
    assert (state.steps_to_execution(), state.version) == (before, 2)
    assert model.revision == revision
    assert state.take_lessons() == []


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60))
def test_steps_are_well_formed_whatever_happens(events: list[tuple[str, bool]]) -> None:
    state = LearnedState(TransitionModel())
    for agent_id, starts in events:
        if starts or not state.running(agent_id):
            play(state, f"+{agent_id}")
        else:
            play(state, f"-{agent_id}")
        steps = state.steps_to_execution()
        assert state.graph.agent_ids == tuple(steps)
        assert state.step_values() == tuple(steps.values())
        finite = sorted({value for value in steps.values() if value < math.inf})
        assert {one for one, value in steps.items() if value == 0} == {
            one for one in "abcdef" if state.running(one)
        }
        # Whatever is n steps away comes after something n - 1 away, or after a finish.
        assert finite == list(range(int(finite[0]), int(finite[-1]) + 1)) if finite else True


def test_memory_is_bounded() -> None:
    model = TransitionModel()
    for number in range(2 * MAX_AGENTS):
        whole(model, f"+hub -hub +made-up-{number} -made-up-{number} +hub -hub")
    assert len(model.agent_ids) <= MAX_AGENTS
    assert "hub" in model
    counts = model._agents["hub"]
    assert len(counts.followers) <= MAX_SUCCESSORS
    assert not model.score.used


def test_the_score_has_hysteresis() -> None:
    score = HeldOutScore()
    for _ in range(5):
        score.add(1.0)
    assert not score.used
    score.add(1.0)
    assert score.used
    while score.value >= USED_FROM:
        score.add(0.0)
    assert score.used
    while score.value >= LOST_BELOW:
        score.add(0.0)
    assert not score.used
    while score.value < USED_FROM - 0.05:
        score.add(1.0)
    assert not score.used


def test_the_graph_shown_keeps_up_with_what_is_learned() -> None:
    model = TransitionModel()
    state = LearnedState(model)
    for word in chain("abcabcabc").split():
        play(state, word)
        shown = state.graph
    assert {(edge.source, edge.target) for edge in shown.edges} == {
        *(("a", "b"), ("b", "c"), ("c", "a"))
    }
    assert shown.entry == ("a",)
