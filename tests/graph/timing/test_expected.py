import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.graph.learning import LearnedState, TransitionModel
from kvflow.graph.timing import FamilyDurations, StepTimes, expected_times
from tests.graph.builders import SOME_LIMITS, graph, graphs, play
from tests.graph.learning.playing import chain, whole
from tests.graph.learning.playing import play as play_learned


def brute_force(
    state: WorkflowState,
    duration: list[float],
    remaining: list[float],
    gap: list[float],
    gap_left: list[float],
) -> tuple[float, ...]:
    """Iterate the equations from infinity until nothing changes."""
    built, ids = state.graph, state.graph.agent_ids
    position = {agent_id: i for i, agent_id in enumerate(ids)}
    marks, used_up = state.marks(), state.used_up()
    times = [math.inf] * len(ids)
    while True:
        after = []
        for i, agent in enumerate(built.agents):
            arrivals = []
            for e, edge in enumerate(built.edges):
                if edge.target != agent.agent_id:
                    continue
                source = position[edge.source]
                if (edge.source, edge.target) in marks:
                    arrivals.append(gap_left[e])
                elif (edge.source, edge.target) in used_up:
                    arrivals.append(math.inf)
                elif state.running(edge.source):
                    arrivals.append(remaining[source] + gap[e])
                else:
                    arrivals.append(times[source] + duration[source] + gap[e])
            value = (max if agent.join == "all" else min)(arrivals) if arrivals else math.inf
            if agent.agent_id in state.entry_marks():
                value = 0.0
            after.append(0.0 if state.running(ids[i]) else value)
        if after == times:
            return tuple(times)
        times = after


def _played(built: AgentStepGraph, data: st.DataObject) -> WorkflowState:
    state = WorkflowState(built)
    for agent_id in data.draw(st.lists(st.sampled_from(built.agent_ids), max_size=15)):
        if state.running(agent_id) and data.draw(st.booleans()):
            state.finish(agent_id)
        else:
            state.start(agent_id)
    return state


@given(graphs(max_agents=7, limits=SOME_LIMITS), st.data())
def test_against_brute_force(built: AgentStepGraph, data: st.DataObject) -> None:
    state = _played(built, data)
    seconds = st.integers(0, 5).map(float)
    duration, remaining = (
        data.draw(st.lists(seconds, min_size=len(built.agents), max_size=len(built.agents)))
        for _ in range(2)
    )
    gap, gap_left = (
        data.draw(st.lists(seconds, min_size=len(built.edges), max_size=len(built.edges)))
        for _ in range(2)
    )
    times = expected_times(
        state._marking,
        state._runs.by_agent,
        duration_s=duration.__getitem__,
        remaining_s=remaining.__getitem__,
        gap_s=gap.__getitem__,
        gap_left_s=gap_left.__getitem__,
    )
    assert times == brute_force(state, duration, remaining, gap, gap_left)


@given(graphs(max_agents=8, limits=SOME_LIMITS), st.data())
def test_with_runs_of_one_second_it_is_the_steps(
    built: AgentStepGraph, data: st.DataObject
) -> None:
    state = _played(built, data)
    times = expected_times(
        state._marking,
        state._runs.by_agent,
        duration_s=lambda agent: 1.0,
        remaining_s=lambda agent: 0.0,
        gap_s=lambda edge: 0.0,
        gap_left_s=lambda edge: 0.0,
    )
    assert times == tuple(max(0.0, steps - 1) for steps in state.step_values())


TOOL = AgentStepGraph(
    [Agent("a", expected_duration_s=2.0), Agent("b", expected_duration_s=4.0), Agent("c")],
    [Edge("a", "b", expected_duration_s=10.0), Edge("b", "c")],
    ["a"],
)


def test_what_is_declared_counts_until_more_is_known() -> None:
    state, durations = WorkflowState(TOOL), FamilyDurations()
    times = StepTimes(durations)
    assert state.expected_times(times, 100.0) == (0.0, 12.0, 16.0)
    times.started("a", None, (), 100.0)
    play(state, "+a")
    assert state.expected_times(times, 101.0) == (0.0, 11.0, 15.0)
    assert state.expected_times(times, 109.0) == (0.0, 10.5, 14.5)  # overdue by a quarter
    times.finished("a", None, 102.0)
    play(state, "-a")
    assert state.expected_times(times, 104.0) == (math.inf, 8.0, 12.0)
    assert state.expected_times(times, 120.0) == (math.inf, 0.0, 4.0)
    for _ in range(2):
        durations.learn_run("b", 7.0)
    assert state.expected_times(times, 120.0) == (math.inf, 0.0, 4.0)
    durations.learn_run("b", 7.0)
    assert state.expected_times(times, 120.0) == (math.inf, 0.0, 7.0)


def test_without_any_duration_there_are_no_times() -> None:
    state = WorkflowState(graph("a b", "a>b"))
    assert state.expected_times(StepTimes(FamilyDurations()), 0.0) is None
    assert LearnedState(TransitionModel()).expected_times(StepTimes(FamilyDurations()), 0.0) is None


def test_learned_transitions_give_times_where_they_give_steps() -> None:
    model = TransitionModel()
    for _ in range(10):
        whole(model, chain("abcd"))
    durations = FamilyDurations()
    durations.learn_run("a", 1.0)
    durations.learn_run("b", 3.0)
    durations.learn_run("c", 5.0)
    durations.learn_gap("b", "c", 2.0)
    times, state = StepTimes(durations), LearnedState(model)
    play_learned(state, "+a")
    times.started("a", None, (), 50.0)
    found = state.expected_times(times, 50.5)
    assert found is not None
    # A gap that is not known is the mean of those that are.
    assert dict(zip(state.graph.agent_ids, found, strict=True)) == {
        "a": 0.0,
        "b": pytest.approx(2.5),
        "c": pytest.approx(7.5),
        "d": pytest.approx(14.5),
    }


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60))
def test_learned_times_are_finite_where_steps_are(events: list[tuple[str, bool]]) -> None:
    durations = FamilyDurations()
    durations.learn_run("a", 1.0)
    state, times = LearnedState(TransitionModel()), StepTimes(durations)
    for agent_id, starts in events:
        goes = starts or not state.running(agent_id)
        play_learned(state, f"{'+' if goes else '-'}{agent_id}")
        found = state.expected_times(times, 1.0)
        assert found is not None
        for seconds, steps in zip(found, state.step_values(), strict=True):
            assert (seconds < math.inf) == (steps < math.inf)
            assert (seconds == 0) or steps != 0
