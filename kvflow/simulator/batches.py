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
        cache, engine = self._cache, self._engine
        page = cache.page_tokens
        batch = Batch()
        budget = min(engine.chunked_prefill_tokens, engine.max_prefill_tokens)
        # Promised to running and admitted requests, and not allocated yet. A page more for each
        # that runs: SGLang leaves that out, and takes a request back where it does not work out.
        promised = coming_tokens + running * page
        places = engine.max_running_requests - running
        if chunked is not None:
            left = chunked.prompt_tokens - chunked.computed_tokens
            available = cache.free_tokens + cache.evictable_tokens - promised
            new = min(left, budget if available <= 0 else min(budget, available))
            if new < left:
                new = new // page * page or min(left, page)
            batch.requests.append(chunked)
            batch.parts.append((new, chunked.computed_tokens))
            budget -= _pages(new, page)
            promised += _pages(new, page) + page
            if new < left:
                batch.chunked = chunked
                return batch
            promised += chunked.output_tokens
        for request in waiting:
            if budget <= 0:
                break
            if len(batch.requests) >= places:
                batch.full = True
                break
            match = cache.match(request.path, (request.prompt_tokens - 1) // page * page)
            cached = match.device_tokens + match.host_tokens
            cache.tree.lock(match.device_node)
            extend = request.prompt_tokens - cached
            # What SGLang reserves does not count what is going to be loaded.
            wanted = request.prompt_tokens - match.device_tokens + request.output_tokens + page
            if wanted >= cache.free_tokens + cache.evictable_tokens - promised:
                cache.tree.unlock(match.device_node)
                batch.full = bool(batch.requests or running)
                break
            node = match.device_node
            loaded = 0
            if match.host_tokens and self._wants_load(match.host_tokens):
                loaded = cache.load_back(match.best_node)
                if loaded:
                    node = match.best_node
            if not loaded:
                extend = request.prompt_tokens - match.device_tokens
            prefix = request.prompt_tokens - extend
            new = extend
            if _pages(extend, page) > budget:
                new = (prefix + budget) // page * page - prefix
                if new <= 0:
                    cache.tree.unlock(match.device_node)
                    break
                batch.chunked = request
            if node is not match.device_node:
                cache.tree.lock(node)
                cache.tree.unlock(match.device_node)
            request.node = node
            request.held_tokens = request.computed_tokens = prefix
            request.hit_device = match.device_tokens
            request.hit_storage = min(loaded, request.fetched_tokens)
            request.hit_host = loaded - request.hit_storage
            batch.requests.append(request)
            batch.parts.append((new, prefix))
            budget -= _pages(new, page)
            promised += _pages(new, page) + page
            if batch.chunked is None:
                promised += request.output_tokens
            else:
                break
        return batch


def _pages(tokens: int, page: int) -> int:
    return -(-tokens // page) * page
