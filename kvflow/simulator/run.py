"""Runs a workload on a simulated engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import simpy

from kvflow.errors import InvalidInputError
from kvflow.prefetch import PrefetchUsage
from kvflow.simulator.base import POLICIES, EngineModel, PolicyName, SimulationResult, TierTokens
from kvflow.simulator.cache import TieredCache
from kvflow.simulator.call_log import CallLog
from kvflow.simulator.clients import Clients, LiveWorkflow
from kvflow.simulator.costs import CostModel
from kvflow.simulator.engine import Engine
from kvflow.simulator.knowledge import Knowledge
from kvflow.simulator.kvflow_side import Cause, KVFlowSide
from kvflow.simulator.measures import Tally
from kvflow.simulator.oracle import Oracle
from kvflow.simulator.prefixes import PrefixPool
from kvflow.simulator.radix import Node
from kvflow.simulator.ranking import (
    LFURanking,
    LRURanking,
    PriorityRanking,
    Ranking,
    SLRURanking,
    TTLRanking,
)
from kvflow.simulator.requests import Request
from kvflow.simulator.sides import StockSide
from kvflow.simulator.ttl import TTLSide
from kvflow.workload import CacheSizes, Workload

__all__ = ["simulate"]


@dataclass(frozen=True, slots=True)
class _Traits:
    """What a policy does.

    Attributes:
        uses_host: whether it has the host tier, and storage.
        hints: whether graphs and steps are declared to it.
        weighs: whether it knows which nodes will be read; then victims are cut to what is needed,
            and what is worth less than all in host memory is not written there.
        prefetches: whether it copies ahead of need.
    """

    uses_host: bool = False
    hints: bool = False
    weighs: bool = False
    prefetches: bool = False


_TRAITS: Final[dict[PolicyName, _Traits]] = {
    "lru": _Traits(),
    "lfu": _Traits(),
    "slru": _Traits(),
    "priority": _Traits(),
    "ttl": _Traits(),
    "hicache-lru": _Traits(uses_host=True),
    "kvflow-eviction": _Traits(uses_host=True, hints=True, weighs=True),
    "kvflow": _Traits(uses_host=True, hints=True, weighs=True, prefetches=True),
    "clairvoyant": _Traits(uses_host=True, weighs=True),
}

_STOCK_RANKINGS: Final[dict[PolicyName, type[LRURanking]]] = {
    "lru": LRURanking,
    "hicache-lru": LRURanking,
    "lfu": LFURanking,
    "slru": SLRURanking,
    "priority": PriorityRanking,
}


def simulate(
    workload: Workload,
    cache: CacheSizes,
    costs: CostModel,
    policy: PolicyName,
    *,
    engine: EngineModel = EngineModel(),  # noqa: B008  (frozen)
    bound: bool = False,
) -> SimulationResult:
    """Run a workload on a model of the engine under one policy.

    The same arguments give the same result, whatever the process. Memory grows with what is live
    at one time, not with the number of calls; with ``bound`` by some 100 bytes a call, and with a
    storage tier by what is stored, as that has no limit.

    Args:
        workload: what the clients do.
        cache: sizes of the tiers.
        costs: how long operations take.
        policy: what decides which KV is kept.
        engine: how the engine is set up.
        bound: also work out the most that any policy could have found (see
            ``SimulationResult.bound_hit_tokens``).

    Raises:
        InvalidInputError: the policy is unknown, or a call does not fit into the device tier.
    """
    if policy not in POLICIES:
        raise InvalidInputError(["policy"], f"{policy!r} is unknown; use {', '.join(POLICIES)}")
    return _Simulation(workload, cache, costs, policy=policy, model=engine, bound=bound).run()


class _Simulation:
    """One run, with what is counted of it."""

    def __init__(
        self,
        workload: Workload,
        sizes: CacheSizes,
        costs: CostModel,
        *,
        policy: PolicyName,
        model: EngineModel,
        bound: bool,
    ) -> None:
        traits = _TRAITS[policy]
        self._policy = policy
        self._workload = workload
        self._env = simpy.Environment()
        self._tally = Tally()
        self._pool = PrefixPool(sizes.page_tokens)
        self._log = CallLog(sizes.page_tokens) if bound else None
        self._oracle = Oracle(self._pool) if policy == "clairvoyant" else None
        self._knowledge = Knowledge(model.order) if traits.hints else None
        ttl = TTLRanking()
        ranking: Ranking
        if self._knowledge is not None:
            ranking = self._knowledge
        elif self._oracle is not None:
            ranking = self._oracle
        else:
            ranking = ttl if policy == "ttl" else _STOCK_RANKINGS[policy]()
        self._cache = TieredCache(
            sizes,
            model,
            costs,
            ranking,
            uses_host=traits.uses_host or model.host_for_all,
            cuts_victims=traits.weighs,
            refuses_backups=traits.weighs,
        )
        side: StockSide
        if self._knowledge is not None:
            side = KVFlowSide(
                self._cache,
                self,
                knowledge=self._knowledge,
                model=model,
                costs=costs,
                prefetches=traits.prefetches,
            )
        elif policy == "ttl":
            side = TTLSide(self._cache, self, ranking=ttl, costs=costs)
        else:
            side = StockSide(self._cache, self)
        self._clients = Clients(
            self._env,
            workload,
            self._pool,
            model,
            self,
            declares=traits.hints,
            largest_tokens=self._cache.device_capacity - 2 * sizes.page_tokens,
        )
        self._side = side
        self._engine = Engine(self._env, self._cache, costs, model, side)

    def run(self) -> SimulationResult:
        self._clients.begin(self._engine)
        self._env.run()
        if self._clients.live:
            raise RuntimeError(f"{self._clients.live} workflows came to a standstill")
        return self._result()

    def began(self, live: LiveWorkflow) -> None:
        if self._oracle is not None:
            self._oracle.began(live)

    def over(self, live: LiveWorkflow, now_s: float) -> None:
        if self._oracle is not None:
            self._oracle.over(live)
        tally = self._tally
        if tally.calls:
            tally.workflows += 1
            tally.workflow.add(now_s - live.began_s)

    def scheduled(self, request: Request) -> None:
        if self._log is not None:
            self._log.scheduled(request)
        if self._oracle is not None:
            self._oracle.scheduled(request)

    def computed(self, request: Request) -> None:
        if self._log is not None:
            self._log.computed(request)
        if self._oracle is not None:
            self._oracle.computed(request, self._cache.tree)

    def ended(self, request: Request) -> None:
        tally, now_s = self._tally, self._env.now
        tally.calls_in_all += 1
        counted = tally.calls_in_all > self._workload.warm_up_calls
        if self._log is not None:
            self._log.ended(request, counted=counted)
        if counted:
            tally.calls += 1
            tally.prompt_tokens += request.prompt_tokens
            tally.output_tokens += request.output_tokens
            tally.device_hits += request.hit_device
            tally.host_hits += request.hit_host
            tally.storage_hits += request.hit_storage
            tally.ttft.add(request.first_token_s - request.arrived_s)
            tally.total.add(now_s - request.arrived_s)
            tally.last_end_s = now_s
        elif tally.calls_in_all == self._workload.warm_up_calls:
            tally.counted_from_s = tally.last_end_s = now_s
        self._clients.ended(request)

    def _result(self) -> SimulationResult:
        tally, cache, engine = self._tally, self._cache, self._engine
        bound = None
        if self._log is not None:
            capacity = cache.device_capacity + cache.host_capacity
            bound = self._log.hit_tokens(None if cache.storage is not None else capacity)
        side = self._side
        usage: PrefetchUsage[Node, Cause] = PrefetchUsage()
        late_tokens = 0
        if isinstance(side, KVFlowSide):
            usage, late_tokens = side.usage, side.late_tokens
        trust = None if self._knowledge is None else self._knowledge.weights.trust
        return SimulationResult(
            policy=self._policy,
            calls=tally.calls,
            calls_in_all=tally.calls_in_all,
            workflows=tally.workflows,
            prompt_tokens=tally.prompt_tokens,
            output_tokens=tally.output_tokens,
            hits=TierTokens(tally.device_hits, tally.host_hits, tally.storage_hits),
            bound_hit_tokens=bound,
            wall_s=tally.last_end_s - tally.counted_from_s,
            ttft_s=tally.ttft.quantiles(),
            total_s=tally.total.quantiles(),
            workflow_s=tally.workflow.quantiles(),
            loaded_tokens=cache.load_link.tokens - usage.prefetched_tokens,
            written_tokens=cache.write_link.tokens,
            evicted_tokens=cache.evicted_tokens,
            prefetched_tokens=usage.prefetched_tokens,
            used_tokens=usage.used_tokens,
            wasted_tokens=usage.wasted_tokens,
            unused_tokens=usage.unused_tokens,
            late_tokens=late_tokens,
            fetched_tokens=0 if cache.storage is None else cache.storage.fetched_tokens,
            prediction_hits=0 if trust is None else trust.hits,
            prediction_misses=0 if trust is None else trust.misses,
            prefill_steps=engine.prefill_steps,
            decode_steps=engine.decode_steps,
        )
