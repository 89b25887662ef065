"""The first rank's part of prefetching: it measures, estimates and plans.

What is planned becomes messages that all ranks receive with the same step's requests. Nothing is
decided by any other clock than the first rank's, so ranks can't disagree.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final

from kvflow.eviction import Owner, eviction_key
from kvflow.prefetch import (
    Candidate,
    Place,
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
from kvflow.sglang_plugin.weights import NEAR_STEPS

if TYPE_CHECKING:
    from kvflow.sglang_plugin.cache import KVFlowRadixCache

__all__ = ["Foresight"]

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
_WAITING_PEEKED: Final = 8


class Foresight:
    """Plans the copies to make ahead, for the ranks of one engine.

    Args:
        cache: the first rank's.
        max_loading_tokens: device loads under way at most.
        plans: whether to plan at all; if not, it only measures.
    """

    def __init__(
        self, cache: KVFlowRadixCache, max_loading_tokens: int, *, plans: bool = True
    ) -> None:
        self._cache = cache
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
        self._called_s = time.monotonic()
        self._step_s = CHUNK_S
        cache.kvflow_weights.observer = self
        cache.kvflow_transfers.observer = self
        for tokens, seconds in cache.kvflow_calibration:
            self._load.observe(tokens, seconds)

    @property
    def rates(self) -> Rates:
        """What has been measured so far."""
        return Rates(self._load.link(), self._fetch.link(), self._prefill.link())

    @property
    def pending(self) -> bool:
        """Whether there may be something to plan soon."""
        return self._plans and bool(self._cache.kvflow_weights.near_agents)

    def steps_changed(self, key: WorkflowKey, steps: Mapping[str, float]) -> None:
        """A workflow went on: learn how long steps take and what follows what."""
        now_s = time.monotonic()
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

    def fetched(self, owner: int, arrived_tokens: int, wanted_tokens: int) -> None:
        """A fetch ended, with so many tokens in host memory."""
        now_s = time.monotonic()
        started_s = self._fetch_started_s.pop(owner, None)
        if started_s is not None:
            self._fetch.observe(arrived_tokens, now_s - started_s)
        if arrived_tokens < wanted_tokens:
            self._fetch_again_s[owner] = now_s + FETCH_AGAIN_S

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A batch without loads computed so many tokens."""
        self._prefill.observe(tokens, seconds)

    def messages(self, waiting: Sequence[Any], arriving: Sequence[Any]) -> list[ControlMessage]:
        """What to copy now. Nothing is loaded ahead of what a request needs that has come.

        Args:
            waiting: the scheduler's waiting queue.
            arriving: what comes with this step: requests, as SGLang's tokenizer sends them.
        """
        now_s = time.monotonic()
        arriving = [one for item in arriving for one in getattr(item, "batch", None) or (item,)]
        self._note_step(now_s, arriving)
        cache = self._cache
        if not self._plans or not (
            cache.kvflow_changed or (self.pending and now_s >= self._next_s)
        ):
            return []
        cache.kvflow_changed = False
        self._next_s = now_s + REPLAN_S
        messages: list[ControlMessage] = list(self._useless_fetches())
        self._count_given_up()
        self._fetch_again_s = {n: s for n, s in self._fetch_again_s.items() if s > now_s}
        candidates, causes = self._candidates(now_s)
        if not candidates:
            return messages
        transfers = cache.kvflow_transfers
        rates = self.rates
        view = PlannerView(
            load_link=rates.load,
            fetch_link=rates.fetch,
            loading_tokens=transfers.loading_tokens,
            fetching_tokens=transfers.fetching_tokens,
            request_load_waiting=self._load_needed(waiting, arriving),
            load_slot_free=transfers.slot_free(),
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
        planned: list[tuple[Any, Any]] = []
        for fetch in plan.fetches:
            path = cache.kvflow_paths[fetch.key]
            head = (path.tokens[: fetch.start_tokens + cache.page_size].tobytes(), path[1:])
            if head in planned:
                continue  # another owner's fetch brings the same beginning
            planned.append(head)
            self._fetch_started_s[fetch.key] = now_s
            messages.append(FetchAhead(fetch.key, fetch.end_tokens, causes[fetch.key]))
        return messages

    def _limits(self) -> PlannerLimits:
        link = self._load.link()
        page = self._cache.page_size
        chunk = MIN_CHUNK_TOKENS if link is None else link.tokens_within(self._step_s)
        chunk = min(max(chunk, MIN_CHUNK_TOKENS, page), max(self._max_loading_tokens, page))
        return PlannerLimits(
            page_tokens=page,
            max_in_flight_tokens=self._max_loading_tokens,
            chunk_tokens=chunk // page * page,
            fetch_horizon_steps=NEAR_STEPS,
        )

    def _candidates(self, now_s: float) -> tuple[list[Candidate[int]], dict[int, WorkflowKey]]:
        weights = self._cache.kvflow_weights
        candidates: dict[int, Candidate[int]] = {}
        causes: dict[int, WorkflowKey] = {}
        for agent, workflows in weights.near_agents.items():
            for key in sorted(workflows, key=workflows.__getitem__)[:_WORKFLOWS_PER_AGENT]:
                due_in_s = self._due_in_s(key, workflows[key], now_s)
                probability = self._transitions.probability(
                    key[0], sorted(self._running.get(key, ())), agent[1]
                )
                for owner in weights.owners_of(agent, key):
                    known = candidates.get(owner.number)
                    if known is not None and _urgency(known) <= (
                        workflows[key],
                        inf if due_in_s is None else due_in_s,
                    ):
                        continue
                    stretches = known.stretches if known else tuple(self._stretches(owner))
                    if any(part.place in ("host", "storage") for part in stretches):
                        causes[owner.number] = key
                        candidates[owner.number] = Candidate(
                            owner.number, workflows[key], stretches, due_in_s, probability
                        )
            if len(candidates) >= MAX_CANDIDATES:
                break
        return list(candidates.values()), causes

    def _due_in_s(self, key: WorkflowKey, steps: float, now_s: float) -> float | None:
        """None also between two steps: nothing tells how long the pause will be."""
        if not self._running.get(key):
            return None
        return self._timer.due_in_s(key, steps, now_s)

    def _stretches(self, owner: Owner[Any]) -> Iterator[Stretch]:
        cache = self._cache
        transfers = cache.kvflow_transfers
        length = 0
        for node in cache.chain(owner):
            length += len(node.key)
            yield Stretch(len(node.key), self._place(node))
        path = cache.kvflow_paths.get(owner.number)
        if path is None or len(path.tokens) <= length:
            return
        missing = len(path.tokens) - length
        if owner.number in transfers.fetches:
            yield Stretch(missing, "fetching")
        elif owner.number not in self._fetch_again_s and missing <= self._host_room(owner):
            yield Stretch(missing, "storage")

    def _place(self, node: Any) -> Place:
        if self._cache.kvflow_transfers.is_loading(node):
            return "loading"
        if not node.evicted:
            return "device"
        return "host" if node.backuped else "nowhere"

    def _room(self, candidate: Candidate[int]) -> int:
        """Device tokens that are free or hold what is needed later than this."""
        cache = self._cache
        owner = cache.kvflow_weights.owner(candidate.key)
        if owner is None:
            return 0
        wanted = min(sum(part.tokens for part in candidate.stretches), self._max_loading_tokens)
        free = int(cache.token_to_kv_pool_allocator.available_size())
        if free >= wanted:
            return free
        key = needed_sooner(owner)
        return free + int(cache.tree_core.reclaimable_tokens(key, wanted - free))

    def _host_room(self, owner: Owner[Any]) -> int:
        cache = self._cache
        free = int(cache.cache_controller.mem_pool_host.available_size())
        below = cache.tree_core.evictable_host_leaves.index.below(
            eviction_key(owner.kind, owner.steps, 0, 0.0)
        )
        duplicates = int(cache.tree_core.host_duplicate_tokens())
        return free + duplicates + sum(len(node.key) for node in below)

    def _note_step(self, now_s: float, arriving: Sequence[Any]) -> None:
        """Estimate when the scheduler comes back: after a decode, or after what arrives now."""
        step_s = min(now_s - self._called_s, MAX_CHUNK_S)
        self._called_s = now_s
        prefill = self._prefill.link()
        tokens = sum(len(getattr(request, "input_ids", None) or ()) for request in arriving)
        if tokens and prefill is not None:
            step_s = prefill.seconds(tokens)
        self._step_s = min(max(step_s, CHUNK_S), MAX_CHUNK_S)

    def _load_needed(self, waiting: Sequence[Any], arriving: Sequence[Any]) -> bool:
        """Whether a request that waits, or comes now, finds a part of its prompt in host memory."""
        cache = self._cache
        paths = [cache.prompt(req) for req in waiting[:_WAITING_PEEKED]]
        paths += [
            path
            for request in arriving[:_WAITING_PEEKED]
            if (path := cache.arriving_prompt(request)) is not None
        ]
        return any(
            node.evicted and node.backuped for path in paths for node, _ in cache.peek(*path)
        )

    def _useless_fetches(self) -> Iterator[CancelFetch]:
        for number in self._cache.kvflow_transfers.fetches:
            if self._steps(number) > NEAR_STEPS:
                self._fetch_started_s.pop(number, None)
                yield CancelFetch(number)

    def _count_given_up(self) -> None:
        """Loads that were begun and will not be finished, as their branch was not taken."""
        for number, left in list(self._unfinished.items()):
            steps = self._steps(number)
            if steps > NEAR_STEPS and left:
                self._cache.kvflow_metrics.prefetch_outcome("cancelled", left)
            if steps > NEAR_STEPS or steps == 0 or not left:
                del self._unfinished[number]

    def _steps(self, number: int) -> float:
        owner = self._cache.kvflow_weights.owner(number)
        return inf if owner is None else owner.steps


def _urgency(candidate: Candidate[int]) -> tuple[float, float]:
    return (candidate.steps, inf if candidate.due_in_s is None else candidate.due_in_s)
