"""What policies do beside ranking nodes: SGLang as it is does next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvflow.sglang_plugin.control import ServiceUpdate
from kvflow.simulator.batches import Batch
from kvflow.simulator.cache import Landed, TieredCache
from kvflow.simulator.requests import Request

__all__ = ["StockSide"]

_NOBODY: frozenset[str] = frozenset()


class StockSide:
    """SGLang as it is: hears of no workflow, loads and fetches what a request finds.

    Args:
        on_end: told of requests that are over.
        on_computed: told of those whose prompt, or a chunk of it, has been computed.
        on_scheduled: told of those that have entered a batch.
    """

    def __init__(
        self,
        cache: TieredCache,
        on_end: Callable[[Request], None],
        on_computed: Callable[[Request], None],
        on_scheduled: Callable[[Request], None],
    ) -> None:
        self.cache = cache
        self._on_end = on_end
        self._on_scheduled = on_scheduled
        self._on_computed = on_computed
        self._fetching: dict[str, Request] = {}

    def take(
        self,
        messages: Sequence[ServiceUpdate],
        requests: Sequence[Request],
        waiting: Iterable[Request],
    ) -> None:
        """A step begins with these messages and requests; those that wait came before."""
        for request in requests:
            self.fetch_for(request)

    def fetch_for(self, request: Request) -> None:
        """Fetch from storage what a request that has just come will read."""
        if self.cache.storage is None:
            return
        limit = (request.prompt_tokens - 1) // self.cache.page_tokens * self.cache.page_tokens
        if self.cache.fetch(request.path, limit, request=request.rid) is not None:
            self._fetching[request.rid] = request

    def landed(self, landed: Landed) -> None:
        """Copies are over."""
        for fetch in landed.fetches:
            request = self._fetching.pop(fetch.request or "", None)
            if request is not None:
                request.fetched_tokens = fetch.tokens

    def passed_over(self, waiting: Sequence[Request]) -> frozenset[str]:
        """Requests that are left out of the batch that is formed now."""
        return frozenset(self._fetching) if self._fetching else _NOBODY

    def wants_load(self, tokens: int) -> bool:
        """Whether a request is to load so much from the host, or to compute it."""
        return True

    def formed(self, batch: Batch) -> float:
        """A batch was formed; when what it reads and does not load is on the device."""
        return 0.0

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A batch that waited for no load took so long."""

    def scheduled(self, request: Request) -> None:
        """A request has entered its first batch, and holds what it has found."""
        self._on_scheduled(request)

    def computed(self, request: Request) -> None:
        """A request's prompt, or a chunk of it, is computed and in the tree."""
        self._on_computed(request)

    def finished(self, request: Request) -> None:
        """A request is over and in the tree, and its client does not know yet."""

    def ended(self, request: Request) -> None:
        """A request is over, and its client knows."""
        self._on_end(request)

    def attention_s(self, now_s: float) -> float | None:
        """When another step is wanted at the latest; None if it does not matter."""
        return None
