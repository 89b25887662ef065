"""What policies do beside ranking nodes: SGLang as it is does next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from kvflow.sglang_plugin.control import ServiceUpdate
from kvflow.simulator.batches import Batch
from kvflow.simulator.cache import Landed, TieredCache
from kvflow.simulator.requests import Request

__all__ = ["RequestObserver", "StockSide"]

_NOBODY: frozenset[str] = frozenset()


class RequestObserver(Protocol):
    """Told of requests on their way through the engine."""

    def scheduled(self, request: Request) -> None:
        """It has entered its first batch, and holds what it has found."""

    def computed(self, request: Request) -> None:
        """Its prompt, or a chunk of it, is computed and in the tree."""

    def ended(self, request: Request) -> None:
        """It is over, and its client knows."""


class StockSide:
    """SGLang as it is: hears of no workflow, loads and fetches what a request finds.

    Attributes:
        observer: what the engine is to tell of requests beside this.
    """

    def __init__(self, cache: TieredCache, observer: RequestObserver) -> None:
        self.cache = cache
        self.observer = observer
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

    def finished(self, request: Request) -> None:
        """A request is over and in the tree, and its client does not know yet."""

    def attention_s(self, now_s: float) -> float | None:
        """When another step is wanted at the latest; None if it does not matter."""
        return None
