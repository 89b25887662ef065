"""Keeping an agent's KV for a time that is worth it, as Continuum does.

Source: Continuum, arXiv 2511.02230: after a turn, KV is pinned for a time to live that weighs what
it costs to bring it back against the memory it takes until the next turn, learned from how long the
gaps were. Simplified here: the gap is the one between two calls of an agent, as these are what
share a prompt; the cost of a miss is the time to compute or load the prompt, without what it makes
others wait; pins are soft; and scheduling is left as it is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from kvflow.simulator.cache import TieredCache, path_above
from kvflow.simulator.costs import CostModel
from kvflow.simulator.radix import Node
from kvflow.simulator.ranking import TTLRanking
from kvflow.simulator.requests import Request
from kvflow.simulator.sides import RequestObserver, StockSide

__all__ = ["TTLSide", "best_ttl_s"]

GAPS_PER_AGENT: Final = 32
MAX_AGENTS: Final = 65_536

MARGIN: Final = 1.1
"""A gap as long as one that was seen should be in time, with what it waits in the queue."""


def best_ttl_s(gaps_s: Sequence[float], reload_s: float, share: float) -> float:
    """The time to live with the greatest expected gain.

    The gain of keeping KV for ``t`` is ``P(gap <= t) * reload_s - share * E[min(gap, t)]``: what is
    saved if the next call comes in time, less the time for which that share of the cache is taken
    from others. It only grows at a gap that was seen, so only those are tried. Without any, the
    longest time that can still pay is answered: ``reload_s / share``.

    Args:
        gaps_s: between calls, as seen.
        reload_s: what bringing it back would take.
        share: of the cache that it takes.
    """
    if not gaps_s:
        return reload_s / share
    ordered = sorted(gaps_s)
    count = len(ordered)
    best_s, best_gain = 0.0, 0.0
    waited_s = 0.0
    for position, gap_s in enumerate(ordered):
        kept_s = (waited_s + gap_s * (count - position)) / count
        waited_s += gap_s
        if position + 1 < count and ordered[position + 1] == gap_s:
            continue
        gain = (position + 1) / count * reload_s - share * kept_s
        if gain > best_gain:
            best_s, best_gain = gap_s, gain
    return best_s


class TTLSide(StockSide):
    """Pins what a call has read when it ends, for the time that pays."""

    def __init__(
        self,
        cache: TieredCache,
        observer: RequestObserver,
        *,
        ranking: TTLRanking,
        costs: CostModel,
    ) -> None:
        super().__init__(cache, observer)
        self._ranking = ranking
        self._costs = costs
        # By agent: when its last call ended, and the gaps before its calls.
        self._agents: OrderedDict[tuple[str, str], tuple[float, deque[float]]] = OrderedDict()
        cache.observer = self

    def split(self, upper: Node, lower: Node) -> None:
        self._ranking.split(upper)

    def left_device(self, node: Node) -> None:
        """Pins are for both tiers."""

    def removed(self, node: Node) -> None:
        """A pin on it runs out by itself."""

    def finished(self, request: Request) -> None:
        now_s = self.cache.now_s
        agent = (request.client_id, request.call.agent_id)
        known = self._agents.pop(agent, None)
        gaps_s = deque[float](maxlen=GAPS_PER_AGENT) if known is None else known[1]
        if known is not None and request.arrived_s >= known[0]:
            gaps_s.append(request.arrived_s - known[0])
        self._agents[agent] = (now_s, gaps_s)
        if len(self._agents) > MAX_AGENTS:
            self._agents.popitem(last=False)
        tokens = request.kv_tokens
        reload_s = self._costs.prefill_s([(tokens, 0)])
        if self.cache.has_host:
            reload_s = min(reload_s, self._costs.load.seconds(tokens))
        ttl_s = best_ttl_s(gaps_s, reload_s, tokens / self.cache.device_capacity)
        if ttl_s > 0 and request.node is not None:
            self._ranking.pin(path_above(request.node), now_s + MARGIN * ttl_s)
