"""What the first rank plans, with the real tree and no host pool: nothing is copied here."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kvflow.prefetch import Link
from kvflow.sglang_plugin import foresight as foresight_module
from kvflow.sglang_plugin.control import (
    CancelFetch,
    ControlMessage,
    FetchAhead,
    LeaseLost,
    LoadAhead,
    ServiceUpdate,
    WorkflowUpdate,
)
from kvflow.sglang_plugin.foresight import (
    FETCH_AGAIN_S,
    MAX_CHUNK_S,
    MIN_CHUNK_TOKENS,
    REPLAN_S,
    Foresight,
)
from kvflow.sglang_plugin.metrics import NoMetrics
from kvflow.sglang_plugin.transfers import FetchUnderWay, LoadUnderWay, TokenPath, TransfersAhead
from kvflow.sglang_plugin.weights import NEAR_STEPS
from tests.sglang_plugin.caches import build_cache, finished_request, insert, insert_host

W1 = ("c", "w1")
W2 = ("c", "w2")
MAX_LOADING = 8192


class Clock:
    """In place of the module ``time``."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class FreeSlots(TransfersAhead):
    """Books of copies under way, as kept with a host pool."""

    slots = True

    def slot_free(self) -> bool:
        return self.slots


class SeenMetrics(NoMetrics):
    def __init__(self) -> None:
        self.outcomes: list[tuple[str, int]] = []

    def prefetch_outcome(self, outcome: Any, tokens: int) -> None:
        self.outcomes.append((outcome, tokens))


class Planning:
    """A cache, what is planned for it, and the time."""

    def __init__(self, clock: Clock, capacity: int = 4000) -> None:
        self.clock = clock
        self.cache = build_cache("kvflow", capacity)
        self.cache.tree_core.set_hicache_enabled()
        self.transfers = FreeSlots(self.cache)
        self.cache.kvflow_transfers = self.transfers
        self.metrics = SeenMetrics()
        self.cache.report_to(self.metrics)
        self.foresight = Foresight(self.cache, MAX_LOADING)
        self._versions = 0

    def steps(
        self,
        workflow: str = "w1",
        choices: Mapping[str, Mapping[str, float]] | None = None,
        **values: float,
    ) -> None:
        self._versions += 1
        update = WorkflowUpdate(("c", workflow), self._versions, values, {}, choices=choices)
        self.cache.apply_control(ServiceUpdate((update,)))

    def owner(self, agent: str) -> Any:
        return self.cache.kvflow_weights.prefix_owner("c", agent, (None, None))

    def on_host(self, agent: str, tokens: Sequence[int]) -> int:
        """The agent's prefix is in host memory alone; the number of its owner."""
        insert_host(self.cache, tokens)
        return self.called(agent, tokens)

    def called(self, agent: str, tokens: Sequence[int]) -> int:
        metadata = {"workflow_id": "w1", "agent_id": agent, "client_id": "c"}
        self.cache._learn(finished_request(tokens, (), metadata))
        return int(self.owner(agent).number)

    def in_storage(self, agent: str, tokens: Sequence[int]) -> int:
        """The agent's prefix has left the tree, and may be in the storage tier."""
        number = int(self.owner(agent).number)
        self.cache.kvflow_paths[number] = TokenPath(array("q", tokens), None, None)
        return number

    def host_room(self, tokens: int) -> None:
        pool = SimpleNamespace(available_size=lambda: tokens)
        self.cache.cache_controller = SimpleNamespace(mem_pool_host=pool)

    def fetching(self, number: int, tokens: Sequence[int]) -> None:
        path = TokenPath(array("q", tokens), None, None)
        self.transfers.fetches[number] = FetchUnderWay(
            handle=object(), path=path, start=0, cause=(W1, number), start_s=0.0
        )

    def plan(
        self, waiting: Sequence[Any] = (), arriving: Sequence[Any] = ()
    ) -> list[ControlMessage]:
        return self.foresight.messages(waiting, arriving)

    def plan_later(self) -> list[ControlMessage]:
        self.clock.now_s += REPLAN_S
        return self.plan()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(foresight_module, "time", fake)
    return fake


@pytest.fixture
def planning(clock: Clock) -> Planning:
    return Planning(clock)


def prompt(number: int, length: int = 100) -> list[int]:
    return [number * 10_000 + i for i in range(length)]


def arriving(tokens: Sequence[int], extra_key: str | None = None) -> Any:
    """A request as the tokenizer sends it."""
    return SimpleNamespace(input_ids=list(tokens), extra_key=extra_key)


class TestLoads:
    def test_the_next_agents_prefix_is_loaded(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        number = planning.on_host("b", prompt(0))
        assert planning.plan() == [LoadAhead(number, 100, W1)]

    @pytest.mark.parametrize("steps", [0, 2, NEAR_STEPS, NEAR_STEPS + 1, math.inf])
    def test_nobody_elses(self, planning: Planning, steps: float) -> None:
        planning.steps(a=0, b=steps)
        planning.on_host("b", prompt(0))
        assert planning.plan() == []

    def test_nothing_that_is_on_the_device(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        insert(planning.cache, prompt(0))
        planning.called("b", prompt(0))
        assert planning.plan() == []

    def test_only_for_agents_whose_workflow_predicts_well(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        for number in range(3):
            planning.cache.kvflow_weights.called(W1, f"stranger{number}")
        assert planning.plan() == []
        for caller in "bababababa":
            planning.cache.kvflow_weights.called(W1, caller)
        assert planning.plan_later() != []

    def test_the_workflow_that_needs_it_first_is_the_cause(self, planning: Planning) -> None:
        planning.steps("w1", a=0, b=3)
        planning.steps("w2", a=0, b=1)
        number = planning.on_host("b", prompt(0))
        assert planning.plan() == [LoadAhead(number, 100, W2)]

    def test_the_nearest_agent_first_and_one_load_at_a_time(self, planning: Planning) -> None:
        planning.steps("w1", a=0, b=1, c=2)
        planning.on_host("c", prompt(1))
        number = planning.on_host("b", prompt(0))
        assert planning.plan() == [LoadAhead(number, 100, W1)]

    @pytest.mark.parametrize("likely", ["b", "c"])
    def test_the_likelier_one_of_a_choice_first(self, planning: Planning, likely: str) -> None:
        """As declared; by what was observed where that says more."""
        unlikely = "c" if likely == "b" else "b"
        declared = {"a": {likely: 0.9, unlikely: 0.1}}
        planning.steps(choices=declared, a=0, b=1, c=1)
        numbers = {"b": planning.on_host("b", prompt(0)), "c": planning.on_host("c", prompt(1))}
        assert planning.plan() == [LoadAhead(numbers[likely], 100, W1)]
        planning.steps(choices=declared, a=1, b=1, c=1)  # between two steps, too
        assert planning.plan_later() == [LoadAhead(numbers[likely], 100, W1)]
        for _ in range(40):
            planning.steps(a=1, **{likely: 1, unlikely: 0})
            planning.steps(choices=declared, a=0, b=1, c=1)
        assert planning.plan_later() == [LoadAhead(numbers[unlikely], 100, W1)]

    def test_in_chunks_that_the_link_carries_in_a_moment(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        number = planning.on_host("b", prompt(0, 2000))
        assert planning.plan() == [LoadAhead(number, MIN_CHUNK_TOKENS, W1)]
        for _ in range(4):
            planning.foresight.loaded(1000, 0.1)
        assert planning.plan_later() == [LoadAhead(number, 500, W1)]

    @pytest.mark.parametrize(
        ("step_s", "arriving_tokens", "chunk"),
        [
            (0.2, 0, 1000),
            (0.02, 0, MIN_CHUNK_TOKENS),
            (60.0, 0, int(5000 * MAX_CHUNK_S)),
            (0.2, 300, 1500),
            (0.02, 300, 1500),
            (0.2, 10, MIN_CHUNK_TOKENS),
            (0.2, 5000, int(5000 * MAX_CHUNK_S)),
        ],
    )
    def test_or_until_the_scheduler_comes_back(
        self, planning: Planning, step_s: float, arriving_tokens: int, chunk: int
    ) -> None:
        planning.steps(a=0, b=1)
        number = planning.on_host("b", prompt(0, 3000))
        for _ in range(4):
            planning.foresight.loaded(1000, 0.2)
            planning.foresight.prefilled(1000, 1.0)
        planning.clock.now_s += step_s
        requests = [arriving(prompt(1, arriving_tokens))] if arriving_tokens else []
        assert planning.plan(arriving=requests) == [LoadAhead(number, chunk, W1)]

    def test_where_another_chunk_is_under_way_the_next_one_follows(
        self, planning: Planning
    ) -> None:
        planning.steps(a=0, b=1)
        insert_host(planning.cache, prompt(0, 100))
        number = planning.on_host("b", prompt(0, 300))
        first, _ = planning.cache.chain(planning.owner("b"))
        planning.transfers.loads.append(
            LoadUnderWay(first.id, 0, 100, {first}, (W1, number), planning.clock.now_s)
        )
        assert planning.plan() == [LoadAhead(number, 300, W1)]

    def test_not_without_a_free_slot(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        planning.transfers.slots = False
        assert planning.plan() == []

    def test_not_past_a_gap(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        planning.cache.reset()
        planning.cache.tree_core.set_hicache_enabled()
        planning.cache.kvflow_changed = True
        assert planning.plan() == []


class TestRoom:
    @pytest.fixture
    def planning(self, clock: Clock) -> Planning:
        return Planning(clock, capacity=300)

    @pytest.mark.parametrize("tokens", [100, 400])
    def test_what_is_needed_as_soon_is_not_displaced(self, planning: Planning, tokens: int) -> None:
        planning.steps(a=0, b=1, c=1)
        insert(planning.cache, prompt(1, 300))
        planning.called("c", prompt(1, 300))
        planning.on_host("b", prompt(0, tokens))
        assert planning.plan() == []

    @pytest.mark.parametrize("steps", [2, math.inf])
    def test_what_is_needed_later_is(self, planning: Planning, steps: float) -> None:
        planning.steps(a=0, b=1, c=steps)
        insert(planning.cache, prompt(1, 300))
        planning.called("c", prompt(1, 300))
        number = planning.on_host("b", prompt(0))
        assert planning.plan() == [LoadAhead(number, 100, W1)]

    def test_as_much_as_has_room_is_loaded(self, planning: Planning) -> None:
        planning.steps(a=0, b=1, c=1)
        insert(planning.cache, prompt(1, 220))
        planning.called("c", prompt(1, 220))
        number = planning.on_host("b", prompt(0, 400))
        assert planning.plan() == [LoadAhead(number, 80, W1)]


class TestRequestsFirst:
    @pytest.fixture(autouse=True)
    def near(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))

    def test_nothing_is_loaded_while_one_that_arrives_needs_the_link(
        self, planning: Planning
    ) -> None:
        insert_host(planning.cache, prompt(1))
        assert planning.plan(arriving=[arriving(prompt(2)), arriving(prompt(1))]) == []
        assert planning.plan_later() != []

    def test_others_that_arrive_hold_nothing_up(self, planning: Planning) -> None:
        insert_host(planning.cache, prompt(1))
        insert(planning.cache, prompt(3))
        others = [
            arriving(prompt(2)),
            arriving(prompt(3)),
            arriving(prompt(1), extra_key="lora"),
            object(),
        ]
        assert planning.plan(arriving=others) != []

    def test_nothing_is_loaded_while_one_that_waits_needs_the_link(
        self, planning: Planning
    ) -> None:
        insert_host(planning.cache, prompt(1))
        assert planning.plan([finished_request([*prompt(1), 5], (), None)]) == []

    def test_one_that_waits_for_what_is_on_the_device_needs_no_link(
        self, planning: Planning
    ) -> None:
        insert(planning.cache, prompt(1))
        assert planning.plan([finished_request([*prompt(1), 5], (), None)]) != []
        planning.cache.kvflow_changed = True
        assert planning.plan([finished_request(prompt(2), (), None)]) != []


class TestReplanning:
    def test_again_only_when_due(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        planned = planning.plan()
        assert len(planned) == 1
        assert planning.plan() == []
        planning.clock.now_s += REPLAN_S / 2
        assert planning.plan() == []
        planning.clock.now_s += REPLAN_S
        assert planning.plan() == planned

    def test_at_once_where_something_changed(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        planned = planning.plan()
        planning.steps(a=0, b=1)
        assert planning.plan() == planned
        assert planning.plan() == []

    def test_not_by_time_alone_while_nobody_is_near(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        assert planning.foresight.pending
        planning.steps(a=0, b=math.inf)
        assert not planning.foresight.pending
        assert planning.plan() == []
        planning.fetching(999, prompt(5))  # would be cancelled
        assert planning.plan_later() == []


class TestDueTime:
    def run_once(self, planning: Planning, seconds: float) -> None:
        """A step of each agent has been seen to take so long."""
        for running in "ab":
            planning.steps("taught", **{agent: float(agent != running) for agent in "ab"})
            planning.clock.now_s += seconds
        planning.cache.apply_control(ServiceUpdate(closed=(("c", "taught"),)))

    def due_in_s(self, planning: Planning) -> float | None:
        candidates, _ = planning.foresight._candidates(planning.clock.now_s)
        (candidate,) = candidates
        return candidate.due_in_s

    def test_counts_down_while_a_step_runs(self, planning: Planning) -> None:
        self.run_once(planning, 4.0)
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        assert self.due_in_s(planning) == pytest.approx(4.0)
        planning.clock.now_s += 1.0
        assert self.due_in_s(planning) == pytest.approx(3.0)

    def test_is_unknown_between_two_steps(self, planning: Planning) -> None:
        self.run_once(planning, 4.0)
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        planning.steps(a=math.inf, b=1)
        assert self.due_in_s(planning) is None

    def test_is_unknown_where_nothing_was_timed(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        assert self.due_in_s(planning) is None

    def test_of_a_farther_agent_brings_its_load_forward(self, planning: Planning) -> None:
        self.run_once(planning, 0.1)
        for _ in range(4):
            planning.foresight.loaded(1000, 0.5)
        planning.steps(a=0, b=2)
        number = planning.on_host("b", prompt(0, 300))
        assert planning.plan() == [LoadAhead(number, 300, W1)]

    def test_what_comes_too_late_is_not_loaded(self, planning: Planning) -> None:
        self.run_once(planning, 0.1)
        for _ in range(4):
            planning.foresight.loaded(100, 10.0)
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0))
        assert planning.plan() == []


class TestFetches:
    @pytest.fixture(autouse=True)
    def room(self, planning: Planning) -> None:
        planning.host_room(1000)

    @pytest.mark.parametrize(("steps", "near"), [(1, True), (NEAR_STEPS, True), (5, False)])
    def test_what_left_the_tree_is_fetched(
        self, planning: Planning, steps: float, near: bool
    ) -> None:
        planning.steps(a=0, b=steps)
        number = planning.in_storage("b", prompt(0))
        assert planning.plan() == ([FetchAhead(number, 100, W1)] if near else [])

    def test_what_the_host_still_has_is_loaded_and_the_rest_fetched(
        self, planning: Planning
    ) -> None:
        planning.steps(a=0, b=1)
        number = planning.on_host("b", prompt(0))
        planning.in_storage("b", prompt(0, 300))
        assert planning.plan() == [LoadAhead(number, 100, W1), FetchAhead(number, 300, W1)]

    def test_not_twice(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        number = planning.in_storage("b", prompt(0))
        planning.fetching(number, prompt(0))
        assert planning.plan() == []

    def test_one_beginning_that_two_agents_share_is_fetched_once(self, planning: Planning) -> None:
        planning.steps(a=0, b=1, d=2)
        number = planning.in_storage("b", prompt(0))
        planning.in_storage("d", [*prompt(0), *prompt(1)])
        assert planning.plan() == [FetchAhead(number, 100, W1)]

    @pytest.mark.parametrize(("arrived", "again"), [(0, False), (99, False), (100, True)])
    def test_not_soon_again_where_less_came_than_wanted(
        self, planning: Planning, arrived: int, again: bool
    ) -> None:
        planning.steps(a=0, b=1, d=1)
        number = planning.in_storage("b", prompt(0))
        planned = planning.plan()
        assert planned == [FetchAhead(number, 100, W1)]
        planning.foresight.fetched(number, arrived, 100)
        assert planning.plan_later() == (planned if again else [])
        other = planning.in_storage("d", prompt(1))
        planning.clock.now_s += FETCH_AGAIN_S - 2 * REPLAN_S
        planning.cache.kvflow_changed = True
        assert FetchAhead(other, 100, W1) in planning.plan()  # it is about this path alone
        planning.clock.now_s += 2 * REPLAN_S
        assert FetchAhead(number, 100, W1) in planning.plan()

    @pytest.mark.parametrize(
        ("free", "steps", "fits"), [(50, 2, True), (49, 2, False), (0, 1, False)]
    )
    def test_only_where_the_host_has_room_for_it(
        self, planning: Planning, free: int, steps: float, fits: bool
    ) -> None:
        planning.host_room(free)
        planning.steps(a=0, b=1, d=steps)
        planning.on_host("d", prompt(1, 50))
        number = planning.in_storage("b", prompt(0))
        fetches = [m for m in planning.plan() if isinstance(m, FetchAhead)]
        assert fetches == ([FetchAhead(number, 100, W1)] if fits else [])

    def test_one_that_nobody_needs_any_more_is_cancelled(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        number = planning.in_storage("b", prompt(0))
        planning.fetching(number, prompt(0))
        planning.plan()
        planning.steps(a=0, b=NEAR_STEPS)
        assert planning.plan() == []
        planning.steps(a=0, b=NEAR_STEPS + 1)
        assert planning.plan() == [CancelFetch(number)]

    def test_one_that_is_being_asked_for_is_not_cancelled(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        number = planning.in_storage("b", prompt(0))
        planning.fetching(number, prompt(0))
        planning.steps(a=1, b=0)
        assert planning.plan() == []

    @pytest.mark.parametrize(
        "message", [LeaseLost(), ServiceUpdate(closed=(W1,))], ids=["lease lost", "closed"]
    )
    def test_all_are_cancelled_when_nothing_is_known_any_more(
        self, planning: Planning, message: ControlMessage
    ) -> None:
        planning.steps(a=0, b=1)
        numbers = [planning.in_storage(agent, prompt(n)) for n, agent in enumerate("bd")]
        for number in numbers:
            planning.fetching(number, prompt(number))
        planning.cache.apply_control(message)
        assert planning.plan() == [CancelFetch(number) for number in numbers]

    def test_one_whose_owner_is_gone_is_cancelled(self, planning: Planning) -> None:
        planning.fetching(12345, prompt(0))
        assert planning.plan() == [CancelFetch(12345)]


class TestGivenUp:
    @pytest.fixture(autouse=True)
    def begun(self, planning: Planning) -> None:
        planning.steps(a=0, b=1)
        planning.on_host("b", prompt(0, 1000))
        assert len(planning.plan()) == 1

    def test_what_was_begun_for_a_branch_not_taken_counts_as_cancelled(
        self, planning: Planning
    ) -> None:
        planning.steps(a=0, b=math.inf)
        planning.plan()
        planning.steps(a=1, b=math.inf)
        planning.plan()
        assert planning.metrics.outcomes == [("cancelled", 1000 - MIN_CHUNK_TOKENS)]

    def test_not_where_the_agent_came(self, planning: Planning) -> None:
        planning.steps(a=1, b=0)
        planning.plan()
        planning.steps(a=0, b=math.inf)
        planning.plan()
        assert planning.metrics.outcomes == []


class TestRates:
    def test_nothing_is_known_at_first(self, planning: Planning) -> None:
        rates = planning.foresight.rates
        assert (rates.load, rates.fetch, rates.prefill) == (None, None, None)

    def test_loads_timed_at_the_start_are_taken(self, planning: Planning) -> None:
        planning.cache.kvflow_calibration = [(100, 0.5), (100, 0.5)]
        assert Foresight(planning.cache, MAX_LOADING).rates.load == Link(200.0)

    def test_each_is_learned_from_its_own(self, planning: Planning) -> None:
        planning.foresight.loaded(100, 1.0)
        planning.foresight.prefilled(100, 2.0)
        assert planning.foresight.rates.load == Link(100.0)
        assert planning.foresight.rates.prefill == Link(50.0)
        assert planning.foresight.rates.fetch is None

    def test_a_fetch_is_timed_from_its_planning(self, planning: Planning) -> None:
        planning.host_room(1000)
        planning.steps(a=0, b=1)
        number = planning.in_storage("b", prompt(0))
        assert planning.plan() == [FetchAhead(number, 100, W1)]
        planning.clock.now_s += 4.0
        planning.foresight.fetched(number, 100, 100)
        assert planning.foresight.rates.fetch == Link(25.0)
        planning.foresight.fetched(number, 100, 100)
        planning.foresight.fetched(999, 100, 100)
        assert planning.foresight.rates.fetch == Link(25.0)


def test_without_planning_it_measures_only(planning: Planning) -> None:
    foresight = Foresight(planning.cache, MAX_LOADING, plans=False)
    planning.steps(a=0, b=1)
    planning.on_host("b", prompt(0))
    assert not foresight.pending
    assert foresight.messages((), ()) == []
    planning.clock.now_s += REPLAN_S
    assert foresight.messages((), ()) == []
    foresight.loaded(100, 1.0)
    assert foresight.rates.load == Link(100.0)


def test_the_likelier_of_two_branches_is_loaded_first(planning: Planning) -> None:
    for turn, chosen in enumerate("ddb"):
        planning.steps(f"past{turn}", a=0, b=1, d=1)
        planning.steps(f"past{turn}", a=math.inf, **{x: float(x != chosen) for x in "bd"})
        planning.cache.apply_control(ServiceUpdate(closed=(("c", f"past{turn}"),)))
    planning.steps(a=0, b=1, d=1)
    planning.on_host("b", prompt(0))
    number = planning.on_host("d", prompt(1))
    assert planning.plan() == [LoadAhead(number, 100, W1)]
