"""Which KV to bring nearer before its agent is called.

Source: KVFlow, arXiv 2507.07400, section on proactive prefetching: KV of agents that run next is
loaded in the background while others run. It differs from the paper in that a load is gated, not
made whenever there is something to load: it must arrive in time over the link as measured, may
not displace what is needed as soon, and goes in chunks behind requests' own loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, TypeVar

from kvflow.prefetch.base import (
    Candidate,
    Link,
    Plan,
    PlannedCopy,
    PlannerLimits,
    PlannerView,
    Refusal,
    Stretch,
)

__all__ = ["plan_prefetch"]

K = TypeVar("K", bound=Hashable)


def plan_prefetch(
    candidates: Iterable[Candidate[K]],
    view: PlannerView,
    limits: PlannerLimits,
    room: Callable[[Candidate[K]], int],
) -> Plan[K]:
    """What to load and fetch now.

    The order is by steps, then by due time (unknown ones last), then the more probable first,
    then as given. It is deterministic, and a load doesn't depend on less urgent candidates.

    A prefix counts as far as it can be read without a gap: its leading ``device``, ``loading``
    and ``host`` stretches can be on the device next, ``storage`` directly after them on the host.

    * Loads: the first run of host tokens, for agents within ``load_horizon_steps`` or due within
      ``safety`` times the load's duration. Of a run that doesn't arrive in time, or that has no
      room, the head is loaded. One chunk per plan, of the most urgent candidate that passes all
      gates; candidates after it are not judged.
    * Fetches: the run of storage tokens as a whole, for agents within ``fetch_horizon_steps`` or
      due within ``safety`` times the fetch's duration. One that is under way when its request
      comes is still of use, so it is late only if not even its head arrives in time. A fetch that
      has to wait for those in flight holds back less urgent ones: the link is busy meanwhile.
      A run above ``max_fetching_tokens`` is never fetched.

    Args:
        candidates: prefixes of agents that may run later; those running now need no prefetch.
        view: what is the case now.
        limits: how much may be done.
        room: device tokens that are free, or hold nothing that is needed as soon as the candidate
            is. Asked last, and only for candidates that pass all other gates.

    Complexity: O(n log n + stretches) for n candidates, and one ``room`` call per candidate tried.
    """
    loads: list[PlannedCopy[K]] = []
    fetches: list[PlannedCopy[K]] = []
    refusals: dict[K, Refusal] = {}
    fetching_tokens = view.fetching_tokens
    held_back = False
    for candidate in sorted(candidates, key=_urgency):
        key = candidate.key
        reach = _reach(candidate.stretches, limits.page_tokens)
        if not loads:
            load = _load(candidate, reach, view, limits, room)
            if isinstance(load, PlannedCopy):
                loads.append(load)
            elif load is not None:
                refusals[key] = load
        fetch = _fetch(candidate, reach, view.fetch_link, fetching_tokens, limits)
        if isinstance(fetch, PlannedCopy) and held_back:
            fetch = "in_flight_limit"
        if isinstance(fetch, PlannedCopy):
            fetches.append(fetch)
            fetching_tokens += fetch.tokens
        elif fetch is not None:
            refusals.setdefault(key, fetch)
            fits_alone = reach.fetch_tokens <= limits.max_fetching_tokens
            held_back |= fetch == "in_flight_limit" and fits_alone
    return Plan(tuple(loads), tuple(fetches), refusals)


class _Reach(NamedTuple):
    """What could be copied of a prefix, in whole pages. Offsets are from the root."""

    load_start: int
    load_tokens: int
    load_completes: bool
    """Whether after this load all that is on the host is on the device."""
    fetch_start: int
    fetch_tokens: int


def _urgency(candidate: Candidate[K]) -> tuple[float, float, float]:
    due_in_s = math.inf if candidate.due_in_s is None else candidate.due_in_s
    return (candidate.steps, due_in_s, -candidate.probability)


def _reach(stretches: tuple[Stretch, ...], page_tokens: int) -> _Reach:
    def end_of_run(first: int, *places: str) -> int:
        after = first
        while after < len(stretches) and stretches[after].place in places:
            after += 1
        return after

    def tokens(first: int, after: int) -> int:
        return sum(stretch.tokens for stretch in stretches[first:after])

    load = end_of_run(0, "device", "loading")
    load_end = end_of_run(load, "host")
    available_end = end_of_run(load_end, "device", "loading", "host")
    fetch_end = end_of_run(available_end, "storage")
    return _Reach(
        load_start=tokens(0, load),
        load_tokens=_whole_pages(tokens(load, load_end), page_tokens),
        load_completes=load_end == available_end,
        fetch_start=tokens(0, available_end),
        fetch_tokens=_whole_pages(tokens(available_end, fetch_end), page_tokens),
    )


def _load(
    candidate: Candidate[K],
    reach: _Reach,
    view: PlannerView,
    limits: PlannerLimits,
    room: Callable[[Candidate[K]], int],
) -> PlannedCopy[K] | Refusal | None:
    """The load, why there is none, or None if the candidate has nothing to load yet."""
    run = reach.load_tokens
    if run == 0 or not _is_near(
        candidate, limits.load_horizon_steps, view.load_link, run, limits.safety
    ):
        return None
    if not view.load_slot_free:
        return "no_slot"
    if view.request_load_waiting:
        return "request_first"

    def worth_it(tokens: int) -> bool:
        completes = tokens == run and reach.load_completes
        return completes or tokens >= max(limits.min_tokens, limits.page_tokens)

    if not worth_it(run):
        return "too_small"
    tokens = _arriving(run, candidate.due_in_s, view.load_link, view.loading_tokens)
    tokens = _whole_pages(tokens, limits.page_tokens)
    if not worth_it(tokens):
        return "late"
    tokens = min(tokens, limits.max_in_flight_tokens - view.loading_tokens)
    tokens = _whole_pages(tokens, limits.page_tokens)
    if not worth_it(tokens):
        return "in_flight_limit"
    tokens = _whole_pages(min(tokens, room(candidate)), limits.page_tokens)
    if not worth_it(tokens):
        return "no_room"
    tokens = _whole_pages(min(tokens, limits.chunk_tokens), limits.page_tokens)
    return PlannedCopy(candidate.key, reach.load_start, reach.load_start + tokens)


def _fetch(
    candidate: Candidate[K],
    reach: _Reach,
    link: Link | None,
    fetching_tokens: int,
    limits: PlannerLimits,
) -> PlannedCopy[K] | Refusal | None:
    """The fetch, why there is none, or None if the candidate has nothing to fetch yet."""
    run = reach.fetch_tokens
    if run == 0 or not _is_near(candidate, limits.fetch_horizon_steps, link, run, limits.safety):
        return None
    head = min(run, limits.min_tokens)
    if _arriving(head, candidate.due_in_s, link, fetching_tokens) < head:
        return "late"
    if fetching_tokens + run > limits.max_fetching_tokens:
        return "in_flight_limit"
    return PlannedCopy(candidate.key, reach.fetch_start, reach.fetch_start + run)


def _is_near(
    candidate: Candidate[K], horizon_steps: int, link: Link | None, tokens: int, safety: float
) -> bool:
    if candidate.steps <= horizon_steps:
        return True
    if candidate.due_in_s is None or link is None:
        return False
    return candidate.due_in_s <= safety * link.seconds(tokens)


def _arriving(tokens: int, due_in_s: float | None, link: Link | None, backlog_tokens: int) -> int:
    """How many of ``tokens`` are there by the due time, behind the backlog of a FIFO link.

    All if that can't be judged; below 0 if not even the backlog is.
    """
    if due_in_s is None or link is None or link.seconds(backlog_tokens + tokens) <= due_in_s:
        return tokens
    return min(tokens, link.tokens_within(due_in_s) - backlog_tokens)


def _whole_pages(tokens: int, page_tokens: int) -> int:
    return tokens // page_tokens * page_tokens
