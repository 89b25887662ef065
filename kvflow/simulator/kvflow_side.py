"""KVFlow on a simulated engine: hints, copies ahead of need, requests that wait for them.

What to copy is planned by the plugin's own ``PrefetchPlanning``, whom to pass over is decided by
``Holding``, what became of the copies is counted by ``PrefetchUsage``. What stands here is the glue
that ``sglang_plugin/transfers.py`` and ``schedule.py`` are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import inf
from typing import Final

from kvflow.eviction import Owner
from kvflow.prefetch import (
    Holding,
    PrefetchUsage,
    WaitingRequest,
    choose_load,
)
from kvflow.sglang_plugin.control import (
    CancelFetch,
    ControlMessage,
    FetchAhead,
    LoadAhead,
    ServiceUpdate,
    WorkflowKey,
)
from kvflow.sglang_plugin.transfers import needed_sooner
from kvflow.simulator.base import EngineModel
from kvflow.simulator.batches import Batch
from kvflow.simulator.cache import Landed, LoadUnderWay, TieredCache, path_above
from kvflow.simulator.costs import CostModel
from kvflow.simulator.knowledge import Knowledge
from kvflow.simulator.planning_site import WAITING_PEEKED, Planning, Site, StepsObserver
from kvflow.simulator.radix import Node
from kvflow.simulator.requests import Request
from kvflow.simulator.sides import RequestObserver, StockSide
from kvflow.simulator.storage import Fetch

__all__ = ["Cause", "KVFlowSide"]

Cause = tuple[WorkflowKey, int]
"""The workflow a copy was made for, and the number of the owner whose path it is."""

CALIBRATION_TOKENS: Final = (64, 256, 64, 256)
"""Loads that ``kvflow.sglang_plugin.transfers`` times before the first request."""

MIN_TIMED_PREFILL_TOKENS: Final = 64
"""``kvflow.sglang_plugin.runtime.MIN_TIMED_PREFILL_TOKENS``."""


class KVFlowSide(StockSide):
    """What KVFlow does beside ranking nodes.

    Args:
        prefetches: whether copies are made ahead of need (``KVFLOW_PREFETCH``).

    Attributes:
        usage: what became of what was prefetched.
        late_tokens: what was prefetched and not there yet when a request read it.
    """

    def __init__(
        self,
        cache: TieredCache,
        observer: RequestObserver,
        *,
        knowledge: Knowledge,
        model: EngineModel,
        costs: CostModel,
        prefetches: bool,
    ) -> None:
        super().__init__(cache, observer)
        self.usage: PrefetchUsage[Node, Cause] = PrefetchUsage()
        self.late_tokens = 0
        self._knowledge = knowledge
        self._weights = knowledge.weights
        self._choice = model.load_choice
        self._prefetches = prefetches and cache.has_host
        self._holding = Holding()
        self._ahead: set[LoadUnderWay] = set()
        self._late: set[LoadUnderWay] = set()
        site = Site(cache, knowledge)
        self._planning = Planning(site, model.prefetch_max_tokens, 0.0, plans=self._prefetches)
        self._weights.observer = StepsObserver(self._planning, cache)
        knowledge.attach(cache.rank_changed)
        knowledge.keeps_paths = self._prefetches and cache.storage is not None
        cache.observer = self
        if cache.has_host:
            for tokens in CALIBRATION_TOKENS:
                self._planning.loaded(tokens, costs.load.seconds(tokens))

    # Told by the tree.

    def split(self, upper: Node, lower: Node) -> None:
        self._knowledge.split(upper, lower)
        if len(self.usage):
            self.usage.split(upper, lower, len(upper))

    def left_device(self, node: Node) -> None:
        if len(self.usage):
            for cause, _ in self.usage.evicted(node):
                self._weights.prefetched(cause[0], used=False)

    def removed(self, node: Node) -> None:
        self._knowledge.removed(node)

    # Told by the engine.

    def take(
        self,
        messages: Sequence[ServiceUpdate],
        requests: Sequence[Request],
        waiting: Iterable[Request],
    ) -> None:
        planned: list[ControlMessage] = []
        if self._prefetches:
            queued = list(islice(waiting, WAITING_PEEKED))
            planned = self._planning.plan(queued, requests, self.cache.now_s)
        for message in messages:
            self._knowledge.apply(message)
        for copy in planned:
            if isinstance(copy, LoadAhead):
                self._load(copy)
            elif isinstance(copy, FetchAhead):
                self._fetch(copy)
            elif isinstance(copy, CancelFetch):
                self.cache.cancel_fetch(copy.owner)
        for request in requests:
            if request.key is not None:
                self._weights.called(request.key, request.call.agent_id)
            if self._covering(request) is None:
                self.fetch_for(request)

    def _load(self, message: LoadAhead) -> None:
        cache = self.cache
        owner = self._weights.owner(message.owner)
        if owner is None or cache.load_queued or cache.loads:
            return
        target = self._host_node_at(owner, message.end_tokens)
        if target is None:
            return
        missing = []
        for node in path_above(target):
            if node.device:
                break
            missing.append(node)
        if not cache.load_back(target, needed_sooner(owner)):
            return
        load = cache.start_loads()
        if load is not None:
            self._ahead.add(load)
        for node in missing:
            self.usage.loaded(node, len(node), (message.cause, message.owner))

    def _host_node_at(self, owner: Owner[Node], end_tokens: int) -> Node | None:
        """The node that ends at ``end_tokens``, split off if need be; None if nothing is to load.

        Everything up to it is on the device or in host memory.
        """
        last = None
        for node in self._knowledge.chain(owner, self.cache.tree.root):
            last = node
            if not (node.device or node.host):
                return None
            if node.end < end_tokens:
                continue
            if node.device:
                return None
            if node.start < end_tokens < node.end:
                return self.cache.tree.split_quietly(node, end_tokens)
            return node if node.end == end_tokens else None
        return None if last is None or last.device else last

    def _fetch(self, message: FetchAhead) -> None:
        owner = self._weights.owner(message.owner)
        known = self._knowledge.paths.get(message.owner)
        if owner is None or known is None:
            return
        fetch = self.cache.fetch(
            known[0], message.end_tokens, owner=message.owner, below=needed_sooner(owner)
        )
        if fetch is None:
            self._planning.note_fetched(message.owner, 0, message.end_tokens, self.cache.now_s)

    def _covering(self, request: Request) -> Fetch | None:
        """A fetch under way that was made ahead and brings what the request begins with."""
        storage = self.cache.storage
        if storage is None:
            return None
        for fetch in storage.fetches:
            if fetch.owner is not None and fetch.covers(request.path, request.path[-1].aligned):
                return fetch
        return None

    def landed(self, landed: Landed) -> None:
        super().landed(landed)
        self._knowledge.changed = True
        for load in landed.loads:
            self._planning.loaded(load.copy.tokens, load.copy.seconds)
            self._ahead.discard(load)
            self._late.discard(load)
        for fetch in landed.fetches:
            if fetch.owner is not None:
                self._knowledge.find_again(fetch.owner, self.cache.tree)
                self._planning.note_fetched(
                    fetch.owner, fetch.tokens, fetch.wanted_tokens, self.cache.now_s
                )

    def passed_over(self, waiting: Sequence[Request]) -> frozenset[str]:
        own = super().passed_over(waiting)
        storage = self.cache.storage
        fetching = storage is not None and any(each.owner is not None for each in storage.fetches)
        if not waiting or not (self._ahead or fetching):
            if self._holding.waiting:
                self._holding.passed_over((), None)
            return own
        requests = [self._waiting_request(request) for request in waiting]
        return own | self._holding.passed_over(requests, self.cache.now_s)

    def _waiting_request(self, request: Request) -> WaitingRequest:
        now_s = self.cache.now_s
        fetch = self._covering(request)
        rates = self._planning.rates
        if fetch is not None:
            arrives_in_s = rates.fetch.seconds(fetch.tokens) if rates.fetch is not None else 1.0
            return WaitingRequest(request.rid, arrives_in_s, into_host=True)
        load = self._load_read_by(
            node
            for node, _ in self.cache.tree.walk(request.path, request.path[-1].aligned)
            if node.loading_until_s > now_s
        )
        if load is not None:
            arrives_in_s = rates.load.seconds(load.copy.tokens) if rates.load is not None else 0.0
            return WaitingRequest(request.rid, arrives_in_s)
        return WaitingRequest(request.rid)

    def _load_read_by(self, nodes: Iterable[Node]) -> LoadUnderWay | None:
        """The last load made ahead that any of these nodes is part of."""
        until_s = max((node.loading_until_s for node in nodes), default=0.0)
        return next((load for load in self._ahead if load.copy.end_s == until_s), None)

    def wants_load(self, tokens: int) -> bool:
        rates = self._planning.rates
        return choose_load(tokens, rates.load, rates.prefill, self._choice) == "load"

    def formed(self, batch: Batch) -> float:
        if not self._ahead and not len(self.usage):
            return 0.0
        nodes = {
            node: None
            for request in batch.requests
            if request.node is not None
            for node in path_above(request.node)
        }
        load = self._load_read_by(nodes)
        ready_s = 0.0
        if load is not None and load.copy.end_s > self.cache.now_s:
            ready_s = load.copy.end_s
            if load not in self._late:
                self._late.add(load)
                self.late_tokens += load.copy.tokens
        for cause, _ in self.usage.used(nodes):
            self._weights.prefetched(cause[0], used=True)
        return ready_s

    def prefilled(self, tokens: int, seconds: float) -> None:
        if tokens >= MIN_TIMED_PREFILL_TOKENS:
            self._planning.prefilled(tokens, seconds)

    def finished(self, request: Request) -> None:
        self._knowledge.finished(self.cache.tree, request)

    def attention_s(self, now_s: float) -> float | None:
        if not self._planning.pending:
            return None
        if self._knowledge.changed:
            return now_s
        attention_s = self._planning.opens_s
        # A chunk that has landed makes room for the next one.
        if self._ahead and self.cache.next_landing_s is not None:
            attention_s = min(attention_s, self.cache.next_landing_s)
        return None if attention_s == inf else attention_s
