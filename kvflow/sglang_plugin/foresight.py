"""The first rank's part of prefetching: it measures, estimates and plans.

What is planned becomes messages that all ranks receive with the same step's requests. Nothing is
decided by any other clock than the first rank's, so ranks can't disagree. How it is planned is in
``planning.py``; here is what that sees of SGLang, and the clock.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kvflow.eviction import EvictionKey, Owner
from kvflow.prefetch import Place, Stretch
from kvflow.sglang_plugin.control import ControlMessage, WorkflowKey
from kvflow.sglang_plugin.planning import (
    FETCH_AGAIN_S,
    MAX_CHUNK_S,
    MIN_CHUNK_TOKENS,
    REPLAN_S,
    PrefetchPlanning,
)
from kvflow.sglang_plugin.weights import WorkflowWeights

if TYPE_CHECKING:
    from kvflow.sglang_plugin.cache import KVFlowRadixCache

__all__ = ["FETCH_AGAIN_S", "MAX_CHUNK_S", "MIN_CHUNK_TOKENS", "REPLAN_S", "Foresight"]

_WAITING_PEEKED: Final = 8


class Foresight(PrefetchPlanning):
    """Plans the copies to make ahead, for the ranks of one engine.

    Args:
        cache: the first rank's.
        max_loading_tokens: device loads under way at most.
        plans: whether to plan at all; if not, it only measures.
    """

    def __init__(
        self, cache: KVFlowRadixCache, max_loading_tokens: int, *, plans: bool = True
    ) -> None:
        super().__init__(_CacheSite(cache), max_loading_tokens, time.monotonic(), plans=plans)
        cache.kvflow_weights.observer = self
        cache.kvflow_transfers.observer = self
        for tokens, seconds in cache.kvflow_calibration:
            self.loaded(tokens, seconds)

    def steps_changed(self, key: WorkflowKey, steps: Mapping[str, float]) -> None:
        """A workflow went on."""
        self.note_steps(key, steps, time.monotonic())

    def fetched(self, owner: int, arrived_tokens: int, wanted_tokens: int) -> None:
        """A fetch ended, with so many tokens in host memory."""
        self.note_fetched(owner, arrived_tokens, wanted_tokens, time.monotonic())

    def messages(self, waiting: Sequence[Any], arriving: Sequence[Any]) -> list[ControlMessage]:
        """What to copy now.

        Args:
            waiting: the scheduler's waiting queue.
            arriving: what comes with this step: requests, as SGLang's tokenizer sends them.
        """
        arriving = [one for item in arriving for one in getattr(item, "batch", None) or (item,)]
        return self.plan(waiting, arriving, time.monotonic())


class _CacheSite:
    """SGLang's cache as planning sees it."""

    def __init__(self, cache: KVFlowRadixCache) -> None:
        self._cache = cache

    @property
    def weights(self) -> WorkflowWeights:
        return self._cache.kvflow_weights

    @property
    def page_tokens(self) -> int:
        return int(self._cache.page_size)

    def take_changed(self) -> bool:
        changed, self._cache.kvflow_changed = self._cache.kvflow_changed, False
        return changed

    def stretches(self, owner: Owner[Any]) -> Iterator[Stretch]:
        for node in self._cache.chain(owner):
            yield Stretch(len(node.key), self._place(node))

    def _place(self, node: Any) -> Place:
        if self._cache.kvflow_transfers.is_loading(node):
            return "loading"
        if not node.evicted:
            return "device"
        return "host" if node.backuped else "nowhere"

    def on_device(self, owner: Owner[Any]) -> bool:
        return not any(node.evicted for node in owner.nodes)

    @property
    def remembers_paths(self) -> bool:
        return bool(self._cache.kvflow_paths)

    def path_tokens(self, number: int) -> int:
        path = self._cache.kvflow_paths.get(number)
        return 0 if path is None else len(path.tokens)

    def fetch_head(self, number: int, end_tokens: int) -> Hashable:
        path = self._cache.kvflow_paths[number]
        return (path.tokens[:end_tokens].tobytes(), path[1:])

    @property
    def fetches(self) -> Iterable[int]:
        return self._cache.kvflow_transfers.fetches

    @property
    def loading_tokens(self) -> int:
        return self._cache.kvflow_transfers.loading_tokens

    @property
    def fetching_tokens(self) -> int:
        return self._cache.kvflow_transfers.fetching_tokens

    def slot_free(self) -> bool:
        return self._cache.kvflow_transfers.slot_free()

    def free_tokens(self) -> int:
        return int(self._cache.token_to_kv_pool_allocator.available_size())

    def reclaimable_tokens(self, key: EvictionKey, wanted: int) -> int:
        return int(self._cache.tree_core.reclaimable_tokens(key, wanted))

    def host_room(self, key: EvictionKey) -> int:
        cache = self._cache
        free = int(cache.cache_controller.mem_pool_host.available_size())
        below = cache.tree_core.evictable_host_leaves.index.below(key)
        duplicates = int(cache.tree_core.host_duplicate_tokens())
        return free + duplicates + sum(len(node.key) for node in below)

    def arriving_tokens(self, arriving: Sequence[Any]) -> int:
        return sum(len(getattr(request, "input_ids", None) or ()) for request in arriving)

    def load_needed(self, waiting: Sequence[Any], arriving: Sequence[Any]) -> bool:
        cache = self._cache
        paths = [cache.prompt(req) for req in waiting[:_WAITING_PEEKED]]
        paths += [
            path
            for request in arriving[:_WAITING_PEEKED]
            if (path := cache.arriving_prompt(request)) is not None
        ]
        return any(
            node.evicted and node.backuped for path in paths for node, _ in cache.peek(*path)
        )

    def given_up(self, tokens: int) -> None:
        self._cache.kvflow_metrics.prefetch_outcome("cancelled", tokens)
