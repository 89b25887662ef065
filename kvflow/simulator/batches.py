"""Which waiting requests enter a prefill step, as SGLang's ``PrefillAdder`` decides it.

Source: SGLang 0.5.23, ``managers/schedule_policy.py`` and ``mem_cache/prefill_budget.py``, for
first come, first served, which is its default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvflow.simulator.base import EngineModel
from kvflow.simulator.cache import TieredCache
from kvflow.simulator.requests import Request

__all__ = ["Batch", "BatchFormer"]


@dataclass(slots=True)
class Batch:
    """A prefill step.

    Attributes:
        parts: for each request its new tokens, and what comes before them.
        chunked: the one request of it that is not finished by it.
        full: whether nothing more will be admitted until a running request ends.
    """

    requests: list[Request] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    chunked: Request | None = None
    full: bool = False

    @property
    def new_tokens(self) -> int:
        return sum(new for new, _ in self.parts)


@dataclass(slots=True)
class _Room:
    """What is left for a batch.

    Attributes:
        budget: new tokens that it may still take.
        promised: tokens that running and admitted requests will need, and that are not allocated
            yet. A page more for each: SGLang leaves that out for those that run, and takes a
            request back where it does not work out.
    """

    page: int
    budget: int
    promised: int

    def take(self, batch: Batch, request: Request, new: int, before: int) -> None:
        """Put ``new`` tokens of a request, which come after ``before``, into the batch."""
        batch.requests.append(request)
        batch.parts.append((new, before))
        pages = _pages(new, self.page)
        self.budget -= pages
        self.promised += pages + self.page


class BatchFormer:
    """Forms prefill batches.

    Args:
        wants_load: asked whether a request should load what is on the host, given its length.
    """

    def __init__(
        self, cache: TieredCache, engine: EngineModel, wants_load: Callable[[int], bool]
    ) -> None:
        self._cache = cache
        self._engine = engine
        self._wants_load = wants_load

    def form(
        self,
        waiting: Sequence[Request],
        chunked: Request | None,
        running: int,
        coming_tokens: int,
    ) -> Batch:
        """Admit what fits; admitted requests are matched, loaded and hold their nodes.

        Args:
            waiting: in the order in which they are tried.
            chunked: the request whose prefill is under way; it goes on first.
            running: how many requests decode.
            coming_tokens: what those are still going to generate.
        """
        engine, page = self._engine, self._cache.page_tokens
        batch = Batch()
        room = _Room(
            page,
            budget=min(engine.chunked_prefill_tokens, engine.max_prefill_tokens),
            promised=coming_tokens + running * page,
        )
        places = engine.max_running_requests - running
        if chunked is not None:
            self._go_on(chunked, batch, room)
        for request in waiting:
            if batch.chunked is not None or room.budget <= 0:
                break
            if len(batch.requests) >= places:
                batch.full = True
                break
            if not self._admitted(request, batch, room, running):
                break
        return batch

    def _available(self, room: _Room) -> int:
        return self._cache.free_tokens + self._cache.evictable_tokens - room.promised

    def _go_on(self, chunked: Request, batch: Batch, room: _Room) -> None:
        """Take the next chunk of a request, or all that is left of it."""
        page = room.page
        left = chunked.prompt_tokens - chunked.computed_tokens
        available = self._available(room)
        new = min(left, room.budget if available <= 0 else min(room.budget, available))
        if new < left:
            new = new // page * page or min(left, page)
        room.take(batch, chunked, new, chunked.computed_tokens)
        if new < left:
            batch.chunked = chunked
        else:
            room.promised += chunked.output_tokens

    def _admitted(self, request: Request, batch: Batch, room: _Room, running: int) -> bool:
        """Admit a request if it fits, whole or a first chunk of it; whether it does."""
        cache, page = self._cache, room.page
        match = cache.match(request.path, (request.prompt_tokens - 1) // page * page)
        node, prefix = match.device_node, match.device_tokens
        cache.tree.lock(node)
        # What SGLang reserves does not count what is going to be loaded.
        wanted = request.prompt_tokens - prefix + request.output_tokens + page
        if wanted >= self._available(room):
            cache.tree.unlock(node)
            batch.full = bool(batch.requests or running)
            return False
        loaded = 0
        if match.host_tokens and self._wants_load(match.host_tokens):
            loaded = cache.load_back(match.best_node)
        if loaded:
            node, prefix = match.best_node, prefix + match.host_tokens
        new = request.prompt_tokens - prefix
        if _pages(new, page) > room.budget:
            new = (prefix + room.budget) // page * page - prefix
            if new <= 0:
                cache.tree.unlock(match.device_node)
                return False
            batch.chunked = request
        if node is not match.device_node:
            cache.tree.lock(node)
            cache.tree.unlock(match.device_node)
        request.node = node
        request.held_tokens = request.computed_tokens = prefix
        request.hit_device = match.device_tokens
        request.hit_storage = min(loaded, request.fetched_tokens)
        request.hit_host = loaded - request.hit_storage
        room.take(batch, request, new, prefix)
        if batch.chunked is None:
            room.promised += request.output_tokens
        return True


def _pages(tokens: int, page: int) -> int:
    return -(-tokens // page) * page
