import math
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvflow.graph import AgentStepGraph, WorkflowState
from kvflow.graph.marking import MAX_MARKS_PER_EDGE
from tests.graph.builders import SOME_LIMITS, graph, graphs, play
from tests.graph.naive_marking import NaiveMarking
from tests.graph.oracle import solve_state

DIAMOND = ("a b c d", "a>b a>c b>d c>d")


@pytest.mark.parametrize(
    ("shape", "events", "marks", "mispredictions"),
    [
        pytest.param(("a b c", "a>b a>c"), "+a -a", {"ab": 1, "ac": 1}, 0, id="fan-out"),
        pytest.param(("a b c", "a>b a>c"), "+a -a +b", {"ac": 1}, 0, id="fan-out, one taken"),
        pytest.param(("a b", "a>b"), "+a +a -a -a", {"ab": 2}, 1, id="each finish puts a mark"),
        pytest.param(("a b", "a>b"), "+a -a +b +b", {}, 1, id="each start takes its own"),
        pytest.param(("a b", "a>b"), "+b -b", {}, 1, id="a start without mark takes none"),
        pytest.param(DIAMOND, "+a -a +b -b", {"ac": 1, "bd": 1}, 0, id="join all, one mark"),
        pytest.param(
            DIAMOND,
            "+a -a +b -b +d",
            {},
            1,
            id="join all, too few marks, takes those there are",
        ),
        pytest.param(DIAMOND, "+a -a +b -b +c -c +d", {}, 0, id="join all takes one from each"),
        pytest.param(
            ("a b c d", "b>d c>d", "a b c"),
            "+b -b +b -b +c -c +d",
            {"bd": 1},
            1,
            id="join all takes no more than one from each",
        ),
        pytest.param(
            ("b c d|any", "b>d c>d", "b c"), "+c -c +b -b +d", {"bd": 1}, 0, id="any: oldest, c"
        ),
        pytest.param(
            ("b c d|any", "b>d c>d", "b c"), "+b -b +c -c +d", {"cd": 1}, 0, id="any: oldest, b"
        ),
        pytest.param(
            ("a b", "a>b b>a", "a b"),
            "+a -a +b",
            {"ab": 1},
            0,
            id="the entry mark goes before the mark of an edge",
        ),
        pytest.param(
            ("a b", "a>b b>a", "a b"), "+a -a +b +b", {}, 0, id="the entry mark is used once"
        ),
        pytest.param(
            ("a b c d", "a?b a?c a>d"),
            "+a -a +b",
            {"ad": 1},
            0,
            id="a choice withdraws its sibling, not an always edge",
        ),
        pytest.param(
            ("a b c d", "a?b a?c a>d"),
            "+a -a +d",
            {"ab": 1, "ac": 1},
            0,
            id="an always edge withdraws nothing",
        ),
        pytest.param(
            ("a b c", "a?b a?c b>a"),
            "+a -a +b -b +a -a +c",
            {},
            0,
            id="a later visit may take the other branch",
        ),
        pytest.param(
            ("a|any b c", "a?b a?c a>a"),
            "+a -a +a -a +c",
            {"ab": 1, "ac": 1, "aa": 1},
            0,
            id="only the marks of the same finish are withdrawn",
        ),
        pytest.param(
            ("a|any b c", "a?b a?c a>a"),
            "+a -a +a -a +b +c",
            {"aa": 1},
            0,
            id="two finishes, one branch each",
        ),
        pytest.param(
            ("a b c d e", "a?c b?c a?d b?e", "a b"),
            "+a -a +b -b +c",
            {},
            0,
            id="join all over two choices withdraws the siblings of both",
        ),
        pytest.param(
            ("a b c|any d e", "a?c b?c a?d b?e", "a b"),
            "+a -a +b -b +c",
            {"bc": 1, "be": 1},
            0,
            id="join any over two choices withdraws the siblings of the one taken",
        ),
        pytest.param(("a", "a>a"), "+a -a +a -a", {"aa": 1}, 0, id="an edge to itself"),
    ],
)
def test_value_table(
    shape: tuple[str, ...], events: str, marks: dict[str, int], mispredictions: int
) -> None:
    state = play(WorkflowState(graph(*shape)), events)
    assert state.marks() == {(edge[0], edge[1]): count for edge, count in marks.items()}
    assert state.mispredictions == mispredictions


@pytest.mark.parametrize(
    ("shape", "in_order", "as_reported"),
    [
        pytest.param(("a b", "a>b"), "+a -a +b", "+a +b -a", id="start before finish"),
        pytest.param(
            ("a b c", "a>b b>c c>a"),
            "+a -a +b -b +c -c",
            "+a +b +c -c -b -a",
            id="nested calls round a loop",
        ),
        pytest.param(
            DIAMOND, "+a -a +b -b +c -c +d", "+a -a +b -b +c +d -c", id="join all, half marked"
        ),
        pytest.param(
            DIAMOND, "+a -a +b +c -b -c +d", "+a -a +b +c +d -c -b", id="join all, no mark yet"
        ),
        pytest.param(
            ("a b|any c", "a>b c>b", "a c"), "+a +c -a +b -c", "+a +c +b -a -c", id="join any"
        ),
        pytest.param(
            ("a b c", "a?b a?c"), "+a -a +c", "+a +c -a", id="the finish marks the branch taken"
        ),
        pytest.param(
            ("a b", "a>b"), "+a +a -a -a +b +b", "+a +a +b +b -a -a", id="two runs, two starts"
        ),
        pytest.param(("a", "a>a"), "+a -a +a", "+a +a -a", id="an edge to itself"),
    ],
)
def test_an_early_start_leaves_the_marking_of_events_in_order(
    shape: tuple[str, ...], in_order: str, as_reported: str
) -> None:
    expected = play(WorkflowState(graph(*shape)), in_order)
    state = play(WorkflowState(graph(*shape)), as_reported)
    assert state.marks() == expected.marks()
    assert state.steps_to_execution() == expected.steps_to_execution()
    assert state.mispredictions > expected.mispredictions


@pytest.mark.parametrize(
    ("shape", "events", "marks"),
    [
        pytest.param(("a b", "a>b"), "+b +a -a", {"ab": 1}, id="no predecessor was running"),
        pytest.param(("a b", "a>b"), "+a +b +b -a +a -a", {"ab": 1}, id="one run, one early start"),
        pytest.param(
            ("a b c", "a?b a?c"), "+a +b +c -a +a -a", {"ab": 1, "ac": 1}, id="the branch not taken"
        ),
        pytest.param(
            ("a b c x", "a?b a?c x>c", "a x"),
            "+a -a +x +c +b +a -a -x",
            {"ab": 1, "ac": 1, "xc": 1},
            id="a start that takes a choice withdraws what another waits for",
        ),
    ],
)
def test_an_early_start_takes_no_more_than_it_waited_for(
    shape: tuple[str, ...], events: str, marks: dict[str, int]
) -> None:
    state = play(WorkflowState(graph(*shape)), events)
    assert state.marks() == {(edge[0], edge[1]): count for edge, count in marks.items()}


@pytest.mark.parametrize(
    ("shape", "events", "marks", "entry_marks"),
    [
        pytest.param(
            ("a b c d", "a>b b>c c>d d>a"), "+a -a +c -c", {"cd": 1}, "", id="what had been next"
        ),
        pytest.param(("a b", "a>b b>a"), "+b", {}, "", id="an entry mark"),
        pytest.param(
            ("a b c", "a>b b>c c>a", "a b"),
            "+a -a +c",
            {"ab": 1},
            "",
            id="an entry mark goes first",
        ),
        pytest.param(
            ("a b c", "a>b b>c c>b", "a b"), "+c", {}, "b", id="the first of two entry marks"
        ),
        pytest.param(("a b c d", "a?b a?c c>d"), "+a -a +d", {}, "", id="all branches of a choice"),
        pytest.param(
            ("a b c d x", "a>b a>c a>d d>x"), "+a -a +b -b +x", {"ad": 1}, "", id="one of a fan-out"
        ),
        pytest.param(
            ("a b c d x", "a>c b>d d>x", "a b"),
            "+b -b +a -a +x",
            {"ac": 1},
            "",
            id="what had been next for the longest time",
        ),
        pytest.param(
            ("a b c d e x", "a>e b>e c>d e>x", "a b c"),
            "+a -a +c -c +b -b +x",
            {"ae": 1, "be": 1},
            "",
            id="a join could start when it had its last mark",
        ),
        pytest.param(
            ("a b e x", "a>e b>e e>x", "a b"),
            "+a -a +a -a +b -b +x",
            {"ae": 1},
            "",
            id="no more of a join than one start takes",
        ),
        pytest.param(
            ("a b e|any x", "a>e b>e e>x", "a b"),
            "+b -b +a -a +x",
            {"ae": 1},
            "",
            id="join any, the oldest",
        ),
        pytest.param(
            ("a b", "a>b"), "+a -a +a -a", {"ab": 2}, "", id="nothing for an agent without in-edges"
        ),
        pytest.param(
            ("a b c d", "a>b a>d b>c"),
            "+a -a +b +c",
            {"ad": 1},
            "",
            id="nothing for an early start",
        ),
        pytest.param(
            ("a b d", "a>d b>d", "a b"),
            "+a -a +b +d +d -b",
            {},
            "",
            id="a second start leaves what an early one waits with",
        ),
    ],
)
def test_a_wrong_turn_takes_back_what_a_predicted_start_would_have_taken(
    shape: tuple[str, ...], events: str, marks: dict[str, int], entry_marks: str
) -> None:
    state = play(WorkflowState(graph(*shape)), events)
    assert state.marks() == {(edge[0], edge[1]): count for edge, count in marks.items()}
    assert state.entry_marks() == set(entry_marks)


def ring(agents: int, *, reverse: bool = False) -> AgentStepGraph:
    ids = [f"a{i}" for i in range(agents)]
    pairs = zip(ids, [*ids[1:], ids[0]], strict=True)
    edges = [f"{b}>{a}" if reverse else f"{a}>{b}" for a, b in pairs]
    return graph(" ".join(ids), " ".join(edges))


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 9))
def test_after_any_wrong_turns_on_a_ring_one_agent_is_next(
    turns: list[int], last_turn: int
) -> None:
    state = WorkflowState(ring(10))
    for agent in [*turns, last_turn]:
        play(state, f"+a{agent} -a{agent}")
        assert sum(state.marks().values()) + len(state.entry_marks()) == 1
    expected = {f"a{(last_turn + distance) % 10}": distance for distance in range(1, 11)}
    assert state.steps_to_execution() == expected


def test_every_start_against_the_graph_is_a_misprediction_for_ever() -> None:
    state = WorkflowState(ring(10, reverse=True))
    play(state, "+a0 -a0")
    for turn in range(1, 300):
        agent_id = f"a{turn % 10}"
        assert state.steps_to_execution()[agent_id] > 1
        assert play(state, f"+{agent_id} -{agent_id}").mispredictions == turn


def test_a_wrong_turn_costs_other_branches_no_more_than_a_start_each() -> None:
    """Three rings in one workflow. The third turns wrong while the marks of the others are older:
    each that has lost its mark takes back another, up to the one that is wrong."""
    rings = [[f"{ring}{i}" for i in range(5)] for ring in "abc"]
    edges = [f"{ring[i - 1]}>{ring[i]}" for ring in rings for i in range(5)]
    agents = [agent_id for ring in rings for agent_id in ring]
    state = WorkflowState(graph(" ".join(agents), " ".join(edges), "a0 b0 c0"))
    play(state, "+a0 -a0 +b0 -b0 +c0 -c0 +c3 -c3")
    assert state.mispredictions == 1
    play(state, "+a1 -a1 +b1 -b1 +c4 -c4")
    assert state.mispredictions == 3
    for turn in range(2, 12):
        play(
            state,
            " ".join(
                f"+{ring}{(turn + ahead) % 5} -{ring}{(turn + ahead) % 5}"
                for ring, ahead in (("a", 0), ("b", 0), ("c", 3))
            ),
        )
    assert state.mispredictions == 3


class NeverTakesBack(NaiveMarking):
    """The rules of a graph that is right."""

    def take_wrong_turn(self, agent_id: str) -> None:
        raise AssertionError(f"{agent_id} was not to start")


@given(graphs(max_agents=6), st.data())
def test_without_wrong_turns_nothing_is_taken_back(
    built: AgentStepGraph, data: st.DataObject
) -> None:
    """Early starts included."""
    state, model = WorkflowState(built), NeverTakesBack(built)
    for agent_id in data.draw(st.lists(st.sampled_from(built.agent_ids), max_size=40)):
        if model.running[agent_id] and data.draw(st.booleans()):
            state.finish(agent_id)
            model.finish(agent_id)
        elif not model.would_be_a_wrong_turn(agent_id):
            assert state.start(agent_id).misprediction == model.start(agent_id)
        marks = Counter((mark.edge.source, mark.edge.target) for mark in model.marks)
        assert state.marks() == marks
        assert state.entry_marks() == model.entry_marks


def test_an_early_start_whose_mark_another_one_takes_is_forgotten_and_takes_nothing_back() -> None:
    """Both count on the run of ``c``, which goes one way; in order, the second is a wrong turn."""
    early = play(WorkflowState(graph("a b c", "c?b c?c c>a", "c")), "+c +b +c -c")
    assert early.marks() == {("c", "a"): 1}
    in_order = play(WorkflowState(graph("a b c", "c?b c?c c>a", "c")), "+c +b -c +c")
    assert in_order.marks() == {}


def test_marks_on_an_edge_are_bounded() -> None:
    state = WorkflowState(graph("a b c", "a?b a?c"))
    for _ in range(MAX_MARKS_PER_EDGE):
        play(state, "+a -a")
    full = {("a", "b"): MAX_MARKS_PER_EDGE, ("a", "c"): MAX_MARKS_PER_EDGE}
    for _ in range(3):
        assert state.marks() == full
        assert state.steps_to_execution()["b"] == 1
        play(state, "+a -a")
    for _ in range(MAX_MARKS_PER_EDGE):
        play(state, "+b -b")
    assert state.marks() == {}


def test_a_start_beyond_the_bound_on_marks_is_a_misprediction() -> None:
    state = WorkflowState(graph("a b c", "a>b a>c"))
    for _ in range(MAX_MARKS_PER_EDGE + 3):
        play(state, "+a -a")
    before = state.mispredictions
    for _ in range(MAX_MARKS_PER_EDGE):
        play(state, "+b -b")
    assert state.marks() == {("a", "c"): MAX_MARKS_PER_EDGE}
    assert state.mispredictions == before
    play(state, "+b -b")
    assert state.mispredictions == before + 1


class MarkingMachine(RuleBasedStateMachine):
    """Any events in any order, against the plain model."""

    state: WorkflowState
    model: NaiveMarking

    @initialize(built=graphs(max_agents=6) | graphs(max_agents=4, limits=SOME_LIMITS))
    def begin(self, built: AgentStepGraph) -> None:
        self.state = WorkflowState(built)
        self.model = NaiveMarking(built)

    @rule(pick=st.integers(0, 5))
    def start(self, pick: int) -> None:
        agent_id = self.state.graph.agent_ids[pick % len(self.state.graph.agent_ids)]
        outcome = self.state.start(agent_id)
        assert outcome.misprediction == self.model.start(agent_id)
        assert not outcome.duplicate

    @precondition(lambda self: 1 in self.state.step_values())
    @rule(pick=st.integers(0, 5))
    def start_one_that_looks_imminent(self, pick: int) -> None:
        steps = self.state.steps_to_execution()
        imminent = [agent_id for agent_id, value in steps.items() if value == 1]
        agent_id = imminent[pick % len(imminent)]
        assert self.state.start(agent_id).misprediction == self.model.start(agent_id)

    @precondition(lambda self: self.model.running.total())
    @rule(pick=st.integers(0, 5))
    def finish(self, pick: int) -> None:
        running = sorted(+self.model.running)
        agent_id = running[pick % len(running)]
        self.state.finish(agent_id)
        self.model.finish(agent_id)

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.state = self.state.copy()

    @invariant()
    def agrees(self) -> None:
        marks = Counter((mark.edge.source, mark.edge.target) for mark in self.model.marks)
        assert self.state.marks() == marks
        assert self.state.entry_marks() == self.model.entry_marks
        assert self.state.used_up() == {(e.source, e.target) for e in self.model.used_up()}
        assert self.state.mispredictions == self.model.mispredictions
        assert self.state.steps_to_execution() == solve_state(self.state)


TestMarkingMachine = MarkingMachine.TestCase
TestMarkingMachine.settings = settings(max_examples=150, stateful_step_count=40)


@given(graphs(max_agents=6) | graphs(max_agents=6, kinds=("always",)), st.data())
def test_a_start_reported_just_before_a_finish_makes_no_difference(
    built: AgentStepGraph, data: st.DataObject
) -> None:
    """But for a wrong turn, in either order: it takes back what is there when it is reported. And
    but for a choice that an earlier start waits for as well: whoever takes it first has it."""
    agent_ids = st.sampled_from(built.agent_ids)
    state, model = WorkflowState(built), NaiveMarking(built)
    for agent_id in data.draw(st.lists(agent_ids, max_size=20)):
        if state.running(agent_id) and data.draw(st.booleans()):
            state.finish(agent_id)
            model.finish(agent_id)
        else:
            state.start(agent_id)
            model.start(agent_id)
    running = [agent_id for agent_id in built.agent_ids if state.running(agent_id)]
    if not running:
        return
    assume(not +model.early or all(edge.kind == "always" for edge in built.edges))
    finishing, starting = data.draw(st.sampled_from(running)), data.draw(agent_ids)
    assume(not model.would_be_a_wrong_turn(starting))
    model.finish(finishing)
    assume(not model.would_be_a_wrong_turn(starting))
    in_order, swapped = state, state.copy()
    play(in_order, f"-{finishing} +{starting}")
    play(swapped, f"+{starting} -{finishing}")
    assert swapped.marks() == in_order.marks()
    assert swapped.entry_marks() == in_order.entry_marks()
    assert swapped.steps_to_execution() == in_order.steps_to_execution()


def test_a_loop_leads_on_only_as_often_as_it_may_be_gone_round() -> None:
    state = WorkflowState(graph("write check|any done|any", "write>check check?write*2 check?done"))
    play(state, "+write -write +check -check +write -write +check -check")
    assert state.used_up() == frozenset()
    assert state.steps_to_execution() == {"write": 1, "check": 2, "done": 1}
    play(state, "+write -write")
    assert state.used_up() == {("check", "write")}
    assert state.steps_to_execution() == {"write": math.inf, "check": 1, "done": 2}
    play(state, "+check -check")
    assert state.marks() == {("check", "done"): 1}
    assert state.mispredictions == 0
    play(state, "+write")
    assert state.mispredictions == 1


def test_a_copy_counts_on_its_own() -> None:
    state = WorkflowState(graph("a|any b", "a>b b>a*1"))
    play(state, "+a -a +b -b")
    twin = state.copy()
    play(twin, "+a")
    assert (twin.used_up(), state.used_up()) == ({("b", "a")}, frozenset())
    assert state.steps_to_execution()["a"] == 1
