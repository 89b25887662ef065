import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.errors import AgentNotFoundError, ConflictError, StepNotRunningError
from kvflow.graph import AgentStepGraph, EventOutcome, WorkflowState
from kvflow.graph.runs import RECENT_STEP_IDS
from tests.graph.builders import graph, graphs, play
from tests.graph.oracle import solve_state

APPLIED = EventOutcome(duplicate=False, misprediction=False)
MISPREDICTED = EventOutcome(duplicate=False, misprediction=True)
DUPLICATE = EventOutcome(duplicate=True, misprediction=False)


def snapshot(state: WorkflowState) -> tuple[object, ...]:
    """All that can be seen of a state but how often it was mispredicted."""
    return (
        state.steps_to_execution(),
        state.marks(),
        state.entry_marks(),
        {agent_id: state.running(agent_id) for agent_id in state.graph.agent_ids},
        state.version,
        state.steps_started,
    )


def test_counters() -> None:
    state = WorkflowState(graph("a b", "a>b"))
    assert (state.version, state.steps_started, state.mispredictions) == (0, 0, 0)
    assert state.start("a") == APPLIED
    assert (state.version, state.steps_started, state.mispredictions) == (1, 1, 0)
    assert state.running("a") == 1
    assert state.finish("a") == APPLIED
    assert (state.version, state.steps_started, state.mispredictions) == (2, 1, 0)
    assert state.running("a") == 0
    assert state.start("a") == MISPREDICTED
    assert (state.version, state.steps_started, state.mispredictions) == (3, 2, 1)


@pytest.mark.parametrize("step_id", [None, "s1"])
def test_an_unknown_agent_is_refused(step_id: str | None) -> None:
    state = WorkflowState(graph("a b", "a>b"))
    for report in (state.start, state.finish):
        with pytest.raises(AgentNotFoundError, match="this workflow has 'a', 'b'"):
            report("x", step_id)
    with pytest.raises(AgentNotFoundError):
        state.running("x")
    assert state.version == 0


def test_a_repeated_start_is_a_duplicate_while_it_runs_and_after() -> None:
    state = play(WorkflowState(graph("a b", "a>b b>a")), "+a:s1")
    before = snapshot(state)
    assert state.start("a", "s1") == DUPLICATE
    assert snapshot(state) == before
    play(state, "-a:s1")
    before = snapshot(state)
    assert state.start("a", "s1") == DUPLICATE
    assert state.finish("a", "s1") == DUPLICATE
    assert snapshot(state) == before
    assert state.mispredictions == 0


def test_a_repeated_finish_is_a_duplicate_while_other_runs_go_on() -> None:
    state = play(WorkflowState(graph("a b", "a>b")), "+a:s1 +a:s2 -a:s1")
    assert state.finish("a", "s1") == DUPLICATE
    assert state.running("a") == 1


def test_a_finish_without_step_id_ends_the_oldest_run() -> None:
    state = play(WorkflowState(graph("a b", "a>b")), "+a:s1 +a +a:s2 -a -a")
    assert state.running("a") == 1
    assert state.finish("a", "s1") == DUPLICATE
    assert state.finish("a", "s2") == APPLIED
    assert state.running("a") == 0


def test_parallel_runs_may_finish_in_another_order() -> None:
    state = play(WorkflowState(graph("a b", "a>b")), "+a:s1 +a:s2 +a:s3 -a:s2 -a:s3")
    assert state.running("a") == 1
    assert state.steps_to_execution() == {"a": 0, "b": 1}
    assert state.finish("a") == APPLIED
    assert state.finish("a", "s1") == DUPLICATE
    assert state.marks() == {("a", "b"): 3}


@pytest.mark.parametrize(
    ("events", "step_id", "text"),
    [
        ("", None, "agent 'a' is not running, so it cannot finish; report step_started before"),
        ("+a -a", None, "agent 'a' is not running, so it cannot finish"),
        ("", "s1", "agent 'a' is not running as step_id 's1', so it cannot finish"),
        (
            "+a:s1 +a +a:s2 +a",
            "s3",
            "agent 'a' is not running as step_id 's3'; its running steps are: "
            "'s1', 's2', 2 without step_id",
        ),
    ],
)
def test_a_finish_without_a_start_is_refused(events: str, step_id: str | None, text: str) -> None:
    state = play(WorkflowState(graph("a b", "a>b")), events)
    before = snapshot(state)
    with pytest.raises(StepNotRunningError) as caught:
        state.finish("a", step_id)
    assert str(caught.value).startswith(text)
    assert (caught.value.agent_id, caught.value.step_id) == ("a", step_id)
    assert snapshot(state) == before


def test_an_error_names_only_some_of_many_running_steps() -> None:
    state = WorkflowState(graph("a"))
    for i in range(1_000):
        state.start("a", f"s{i}")
    with pytest.raises(StepNotRunningError, match=r"'s19', 980 more$"):
        state.finish("a", "x")


@pytest.mark.parametrize("events", ["+a:s1", "+a:s1 -a:s1"])
def test_a_step_id_of_another_agent_is_a_conflict(events: str) -> None:
    state = play(WorkflowState(graph("a b", "a>b")), events)
    before = snapshot(state)
    for report in (state.start, state.finish):
        with pytest.raises(ConflictError, match="step_id 's1' is a step of agent 'a', not of 'b'"):
            report("b", "s1")
    assert snapshot(state) == before


def test_finished_step_ids_are_forgotten_in_order_beyond_the_bound() -> None:
    state = WorkflowState(graph("a", "a>a"))
    for i in range(RECENT_STEP_IDS + 1):
        play(state, f"+a:s{i} -a:s{i}")
    assert state.start("a", "s1") == DUPLICATE
    assert state.finish("a", f"s{RECENT_STEP_IDS}") == DUPLICATE
    assert state.start("a", "s0") == APPLIED


def test_a_copy_is_independent() -> None:
    shape = graph("a b c|any d", "a>b a>c b>c c>d")
    state = play(WorkflowState(shape), "+a:s1 +c")
    before = snapshot(state)
    twin = state.copy()
    assert snapshot(twin) == before
    play(twin, "-a:s1 +b:s2 +b -b +c -c +d:s3")
    assert twin.mispredictions == 2
    assert snapshot(state) == before
    assert state.mispredictions == 1
    twin = state.copy()
    play(state, "-a:s1")
    assert twin.finish("a", "s1") == APPLIED
    assert snapshot(twin) == snapshot(state)
    assert twin.marks() == {("a", "b"): 1}


def test_a_copy_has_its_own_memory_of_step_ids() -> None:
    state = play(WorkflowState(graph("a", "a>a")), "+a:s1 -a:s1")
    twin = state.copy()
    assert twin.start("a", "s1") == DUPLICATE
    play(twin, "+a:s2 -a:s2 +a:s3")
    assert state.start("a", "s2") == APPLIED
    assert state.start("a", "s3") == MISPREDICTED


@given(graphs(), st.data())
def test_steps_follow_the_events_however_often_they_are_asked_for(
    built: AgentStepGraph, data: st.DataObject
) -> None:
    state = WorkflowState(built)
    for _ in range(data.draw(st.integers(0, 20))):
        agent_id = data.draw(st.sampled_from(built.agent_ids))
        if state.running(agent_id) and data.draw(st.booleans()):
            state.finish(agent_id)
        else:
            state.start(agent_id)
        if data.draw(st.booleans()):
            assert state.steps_to_execution() == solve_state(state)
    assert state.steps_to_execution() == solve_state(state)
