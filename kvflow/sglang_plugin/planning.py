"""What is measured, estimated and planned for prefetching, whatever the engine.

Takes time as an argument and sees the engine through ``PlanningSite`` alone, so that the simulator
plans with the same code as the plugin.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, Final, Protocol

from kvflow.eviction import EvictionKey, Owner, eviction_key
from kvflow.prefetch import (
    Candidate,
    PlannerLimits,
    PlannerView,
    RateEstimator,
    StepTimer,
    Stretch,
    TransitionCounts,
    plan_prefetch,
)
from kvflow.sglang_plugin.control import (
    CancelFetch,
    ControlMessage,
    FetchAhead,
    LoadAhead,
    Rates,
    WorkflowKey,
)
from kvflow.sglang_plugin.transfers import needed_sooner
from kvflow.sglang_plugin.weights import NEAR_STEPS, WorkflowWeights

__all__ = [
    "CHUNK_S",
    "FETCH_AGAIN_S",
    "MAX_CHUNK_S",
    "MIN_CHUNK_TOKENS",
    "REPLAN_S",
    "PlanningSite",
    "PrefetchPlanning",
]

REPLAN_S: Final = 0.02
"""Plans are made anew when something changed, and this often while agents are near."""

CHUNK_S: Final = 0.05
"""A load is cut to what the link carries in this time, or until the scheduler's next step if that
is later: a request's own load cannot begin earlier than that, so it waits about this long at most.
"""
MAX_CHUNK_S: Final = 0.5

FETCH_AGAIN_S: Final = 1.0
"""How long to leave a path alone of which the storage tier had less than wanted, or for which
there was no host memory."""

MIN_CHUNK_TOKENS: Final = 256
MAX_CANDIDATES: Final = 64
_WORKFLOWS_PER_AGENT: Final = 8


class PlanningSite(Protocol):
    """What is seen of an engine and its cache."""

    @property
    def weights(self) -> WorkflowWeights: ...

    @property
    def page_tokens(self) -> int: ...

    def take_changed(self) -> bool:
        """Whether anything has changed since this was last asked."""

    def stretches(self, owner: Owner[Any]) -> Iterator[Stretch]:
        """The owner's path as far as it is in the tree, from the root on."""

    def on_device(self, owner: Owner[Any]) -> bool:
        """Whether all of the path that is in the tree is on the device, or on its way there."""

    @property
    def remembers_paths(self) -> bool:
        """Whether any path is remembered for fetching."""

    def path_tokens(self, number: int) -> int:
        """Length of the owner's path as it is remembered for fetching; 0 if it is not."""

    def fetch_head(self, number: int, end_tokens: int) -> Hashable:
        """Something that is the same for paths that begin with the same ``end_tokens``."""

    @property
    def fetches(self) -> Iterable[int]:
        """Owners for which something is being fetched."""

    @property
    def loading_tokens(self) -> int: ...

    @property
    def fetching_tokens(self) -> int: ...

    def slot_free(self) -> bool:
        """Whether a load can start now."""

    def free_tokens(self) -> int:
        """Of the device."""

    def reclaimable_tokens(self, key: EvictionKey, wanted: int) -> int:
        """Device tokens that rank below ``key``; stops at ``wanted``."""

    def host_room(self, key: EvictionKey) -> int:
        """Host tokens that are free, copies of what is on the device, or rank below ``key``."""

    def arriving_tokens(self, arriving: Sequence[Any]) -> int:
        """Length of the prompts that come with this step."""

    def load_needed(self, waiting: Sequence[Any], arriving: Sequence[Any]) -> bool:
        """Whether a request that waits, or comes now, finds a part of its prompt in host memory."""

    def given_up(self, tokens: int) -> None:
        """So much of a load that was begun will not be made."""


class PrefetchPlanning:
    """Plans the copies to make ahead.

    Args:
        site: the engine.
        max_loading_tokens: device loads under way at most.
        now_s: the time.
        plans: whether to plan at all; if not, it only measures.
    """

    def __init__(
        self, site: PlanningSite, max_loading_tokens: int, now_s: float, *, plans: bool = True
    ) -> None:
        self._site = site
        self._plans = plans
        self._max_loading_tokens = max_loading_tokens
        self._timer = StepTimer()
        self._transitions = TransitionCounts()
        self._running: dict[WorkflowKey, frozenset[str]] = {}
        self._load = RateEstimator()
        self._fetch = RateEstimator()
        self._prefill = RateEstimator()
        self._fetch_started_s: dict[int, float] = {}
        self._fetch_again_s: dict[int, float] = {}
        self._unfinished: dict[int, int] = {}
        self._next_s = 0.0
        self._called_s = now_s
        self._step_s = CHUNK_S

    @property
    def rates(self) -> Rates:
        """What has been measured so far."""
        return Rates(self._load.link(), self._fetch.link(), self._prefill.link())

    @property
    def pending(self) -> bool:
        """Whether there may be something to plan soon."""
        return self._plans and bool(self._site.weights.near_agents)

    def note_steps(self, key: WorkflowKey, steps: Mapping[str, float], now_s: float) -> None:
        """A workflow went on: learn how long steps take and what follows what."""
        self._timer.update(key, steps, now_s)
        running = frozenset(agent for agent, n in steps.items() if n == 0)
        for agent_id in sorted(running - self._running.get(key, frozenset())):
            self._transitions.ran(key, agent_id)
        self._running[key] = running

    def ended(self, key: WorkflowKey) -> None:
        """A workflow ended."""
        self._timer.forget(key)
        self._transitions.forget(key)
        self._running.pop(key, None)

    def loaded(self, tokens: int, seconds: float) -> None:
        """A load arrived."""
        self._load.observe(tokens, seconds)

    def note_fetched(
        self, owner: int, arrived_tokens: int, wanted_tokens: int, now_s: float
    ) -> None:
        """A fetch ended, with so many tokens in host memory."""
        started_s = self._fetch_started_s.pop(owner, None)
        if started_s is not None:
            self._fetch.observe(arrived_tokens, now_s - started_s)
        if arrived_tokens < wanted_tokens:
            self._fetch_again_s[owner] = now_s + FETCH_AGAIN_S

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A batch without loads computed so many tokens."""
        self._prefill.observe(tokens, seconds)

    def plan(
        self, waiting: Sequence[Any], arriving: Sequence[Any], now_s: float
    ) -> list[ControlMessage]:
        """What to copy now. Nothing is loaded ahead of what a request needs that has come.

        Args:
            waiting: the scheduler's waiting queue.
            arriving: the requests that come with this step.
            now_s: the time.
        """
        self._note_step(now_s, arriving)
        site = self._site
        if not self._plans:
            return []
        if not site.take_changed() and not (self.pending and now_s >= self._next_s):
            return []
        self._next_s = now_s + REPLAN_S
        messages: list[ControlMessage] = list(self._useless_fetches())
        self._count_given_up()
        self._fetch_again_s = {n: s for n, s in self._fetch_again_s.items() if s > now_s}
        candidates, causes = self._candidates(now_s)
        if not candidates:
            return messages
        rates = self.rates
        view = PlannerView(
            load_link=rates.load,
            fetch_link=rates.fetch,
            loading_tokens=site.loading_tokens,
            fetching_tokens=site.fetching_tokens,
            request_load_waiting=site.load_needed(waiting, arriving),
            load_slot_free=site.slot_free(),
        )
        plan = plan_prefetch(candidates, view, self._limits(), self._room)
        for load in plan.loads:
            messages.append(LoadAhead(load.key, load.end_tokens, causes[load.key]))
            left = (
                sum(
                    part.tokens
                    for candidate in candidates
                    if candidate.key == load.key
                    for part in candidate.stretches
                    if part.place == "host"
                )
                - load.tokens
            )
            self._unfinished[load.key] = max(0, left)
        planned: list[Hashable] = []
        for fetch in plan.fetches:
            head = site.fetch_head(fetch.key, fetch.start_tokens + site.page_tokens)
            if head in planned:
                continue  # another owner's fetch brings the same beginning
            planned.append(head)
            self._fetch_started_s[fetch.key] = now_s
            messages.append(FetchAhead(fetch.key, fetch.end_tokens, causes[fetch.key]))
        return messages

    def _limits(self) -> PlannerLimits:
        link = self._load.link()
        page = self._site.page_tokens
        chunk = MIN_CHUNK_TOKENS if link is None else link.tokens_within(self._step_s)
        chunk = min(max(chunk, MIN_CHUNK_TOKENS, page), max(self._max_loading_tokens, page))
        return PlannerLimits(
            page_tokens=page,
            max_in_flight_tokens=self._max_loading_tokens,
            chunk_tokens=chunk // page * page,
            fetch_horizon_steps=NEAR_STEPS,
        )

    def _candidates(self, now_s: float) -> tuple[list[Candidate[int]], dict[int, WorkflowKey]]:
        site, weights = self._site, self._site.weights
        candidates: dict[int, Candidate[int]] = {}
        causes: dict[int, WorkflowKey] = {}
        copyable: dict[int, tuple[Stretch, ...]] = {}
        fetchable = site.remembers_paths
        for agent, workflows in weights.near_agents.items():
            for key in _nearest(workflows):
                steps = workflows[key]
                owners = [
                    owner
                    for owner in weights.owners_of(agent, key)
                    if (owner.nodes or fetchable)
                    and self._copyable(owner, copyable)
                    and ((known := candidates.get(owner.number)) is None or known.steps >= steps)
                ]
                if not owners:
                    continue
                due_in_s = self._due_in_s(key, steps, now_s)
                urgency = (steps, inf if due_in_s is None else due_in_s)
                choices = weights.choices(key)
                sources = sorted(self._running.get(key, frozenset()).union(choices))
                probability = self._transitions.probability(key[0], sources, agent[1], choices)
                for owner in owners:
                    number = owner.number
                    known = candidates.get(number)
                    if known is None or urgency < _urgency(known):
                        causes[number] = key
                        candidates[number] = Candidate(
                            number, steps, copyable[number], due_in_s, probability
                        )
            if len(candidates) >= MAX_CANDIDATES:
                break
        return list(candidates.values()), causes

    def _copyable(self, owner: Owner[Any], known: dict[int, tuple[Stretch, ...]]) -> bool:
        """Whether a part of the owner's path could be copied; its stretches go into ``known``."""
        number = owner.number
        stretches = known.get(number)
        if stretches is None:
            stretches = ()
            if self._site.path_tokens(number) or not self._site.on_device(owner):
                stretches = tuple(self._stretches(owner))
            if not any(part.place in ("host", "storage") for part in stretches):
                stretches = ()
            known[number] = stretches
        return bool(stretches)

    def _due_in_s(self, key: WorkflowKey, steps: float, now_s: float) -> float | None:
        """None also between two steps: nothing tells how long the pause will be."""
        if not self._running.get(key):
            return None
        return self._timer.due_in_s(key, steps, now_s)

    def _stretches(self, owner: Owner[Any]) -> Iterator[Stretch]:
        site = self._site
        length = 0
        for stretch in site.stretches(owner):
            length += stretch.tokens
            yield stretch
        missing = site.path_tokens(owner.number) - length
        if missing <= 0:
            return
        if owner.number in site.fetches:
            yield Stretch(missing, "fetching")
        elif owner.number not in self._fetch_again_s and missing <= site.host_room(
            eviction_key(owner.kind, owner.order, 0, 0.0)
        ):
            yield Stretch(missing, "storage")

    def _room(self, candidate: Candidate[int]) -> int:
        """Device tokens that are free or hold what is needed later than this."""
        site = self._site
        owner = site.weights.owner(candidate.key)
        if owner is None:
            return 0
        wanted = min(sum(part.tokens for part in candidate.stretches), self._max_loading_tokens)
        free = site.free_tokens()
        if free >= wanted:
            return free
        return free + site.reclaimable_tokens(needed_sooner(owner), wanted - free)

    def _note_step(self, now_s: float, arriving: Sequence[Any]) -> None:
        """Estimate when the scheduler comes back: after a decode, or after what arrives now."""
        step_s = min(now_s - self._called_s, MAX_CHUNK_S)
        self._called_s = now_s
        prefill = self._prefill.link()
        tokens = self._site.arriving_tokens(arriving)
        if tokens and prefill is not None:
            step_s = prefill.seconds(tokens)
        self._step_s = min(max(step_s, CHUNK_S), MAX_CHUNK_S)

    def _useless_fetches(self) -> Iterator[CancelFetch]:
        for number in self._site.fetches:
            if self._steps(number) > NEAR_STEPS:
                self._fetch_started_s.pop(number, None)
                yield CancelFetch(number)

    def _count_given_up(self) -> None:
        """Loads that were begun and will not be finished, as their branch was not taken."""
        for number, left in list(self._unfinished.items()):
            steps = self._steps(number)
            if steps > NEAR_STEPS and left:
                self._site.given_up(left)
            if steps > NEAR_STEPS or steps == 0 or not left:
                del self._unfinished[number]

    def _steps(self, number: int) -> float:
        owner = self._site.weights.owner(number)
        return inf if owner is None else owner.steps


def _nearest(workflows: Mapping[WorkflowKey, float]) -> Iterable[WorkflowKey]:
    """The workflows in which an agent is nearest."""
    if len(workflows) == 1:
        return workflows
    return sorted(workflows, key=workflows.__getitem__)[:_WORKFLOWS_PER_AGENT]


def _urgency(candidate: Candidate[int]) -> tuple[float, float]:
    return (candidate.steps, inf if candidate.due_in_s is None else candidate.due_in_s)
