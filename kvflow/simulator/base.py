"""What a simulation is given beside workload and costs, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

__all__ = [
    "POLICIES",
    "EngineModel",
    "Graphs",
    "Order",
    "PolicyName",
    "SimulationResult",
    "TierTokens",
    "WritePolicy",
]

PolicyName = Literal[
    "lru",
    "lfu",
    "slru",
    "priority",
    "ttl",
    "hicache-lru",
    "kvflow-eviction",
    "kvflow",
    "clairvoyant",
]
"""What decides which KV is kept. ``docs/simulator.md`` describes each.

The first five are the device tier alone, as SGLang is without HiCache; the others use the host
tier, and storage, where the sizes have one. ``EngineModel.host_for_all`` gives it to all.
"""

POLICIES: Final[tuple[PolicyName, ...]] = get_args(PolicyName)

Order = Literal["steps", "time"]
Graphs = Literal["declared", "learned"]
WritePolicy = Literal["write_through", "write_through_selective", "write_back"]


@dataclass(frozen=True, slots=True)
class EngineModel:
    """How the engine is set up. Defaults are those of SGLang 0.5.23 on an H100.

    Attributes:
        max_running_requests: requests that decode at once. SGLang derives 2,048 to 4,096 from the
            pool (``kv_cache_configurator.py``); CUDA graphs end at 256 (``memory_hook.py``), which
            is taken here.
        chunked_prefill_tokens: new tokens of one prefill step; 8,192 on 60 to 160 GB of memory,
            4,096 on 20 to 60, 2,048 below (``memory_hook.py``).
        max_prefill_tokens: a batch takes no further request above this (``schedule.py``).
        write_policy: when a node is copied to the host tier (``memory.py``).
        load_back_tokens: less than this is computed instead of loaded
            (``unified_radix_cache.py``, ``load_back_threshold``).
        fetch_tokens: less than this is not fetched from storage (the same,
            ``prefetch_threshold``).
        load_choice: KVFlow's ``KVFLOW_LOAD``.
        prefetch_max_tokens: KVFlow's ``KVFLOW_PREFETCH_MAX_TOKENS``.
        order: KVFlow's ``KVFLOW_ORDER``.
        graphs: what the clients tell the service: ``declared``, their graphs and each start and
            finish; ``learned``, starts and finishes alone.
        hint_s: from a step's start or finish until the engine knows of it.
        client_s: what the client and the way there and back take, for each call.
        receive_s: what the engine's front end (HTTP, tokenizer) takes for a request, one after the
            other, before the scheduler has it. With any such time the first of several requests
            that are sent at once is scheduled alone, if the engine is idle.
        host_for_all: let every policy use the host tier.
    """

    max_running_requests: int = 256
    chunked_prefill_tokens: int = 8192
    max_prefill_tokens: int = 16384
    write_policy: WritePolicy = "write_through"
    load_back_tokens: int = 10
    fetch_tokens: int = 256
    load_choice: Literal["auto", "load", "recompute"] = "auto"
    prefetch_max_tokens: int = 8192
    order: Order = "steps"
    graphs: Graphs = "declared"
    hint_s: float = 0.0
    client_s: float = 0.0
    receive_s: float = 0.0
    host_for_all: bool = False


@dataclass(frozen=True, slots=True)
class TierTokens:
    """Prompt tokens that were found, by the tier they were in when the request was scheduled."""

    device: int = 0
    host: int = 0
    storage: int = 0

    @property
    def all(self) -> int:
        return self.device + self.host + self.storage


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What came of one policy. Calls of the warm-up are in ``calls_in_all`` alone; tokens moved,
    predictions and steps are those of the whole run.

    Attributes:
        hits: prompt tokens that were found in the cache.
        bound_hit_tokens: the most that any policy could have found with these calls in this order,
            see ``kvflow.eviction.clairvoyant_hit_pages``; None unless asked for.
        wall_s: from the end of the warm-up to the end of the last call, in simulated time.
        ttft_s: quantiles of the time to the first token, within 1 %: ``0.5``, ``0.9``, ``0.99``.
        total_s: the same of the time to the last token.
        workflow_s: the same of whole workflows, from their beginning to their end.
        loaded_tokens: host to device, for requests that had come.
        written_tokens: device to host.
        prefetched_tokens: host to device, ahead of need; those were then used, or evicted unread
            (wasted), or are still there (unused).
        late_tokens: prefetched tokens that a request had to wait for.
        fetched_tokens: storage to host.
        evicted_tokens: given up on the device.
        prediction_hits: starts of agents that KVFlow's hints had announced; 0 without hints.
        prediction_misses: starts that they had not.
        decode_steps: of the engine.
        prefill_steps: of the engine.
    """

    policy: PolicyName
    calls: int
    calls_in_all: int
    workflows: int
    prompt_tokens: int
    output_tokens: int
    hits: TierTokens
    bound_hit_tokens: int | None
    wall_s: float
    ttft_s: dict[float, float]
    total_s: dict[float, float]
    workflow_s: dict[float, float]
    loaded_tokens: int
    written_tokens: int
    evicted_tokens: int
    prefetched_tokens: int
    used_tokens: int
    wasted_tokens: int
    unused_tokens: int
    late_tokens: int
    fetched_tokens: int
    prediction_hits: int
    prediction_misses: int
    prefill_steps: int
    decode_steps: int

    @property
    def hit_tokens(self) -> int:
        return self.hits.all

    @property
    def hit_rate(self) -> float:
        """Share of the prompts' tokens that were found."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def share_of_bound(self) -> float | None:
        """Found tokens over the most that could have been found; None if that is not known."""
        if self.bound_hit_tokens is None:
            return None
        return self.hit_tokens / self.bound_hit_tokens if self.bound_hit_tokens else 1.0

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.wall_s if self.wall_s else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.wall_s if self.wall_s else 0.0
