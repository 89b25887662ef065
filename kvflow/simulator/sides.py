"""What policies do beside ranking nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvflow.sglang_plugin.control import ServiceUpdate
from kvflow.simulator.batches import Batch
from kvflow.simulator.cache import TieredCache
from kvflow.simulator.knowledge import Knowledge
from kvflow.simulator.radix import Node
from kvflow.simulator.requests import Request

__all__ = ["KVFlowSide", "StockSide"]

_NOBODY: frozenset[str] = frozenset()


class StockSide:
    """SGLang as it is: hears of no workflow, loads whatever is on the host.

    Args:
        on_end: told of requests that are over.
        on_computed: told of those whose prompt has been computed.
    """

    def __init__(
        self,
        cache: TieredCache,
        on_end: Callable[[Request], None],
        on_computed: Callable[[Request], None],
    ) -> None:
        self.cache = cache
        self._on_end = on_end
        self._on_computed = on_computed

    def take(self, message: ServiceUpdate) -> None:
        pass

    def arrived(self, request: Request) -> None:
        pass

    def before_batch(self, waiting: deque[Request], landed: bool) -> frozenset[str]:
        return _NOBODY

    def wants_load(self, tokens: int) -> bool:
        return True

    def formed(self, batch: Batch) -> float:
        return 0.0

    def prefilled(self, tokens: int, seconds: float) -> None:
        pass

    def computed(self, request: Request) -> None:
        self._on_computed(request)

    def finished(self, request: Request) -> None:
        pass

    def ended(self, request: Request, now_s: float) -> None:
        self._on_end(request)

    def attention_s(self, now_s: float) -> float | None:
        return None


class KVFlowSide(StockSide):
    """KVFlow's eviction order without copies ahead of need (``KVFLOW_PREFETCH=off``)."""

    def __init__(
        self,
        cache: TieredCache,
        on_end: Callable[[Request], None],
        on_computed: Callable[[Request], None],
        knowledge: Knowledge,
    ) -> None:
        super().__init__(cache, on_end, on_computed)
        self.knowledge = knowledge
        knowledge.attach(cache.rank_changed)
        cache.observer = self

    def split(self, upper: Node, lower: Node) -> None:
        self.knowledge.split(upper, lower)

    def left_device(self, node: Node) -> None:
        pass

    def removed(self, node: Node) -> None:
        self.knowledge.removed(node)

    def take(self, message: ServiceUpdate) -> None:
        self.knowledge.apply(message)

    def arrived(self, request: Request) -> None:
        if request.key is not None:
            self.knowledge.weights.called(request.key, request.call.agent_id)

    def finished(self, request: Request) -> None:
        self.knowledge.finished(self.cache.tree, request)
