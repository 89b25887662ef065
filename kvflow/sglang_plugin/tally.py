"""Running totals of one engine, for its reports to the service.

Plain numbers that the scheduler's thread adds to; the reporter's thread never reads them, it is
given copies.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Final

from kvflow.eviction import NodeKind
from kvflow.prefetch import LoadChoice
from kvflow.sglang_plugin.metrics import (
    AgentClass,
    Copy,
    EngineMetrics,
    Outcome,
    StallCause,
    Tier,
)

__all__ = ["FIRST_TOKEN_BOUNDS_S", "FirstTokenTimer", "Tally", "Totals"]

FIRST_TOKEN_BOUNDS_S: Final = tuple(round(0.001 * 2 ** (n / 2), 5) for n in range(35))
"""1 ms to 131 s, each 1.41 times the one before: a quantile read off it is at most that far off."""
MAX_AWAITED: Final = 10_000


@dataclass(slots=True)
class Totals:
    """The fields of ``kvflow.protocol.EngineTotals``, counted since the engine's start."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    device_hit_tokens: int = 0
    host_hit_tokens: int = 0
    storage_hit_tokens: int = 0
    evicted_device_tokens: int = 0
    evicted_host_tokens: int = 0
    loaded_tokens: int = 0
    fetched_tokens: int = 0
    prefetch_used_tokens: int = 0
    prefetch_wasted_tokens: int = 0
    prefetch_cancelled_tokens: int = 0
    prefetch_late_tokens: int = 0
    predictions_hit: int = 0
    predictions_missed: int = 0

    def as_dict(self) -> dict[str, int]:
        """A copy, by name."""
        return asdict(self)


class Tally:
    """Counts what is reported to it and passes it on.

    Args:
        then: where the metrics go as well.
    """

    def __init__(self, then: EngineMetrics) -> None:
        self.totals = Totals()
        self._then = then

    def evicted(self, tier: Tier, kind: NodeKind, tokens: int) -> None:
        if tier == "device":
            self.totals.evicted_device_tokens += tokens
        else:
            self.totals.evicted_host_tokens += tokens
        self._then.evicted(tier, kind, tokens)

    def served(self, agent_class: AgentClass, query_tokens: int, hit_tokens: int) -> None:
        self.totals.requests += 1
        self.totals.prompt_tokens += query_tokens
        self.totals.cached_tokens += hit_tokens
        self._then.served(agent_class, query_tokens, hit_tokens)

    def found(self, device_tokens: int, host_tokens: int, storage_tokens: int) -> None:
        self.totals.device_hit_tokens += max(0, device_tokens)
        self.totals.host_hit_tokens += max(0, host_tokens)
        self.totals.storage_hit_tokens += max(0, storage_tokens)
        self._then.found(device_tokens, host_tokens, storage_tokens)

    def decided(self, tier: Tier, seconds: float) -> None:
        self._then.decided(tier, seconds)

    def state(self, updates_applied: int, lease_held: bool, live_workflows: int) -> None:
        self._then.state(updates_applied, lease_held, live_workflows)

    def prefetched(self, copy: Copy, tokens: int, kv_bytes: int) -> None:
        if copy == "load":
            self.totals.loaded_tokens += tokens
        else:
            self.totals.fetched_tokens += tokens
        self._then.prefetched(copy, tokens, kv_bytes)

    def prefetch_outcome(self, outcome: Outcome, tokens: int) -> None:
        name = f"prefetch_{outcome}_tokens"
        setattr(self.totals, name, getattr(self.totals, name) + tokens)
        self._then.prefetch_outcome(outcome, tokens)

    def load_chosen(self, choice: LoadChoice, tokens: int) -> None:
        self._then.load_chosen(choice, tokens)

    def stalled(self, cause: StallCause, seconds: float) -> None:
        self._then.stalled(cause, seconds)

    def predictions(self, hits: int, misses: int) -> None:
        self.totals.predictions_hit = hits
        self.totals.predictions_missed = misses
        self._then.predictions(hits, misses)


class FirstTokenTimer:
    """How long requests wait at the scheduler for their first token: queue and prefill.

    What the tokenizer and HTTP take comes on top. Requests that never get one (aborted) are
    forgotten when ``MAX_AWAITED`` newer ones are under way.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(FIRST_TOKEN_BOUNDS_S) + 1)
        self._arrived_s: OrderedDict[str, float] = OrderedDict()

    def arrived(self, rid: object, now_s: float) -> None:
        """A request came in. O(1)."""
        if not isinstance(rid, str):
            return
        self._arrived_s[rid] = now_s
        if len(self._arrived_s) > MAX_AWAITED:
            self._arrived_s.popitem(last=False)

    def batch_done(self, batch: Any, now_s: float) -> None:
        """The results of a batch with prefills are in. O(requests of the batch)."""
        for req in batch.reqs:
            if (
                len(req.output_ids)
                and (arrived_s := self._arrived_s.pop(req.rid, None)) is not None
            ):
                self.counts[bisect_left(FIRST_TOKEN_BOUNDS_S, now_s - arrived_s)] += 1
