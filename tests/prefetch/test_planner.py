from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.prefetch import (
    Candidate,
    Link,
    Place,
    Plan,
    PlannedCopy,
    PlannerLimits,
    PlannerView,
    Refusal,
    Stretch,
    plan_prefetch,
)

PAGE = 16
LIMITS = PlannerLimits(page_tokens=PAGE)
IDLE = PlannerView(
    load_link=None,
    fetch_link=None,
    loading_tokens=0,
    fetching_tokens=0,
    request_load_waiting=False,
    load_slot_free=True,
)
SLOW = Link(tokens_per_s=100)
"""100 tokens a second: seconds are tokens by hundreds."""

PLACES: dict[str, Place] = {
    "d": "device",
    "l": "loading",
    "h": "host",
    "f": "fetching",
    "s": "storage",
    "n": "nowhere",
}


def prefix(layout: str) -> tuple[Stretch, ...]:
    """Stretches written as ``d64 h128``."""
    return tuple(Stretch(int(part[1:]), PLACES[part[0]]) for part in layout.split())


def agent(
    layout: str,
    key: str = "a",
    steps: float = 1,
    due_in_s: float | None = None,
    probability: float = 1.0,
) -> Candidate[str]:
    return Candidate(key, steps, prefix(layout), due_in_s, probability)


def plan(
    *candidates: Candidate[str],
    view: PlannerView = IDLE,
    limits: PlannerLimits = LIMITS,
    room: int = 10**9,
) -> Plan[str]:
    return plan_prefetch(candidates, view, limits, lambda _: room)


def ranges(copies: tuple[PlannedCopy[str], ...]) -> list[tuple[int, int]]:
    return [(copy.start_tokens, copy.end_tokens) for copy in copies]


def keys(copies: tuple[PlannedCopy[str], ...]) -> list[str]:
    return [copy.key for copy in copies]


@pytest.mark.parametrize(
    ("layout", "load", "fetch"),
    [
        ("", None, None),
        ("d128", None, None),
        ("n128", None, None),
        ("h128", (0, 128), None),
        ("s128", None, (0, 128)),
        ("d64 h128", (64, 192), None),
        ("h64 h64", (0, 128), None),
        ("d64 l64 h128", (128, 256), None),
        ("l64", None, None),
        ("d64 h128 s256", (64, 192), (192, 448)),
        ("d64 s128 s128", None, (64, 320)),
        ("h64 n64 h128", (0, 64), None),
        ("h64 n64 s128", (0, 64), None),
        ("n64 h64 s64", None, None),
        ("h64 f64 h128", (0, 64), None),
        ("h64 f64 s128", (0, 64), None),
        ("h64 s64 h128", (0, 64), (64, 128)),
        ("s64 n64 s64", None, (0, 64)),
        ("h64 l64 h64 s64", (0, 64), (192, 256)),
        ("h100", (0, 96), None),
        ("s100", None, (0, 96)),
        ("h15", None, None),
        ("d64 h15", None, None),
        ("s15", None, None),
    ],
)
def test_what_there_is_to_copy(
    layout: str, load: tuple[int, int] | None, fetch: tuple[int, int] | None
) -> None:
    made = plan(agent(layout))
    assert ranges(made.loads) == ([load] if load else [])
    assert ranges(made.fetches) == ([fetch] if fetch else [])
    assert made.refusals == {}


class TestWhoIsFirst:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (agent("h64", "a", steps=1, due_in_s=9), agent("h64", "b", steps=2, due_in_s=1)),
            (agent("h64", "a", due_in_s=1), agent("h64", "b", due_in_s=2)),
            (agent("h64", "a", due_in_s=9), agent("h64", "b")),
            (agent("h64", "a", probability=0.6), agent("h64", "b", probability=0.4)),
            (agent("h64", "a", due_in_s=1, probability=0.1), agent("h64", "b", due_in_s=2)),
        ],
    )
    def test_it_is_loaded_wherever_it_is_given(
        self, first: Candidate[str], second: Candidate[str]
    ) -> None:
        assert keys(plan(first, second).loads) == ["a"]
        assert keys(plan(second, first).loads) == ["a"]

    def test_equals_stay_as_given(self) -> None:
        assert keys(plan(agent("h64", "b"), agent("h64", "a")).loads) == ["b"]

    def test_fetches_are_in_that_order_too(self) -> None:
        made = plan(agent("s64", "c", steps=3), agent("s64", "a"), agent("s64", "b", steps=2))
        assert keys(made.fetches) == ["a", "b", "c"]


class TestLoad:
    def test_one_chunk_per_plan_and_those_after_it_are_not_judged(self) -> None:
        made = plan(agent("h4000", "a"), agent("h64", "b"))
        assert made.loads == (PlannedCopy("a", 0, 1024),)
        assert made.refusals == {}

    def test_a_chunk_is_whole_pages(self) -> None:
        assert ranges(plan(agent("h64"), limits=replace(LIMITS, chunk_tokens=40)).loads) == [
            (0, 32)
        ]

    @pytest.mark.parametrize(
        ("steps", "due_in_s", "link", "loaded"),
        [
            (1, None, None, True),
            (1, 1000.0, SLOW, True),
            (2, None, SLOW, False),
            (2, 4.0, None, False),
            (2, 4.0, SLOW, True),
            (2, 4.1, SLOW, False),
            (9, 4.0, SLOW, True),
        ],
    )
    def test_far_agents_only_when_it_is_time(
        self, steps: float, due_in_s: float | None, link: Link | None, loaded: bool
    ) -> None:
        """200 tokens (192 in pages) take 2 s at 96 a second; safety doubles that."""
        at_96 = link and Link(96)
        made = plan(agent("h200", steps=steps, due_in_s=due_in_s), view=view(load_link=at_96))
        assert bool(made.loads) is loaded
        assert made.refusals == {}

    @pytest.mark.parametrize(
        ("due_in_s", "loading", "end"),
        [
            (10.24, 0, 1024),
            (10.23, 0, 1008),
            (5.0, 0, 496),
            (5.0, 400, 96),
            (0.64, 0, 64),
            (0.63, 0, None),
            (5.0, 450, None),
            (5.0, 600, None),
            (0.0, 0, None),
            (-1.0, 0, None),
            (math.inf, 0, 1024),
            (None, 600, 1024),
        ],
    )
    def test_the_head_that_arrives_in_time(
        self, due_in_s: float | None, loading: int, end: int | None
    ) -> None:
        made = plan(
            agent("h1024", due_in_s=due_in_s), view=view(load_link=SLOW, loading_tokens=loading)
        )
        assert ranges(made.loads) == ([] if end is None else [(0, end)])
        assert made.refusals == ({"a": "late"} if end is None else {})

    def test_latency_counts_once(self) -> None:
        link = Link(100, latency_s=1)
        made = plan(agent("h1024", due_in_s=5), view=view(load_link=link, loading_tokens=100))
        assert ranges(made.loads) == [(0, 288)]

    @pytest.mark.parametrize(
        ("layout", "room", "load"),
        [
            ("h256", 256, (0, 256)),
            ("h256", 255, (0, 240)),
            ("d64 h256", 64, (64, 128)),
            ("h256", 63, None),
            ("h256", 0, None),
            ("h256", -5, None),
            ("h32", 32, (0, 32)),
            ("h32", 31, None),
            ("h4000", 1024, (0, 1024)),
        ],
    )
    def test_room(self, layout: str, room: int, load: tuple[int, int] | None) -> None:
        made = plan(agent(layout), room=room)
        assert ranges(made.loads) == ([load] if load else [])
        assert made.refusals == ({} if load else {"a": "no_room"})

    @pytest.mark.parametrize(
        ("loading", "load"),
        [(0, (0, 256)), (8192 - 256, (0, 256)), (8000, (0, 192)), (8140, None), (9000, None)],
    )
    def test_in_flight_limit(self, loading: int, load: tuple[int, int] | None) -> None:
        made = plan(agent("h256"), view=view(loading_tokens=loading))
        assert ranges(made.loads) == ([load] if load else [])
        assert made.refusals == ({} if load else {"a": "in_flight_limit"})

    @pytest.mark.parametrize(
        ("layout", "load"),
        [
            ("h16 n64", (0, 16)),
            ("h16 f64", (0, 16)),
            ("h16 s64", (0, 16)),
            ("d64 h16", (64, 80)),
            ("h16 l64", None),
            ("h16 d64", None),
            ("h64 l64", (0, 64)),
        ],
    )
    def test_a_small_load_must_complete_what_there_is(
        self, layout: str, load: tuple[int, int] | None
    ) -> None:
        made = plan(agent(layout))
        assert ranges(made.loads) == ([load] if load else [])
        assert made.refusals == ({} if load else {"a": "too_small"})

    @pytest.mark.parametrize(
        ("state", "reason"),
        [
            ({"load_slot_free": False, "request_load_waiting": True}, "no_slot"),
            ({"request_load_waiting": True, "loading_tokens": 9000}, "request_first"),
            ({"load_link": SLOW, "loading_tokens": 9000}, "late"),
            ({"loading_tokens": 9000}, "in_flight_limit"),
            ({}, "no_room"),
        ],
    )
    def test_the_first_gate_that_is_closed_is_named(
        self, state: dict[str, object], reason: Refusal
    ) -> None:
        asked: list[str] = []

        def no_room(candidate: Candidate[str]) -> int:
            asked.append(candidate.key)
            return 0

        made = plan_prefetch([agent("h64", due_in_s=1)], view(**state), LIMITS, no_room)
        assert made.loads == ()
        assert made.refusals == {"a": reason}
        assert asked == (["a"] if reason == "no_room" else [])

    def test_a_refused_one_lets_the_next_have_its_turn(self) -> None:
        made = plan(agent("h256", "a", due_in_s=0.1), agent("h256", "b"), view=view(load_link=SLOW))
        assert keys(made.loads) == ["b"]
        assert made.refusals == {"a": "late"}

    def test_room_is_asked_once_for_each_tried_and_never_for_the_rest(self) -> None:
        asked: list[str] = []

        def room(candidate: Candidate[str]) -> int:
            asked.append(candidate.key)
            return 0 if candidate.key == "a" else 100

        candidates = [agent("h64", key) for key in "abc"] + [agent("h64", "far", steps=5)]
        plan_prefetch(candidates, IDLE, LIMITS, room)
        assert asked == ["a", "b"]


class TestFetch:
    @pytest.mark.parametrize(
        ("steps", "due_in_s", "fetched"),
        [(3, None, True), (3, 1000.0, True), (4, None, False), (4, 4.0, True), (4, 4.1, False)],
    )
    def test_far_agents_only_when_it_is_time(
        self, steps: float, due_in_s: float | None, fetched: bool
    ) -> None:
        made = plan(agent("s192", steps=steps, due_in_s=due_in_s), view=view(fetch_link=Link(96)))
        assert bool(made.fetches) is fetched
        assert made.refusals == {}

    @pytest.mark.parametrize(
        ("layout", "due_in_s", "fetching", "late"),
        [
            ("s1024", 0.64, 0, False),
            ("s1024", 0.63, 0, True),
            ("s1024", 1.64, 100, False),
            ("s1024", 1.63, 100, True),
            ("s32", 0.32, 0, False),
            ("s32", 0.31, 0, True),
            ("s32", None, 9999, False),
        ],
    )
    def test_late_only_if_not_even_the_head_arrives(
        self, layout: str, due_in_s: float | None, fetching: int, late: bool
    ) -> None:
        made = plan(
            agent(layout, due_in_s=due_in_s), view=view(fetch_link=SLOW, fetching_tokens=fetching)
        )
        assert made.refusals == ({"a": "late"} if late else {})
        assert bool(made.fetches) is not late

    def test_planned_ones_are_in_the_way_of_later_ones(self) -> None:
        made = plan(
            agent("s1024", "a", due_in_s=1),
            agent("s64", "b", due_in_s=2),
            view=view(fetch_link=SLOW),
        )
        assert keys(made.fetches) == ["a"]
        assert made.refusals == {"b": "late"}

    @pytest.mark.parametrize(
        ("layouts", "fetching", "fetched"),
        [
            (("s600", "s400"), 0, "ab"),
            (("s600", "s416"), 0, "a"),
            (("s600", "s400"), 8, "ab"),
            (("s600", "s400"), 9, "a"),
            (("s600", "s400", "s16"), 9, "a"),
            (("s600",), 409, ""),
            (("s2000", "s400"), 0, "b"),
            (("d64", "h64", "s400"), 0, "c"),
        ],
    )
    def test_whole_ones_up_to_the_limit_in_order(
        self, layouts: tuple[str, ...], fetching: int, fetched: str
    ) -> None:
        """592 + 400 tokens in pages. One that never fits holds nobody back."""
        candidates = [agent(layout, key) for layout, key in zip(layouts, "abc", strict=False)]
        made = plan(
            *candidates,
            view=view(fetching_tokens=fetching, load_slot_free=False),
            limits=replace(LIMITS, max_fetching_tokens=1000),
        )
        assert "".join(keys(made.fetches)) == fetched
        refused = {
            each.key
            for each in candidates
            if each.stretches[0].place == "storage" and each.key not in fetched
        }
        assert {key for key, why in made.refusals.items() if why == "in_flight_limit"} == refused

    def test_it_needs_no_load_slot_and_no_room(self) -> None:
        made = plan(agent("h64 s64"), view=view(load_slot_free=False), room=0)
        assert ranges(made.fetches) == [(64, 128)]
        assert made.refusals == {"a": "no_slot"}

    def test_a_refused_load_is_named_before_a_refused_fetch(self) -> None:
        both = view(request_load_waiting=True, fetching_tokens=10**6)
        assert plan(agent("h64 s64"), view=both).refusals == {"a": "request_first"}


@pytest.mark.parametrize(("page", "chunk"), [(0, 64), (-1, 64), (64, 63), (1, 0)])
def test_limits_without_a_page_to_copy_are_refused(page: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="holds no page"):
        PlannerLimits(page_tokens=page, chunk_tokens=chunk)


def test_a_link_there_and_back() -> None:
    link = Link(tokens_per_s=1000, latency_s=0.5)
    assert link.seconds(250) == 0.75
    assert link.seconds(0) == 0
    assert link.tokens_within(0.75) == 250
    assert link.tokens_within(0.5) == link.tokens_within(0.1) == link.tokens_within(-1) == 0


def view(**state: object) -> PlannerView:
    return replace(IDLE, **state)  # type: ignore[arg-type]


# Mostly what lets something be planned: a single closed gate hides all the others.
links = st.none() | st.builds(Link, st.floats(100, 10_000), st.sampled_from([0.0, 0.5]))
due_times = st.sampled_from([None, None, -1.0, 0.5, 2.0, 5.0, 10.0, 60.0])
layouts = st.sampled_from(["h", "dh", "hs", "dlh", "dhs", "hhs", "lhh", "s", "dss", "hh"])
odd_layouts = st.text("dlhfsn", max_size=6)


@st.composite
def stretches(draw: st.DrawFn) -> tuple[Stretch, ...]:
    layout = draw(layouts | odd_layouts)
    whole = tuple(Stretch(PAGE * draw(st.integers(1, 40)), PLACES[letter]) for letter in layout)
    missing = draw(st.integers(0, PAGE - 1))
    if whole:
        whole = (*whole[:-1], whole[-1]._replace(tokens=whole[-1].tokens - missing))
    return whole


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate[int]]:
    return [
        Candidate(
            key,
            draw(st.sampled_from([1, 1, 2, 3, 4, math.inf])),
            draw(stretches()),
            draw(due_times),
            draw(st.sampled_from([0.25, 0.5, 1.0])),
        )
        for key in range(draw(st.integers(1, 6)))
    ]


views = st.builds(
    PlannerView,
    load_link=links,
    fetch_link=links,
    loading_tokens=st.sampled_from([0, 0, 100, 500]),
    fetching_tokens=st.sampled_from([0, 0, 100, 1000]),
    request_load_waiting=st.sampled_from([False] * 9 + [True]),
    load_slot_free=st.sampled_from([True] * 9 + [False]),
)
any_limits = st.builds(
    PlannerLimits,
    page_tokens=st.just(PAGE),
    max_in_flight_tokens=st.sampled_from([100, 600, 1000, 5000]),
    max_fetching_tokens=st.sampled_from([500, 1500, 5000]),
    chunk_tokens=st.sampled_from([PAGE, 200, 500, 5000]),
    min_tokens=st.sampled_from([0, 1, 50, 200]),
)
Rooms = dict[int, int]
rooms = st.fixed_dictionaries(
    {key: st.sampled_from([900, 500, 300, 100, 30, 0, -9]) for key in range(6)}
)


def asking(given_rooms: Rooms) -> Callable[[Candidate[int]], int]:
    return lambda candidate: given_rooms[candidate.key]


def places_by_token(candidate: Candidate[int]) -> list[Place]:
    return [stretch.place for stretch in candidate.stretches for _ in range(stretch.tokens)]


@settings(deadline=None, max_examples=300)
@given(candidate_lists(), views, any_limits, rooms)
def test_what_is_planned_is_there_and_allowed(
    candidates: list[Candidate[int]], now: PlannerView, limits: PlannerLimits, has: Rooms
) -> None:
    made = plan_prefetch(candidates, now, limits, asking(has))
    by_key = {candidate.key: candidate for candidate in candidates}
    assert len(made.loads) <= 1
    for copy in (*made.loads, *made.fetches):
        assert copy.start_tokens % PAGE == copy.end_tokens % PAGE == 0
        assert copy.tokens > 0
    for load in made.loads:
        places = places_by_token(by_key[load.key])
        assert set(places[: load.start_tokens]) <= {"device", "loading"}
        assert set(places[load.start_tokens : load.end_tokens]) == {"host"}
        assert load.end_tokens <= len(places)
        assert load.tokens <= min(has[load.key], limits.chunk_tokens)
        assert now.loading_tokens + load.tokens <= limits.max_in_flight_tokens
        assert now.load_slot_free
        assert not now.request_load_waiting
        due_in_s = by_key[load.key].due_in_s
        if due_in_s is not None and now.load_link is not None:
            arrival_s = now.load_link.seconds(now.loading_tokens + load.tokens)
            assert arrival_s <= due_in_s + 1e-9
    for fetch in made.fetches:
        places = places_by_token(by_key[fetch.key])
        assert set(places[: fetch.start_tokens]) <= {"device", "loading", "host"}
        assert set(places[fetch.start_tokens : fetch.end_tokens]) == {"storage"}
        rest = places[fetch.end_tokens : fetch.end_tokens + PAGE]
        assert rest.count("storage") < PAGE
    if made.fetches:
        planned = sum(fetch.tokens for fetch in made.fetches)
        assert now.fetching_tokens + planned <= limits.max_fetching_tokens
    assert made.refusals.keys() <= by_key.keys()
    loaded_and_fetched = {copy.key for copy in made.loads} & {copy.key for copy in made.fetches}
    assert not loaded_and_fetched & made.refusals.keys()


@settings(deadline=None, max_examples=300)
@given(candidate_lists(), views, any_limits, rooms)
def test_a_load_does_not_depend_on_the_less_urgent(
    candidates: list[Candidate[int]], now: PlannerView, limits: PlannerLimits, has: Rooms
) -> None:
    urgent = [candidate for candidate in candidates if candidate.steps <= 1]
    alone = plan_prefetch(urgent, now, limits, asking(has))
    among = plan_prefetch(candidates, now, limits, asking(has))
    if alone.loads:
        assert among.loads == alone.loads
    kept = {candidate.key for candidate in urgent}
    assert {key: why for key, why in among.refusals.items() if key in kept} == alone.refusals
    assert among.fetches[: len(alone.fetches)] == alone.fetches


@settings(deadline=None, max_examples=300)
@given(candidate_lists(), views, any_limits, rooms, st.integers(0, 500))
def test_more_room_never_makes_a_load_smaller_or_less_urgent(
    candidates: list[Candidate[int]],
    now: PlannerView,
    limits: PlannerLimits,
    has: Rooms,
    more: int,
) -> None:
    before = plan_prefetch(candidates, now, limits, asking(has))
    wider = {key: room + more for key, room in has.items()}
    after = plan_prefetch(candidates, now, limits, asking(wider))
    assert after.fetches == before.fetches
    for load in before.loads:
        assert len(after.loads) == 1
        better = after.loads[0]
        if better.key == load.key:
            assert better.start_tokens == load.start_tokens
            assert better.end_tokens >= load.end_tokens
        else:
            assert before.refusals[better.key] == "no_room"
