from __future__ import annotations

import random
import tracemalloc
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.graph import WorkflowState
from kvflow.workload import Scenario, WorkloadWorkflow, build_workload
from tests.workload.scenarios import PATTERNS, scenario, scenarios, workflows


def mispredictions(workflow: WorkloadWorkflow, rng: random.Random | None = None) -> int:
    """Replay the calls in an order they could have; ``rng`` lets those side by side mingle."""
    assert workflow.graph is not None
    state = WorkflowState(workflow.graph)
    waiting = dict(enumerate(workflow.calls))
    running: list[int] = []
    over: set[int] = set()
    while waiting or running:
        ready = [n for n, call in waiting.items() if over.issuperset(call.after)]
        if ready and (rng is None or not running or rng.random() < 0.5):
            call = ready[0] if rng is None else rng.choice(ready)
            state.start(waiting.pop(call).agent_id, str(call))
            running.append(call)
        else:
            call = running.pop(0 if rng is None else rng.randrange(len(running)))
            state.finish(workflow.calls[call].agent_id, str(call))
            over.add(call)
    return state.mispredictions


@given(scenarios(), st.integers(0, 100))
def test_right_hints_are_right(given_scenario: Scenario, seed: int) -> None:
    for workflow in build_workload(given_scenario).workflows():
        assert mispredictions(workflow, random.Random(seed)) == 0


@given(scenarios(wrong=0.3))
def test_what_holds_for_every_workload(given_scenario: Scenario) -> None:
    workload = build_workload(given_scenario)
    made = list(workload.workflows())
    assert made == list(workload.workflows())
    assert len({workflow.workflow_id for workflow in made}) == len(made)
    lengths: dict[str, int] = {}
    for workflow in made:
        assert workflow.graph is not None
        declared = {agent.agent_id: agent.fixed_prefix_tokens for agent in workflow.graph.agents}
        for position, call in enumerate(workflow.calls):
            assert all(before < position for before in call.after)
            assert (call.after == ()) == (position == 0)
            assert declared[call.agent_id] == call.fixed_tokens
            for piece in (*call.prompt, call.answer):
                assert lengths.setdefault(piece.key, piece.tokens) == piece.tokens > 0
    arrivals = [workflow.arrival_s for workflow in made]
    if workload.concurrency is None:
        assert all(a is not None and b is not None and a < b for a, b in pairwise(arrivals))
    else:
        assert set(arrivals) == {None}


@pytest.mark.parametrize(
    ("pattern", "agents", "expected"),
    [
        ("sequence", 3, [["t0-a0"], ["t0-a1"], ["t0-a2"]] * 2),
        # Groups of a planner, two workers and a joiner; of the rest, a smaller group.
        (
            "fan_out",
            7,
            [
                ["t0-a0"],
                ["t0-a1", "t0-a2"],
                ["t0-a3"],
                ["t0-a4"],
                ["t0-a5"],
                ["t0-a6"],
            ]
            * 2,
        ),
    ],
)
def test_patterns_without_chance(pattern: str, agents: int, expected: list[list[str]]) -> None:
    (workflow, _) = workflows(
        agents={"pattern": pattern, "agents": agents, "branches": 2, "rounds": 2},
        load={"workflows": 2},
    )
    stages: dict[tuple[int, ...], list[str]] = {}
    for call in workflow.calls:
        stages.setdefault(call.after, []).append(call.agent_id)
    assert list(stages.values()) == expected


def test_a_branch_takes_one_agent_of_each_stage() -> None:
    made = workflows(
        agents={"pattern": "branch", "agents": 6, "branches": 2, "rounds": 1},
        load={"workflows": 40},
    )
    seen = [[call.agent_id for call in workflow.calls] for workflow in made]
    for stage, possible in enumerate([{"t0-a0"}, {"t0-a1", "t0-a2"}, {"t0-a3", "t0-a4"}]):
        assert {agents[stage] for agents in seen} == possible
    assert {agents[3] for agents in seen} == {"t0-a5"}


def test_a_loop_goes_back_as_often_as_asked() -> None:
    made = workflows(
        agents={"pattern": "loop", "agents": 6, "rounds": 1, "loop_probability": 0.3},
        load={"workflows": 300},
    )
    turns = [
        (int(before.agent_id[-1]), int(after.agent_id[-1]))
        for workflow in made
        for before, after in pairwise(workflow.calls)
        if before.agent_id != "t0-a0"
    ]
    assert {abs(before - after) for before, after in turns} == {1}
    back = sum(after < before for before, after in turns) / len(turns)
    # The workflow's end, which is a turn forward too, is not among them.
    assert back == pytest.approx(0.3, abs=0.06)


def test_a_loop_that_only_goes_back_comes_to_an_end() -> None:
    (workflow, _) = workflows(
        agents={"pattern": "loop", "agents": 3, "rounds": 2, "loop_probability": 0.999},
        load={"workflows": 2},
    )
    assert len(workflow.calls) == 60


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_transition_in_five_is_mispredicted(pattern: str) -> None:
    made = workflows(
        agents={"pattern": pattern, "agents": 10, "branches": 3, "rounds": 2},
        load={"workflows": 150},
        hints={"wrong": 0.2},
    )
    transitions = sum(len(workflow.calls) - 1 for workflow in made)
    share = sum(map(mispredictions, made)) / transitions
    assert share == pytest.approx(0.2, abs=0.035)


@pytest.mark.parametrize(
    ("pattern", "kind"),
    # A loop goes both ways, so that its reverse says the same.
    [(p, k) for p in PATTERNS for k in ("reversed", "shuffled") if (p, k) != ("loop", "reversed")],
)
def test_wrong_graphs_mislead(pattern: str, kind: str) -> None:
    sections = {
        "agents": {"pattern": pattern, "agents": 10, "branches": 3, "rounds": 1},
        "load": {"workflows": 20},
    }
    made = workflows(**sections, hints={"graph": kind})
    assert [w.calls for w in made] == [w.calls for w in workflows(**sections)]
    transitions = sum(len(workflow.calls) - 1 for workflow in made)
    least = 0.9 if pattern == "sequence" and kind == "reversed" else 0.1
    assert sum(map(mispredictions, made)) >= least * transitions


def test_no_hints() -> None:
    assert {w.graph for w in workflows(load={"workflows": 3}, hints={"graph": "none"})} == {None}


def test_a_change_of_one_setting_leaves_the_rest_alone() -> None:
    agents = {"pattern": "random", "agents": 6, "branches": 3, "rounds": 2}
    load = {"workflows": 6, "clients": 3, "teams": 4}
    made = workflows(agents=agents, load=load)

    def order(of: list[WorkloadWorkflow]) -> list[object]:
        return [(w.client_id, [call.agent_id for call in w.calls]) for w in of]

    assert order(workflows(agents=agents | {"pause_s": 2.0}, load=load)) == order(made)
    assert order(workflows(agents=agents, load=load | {"rate_per_s": 2.0})) == order(made)
    assert order(workflows(agents=agents, load=load, prompts={"chat": True})) == order(made)
    assert order(workflows(agents=agents, load=load, seed=1)) != order(made)


def test_a_chat_goes_on_from_its_last_answer() -> None:
    (workflow, _) = workflows(
        agents={"agents": 2, "rounds": 3}, load={"workflows": 2}, prompts={"chat": True}
    )
    first, _, second, _, third, _ = workflow.calls
    assert second.prompt[:-1] == (*first.prompt, first.answer)
    assert third.prompt[:-1] == (*second.prompt, second.answer)
    assert {call.fixed_pieces for call in workflow.calls} == {1}


def test_what_prompts_share() -> None:
    made = workflows(
        agents={"agents": 3, "rounds": 1},
        prompts={"fixed_tokens": [100, 300], "shared_tokens": 100},
        load={"workflows": 40, "clients": 2, "teams": 2},
    )
    firsts = {(w.client_id, call.prompt[0]) for w in made for call in w.calls}
    # All agents of a client begin alike, those of different clients do not.
    assert len(firsts) == len({client for client, _ in firsts}) == 2
    lengths = {call.agent_id: call.fixed_tokens for w in made for call in w.calls}
    assert sorted(lengths.values()) == [100, 100, 200, 200, 300, 300]
    own = {call.prompt[1].key for w in made for call in w.calls if call.fixed_pieces == 2}
    assert len(own) == 2 * 2 * 2


def test_popular_teams() -> None:
    made = workflows(
        agents={"agents": 1, "rounds": 1}, load={"workflows": 600, "teams": 4, "zipf": 1.0}
    )
    counts = [sum(w.calls[0].agent_id == f"t{team}-a0" for w in made) for team in range(4)]
    whole = sum(1 / rank for rank in range(1, 5))
    for rank, count in enumerate(counts, start=1):
        assert count / 600 == pytest.approx(1 / rank / whole, abs=0.06)


def test_times() -> None:
    made = workflows(
        agents={"agents": 5, "rounds": 2, "pause_s": 2.0}, load={"workflows": 200, "rate_per_s": 4}
    )
    pauses = [call.pause_s for w in made for call in w.calls if call.after]
    assert sum(pauses) / len(pauses) == pytest.approx(2.0, rel=0.1)
    assert {w.calls[0].pause_s for w in made} == {0.0}
    last = made[-1].arrival_s
    assert last is not None
    assert last / 200 == pytest.approx(0.25, rel=0.2)


def test_warm_up_is_the_first_rounds_of_the_first_workflow() -> None:
    agents = {"pattern": "fan_out", "agents": 5, "branches": 3, "rounds": 3}
    given_scenario = scenario(agents=agents, warm_up_rounds=2)
    assert build_workload(given_scenario).warm_up_calls == 10
    looping = scenario(agents={"pattern": "loop", "agents": 4, "rounds": 3}, warm_up_rounds=1)
    workload = build_workload(looping)
    calls = next(workload.workflows()).calls
    assert [calls[workload.warm_up_calls - 1].agent_id, calls[workload.warm_up_calls].agent_id] == [
        "t0-a3",
        "t0-a0",
    ]


def test_a_million_workflows_are_made_one_by_one() -> None:
    workload = build_workload(
        scenario(
            agents={"pattern": "random", "agents": 3, "branches": 2, "rounds": 1},
            load={"workflows": 1_000_000, "teams": 3},
        )
    )
    made = workload.workflows()

    def peak(count: int) -> int:
        tracemalloc.reset_peak()
        for _ in islice(made, count):
            pass
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        first = peak(200)
        assert peak(2000) < first + 100_000
    finally:
        tracemalloc.stop()


def test_agents_may_have_tools_of_their_own_length() -> None:
    made = workflows(
        agents={"agents": 4, "rounds": 2, "pause_s": (1.0, 100.0)}, load={"workflows": 300}
    )
    pauses: dict[str, list[float]] = {}
    for workflow in made:
        for call in workflow.calls:
            if call.after:
                pauses.setdefault(call.agent_id, []).append(call.pause_s)
    means = sorted(sum(values) / len(values) for values in pauses.values())
    assert means[-1] > 2 * means[0]
    assert means[0] > 0.5
    assert means[-1] < 150
