"""Copies that are made before the request that needs them: host to device, storage to host.

Runs on every rank's scheduler thread and does what the first rank has planned. All copies go
through SGLang's own cache controller, which copies layer by layer.

A load that no request is behind leaves a hazard: SGLang marks its nodes as resident on the device
when the copy is *submitted* (0.5.17-0.5.23, ``UnifiedTreeCore.commit_load_back``), and only the
batch that a load was queued with waits for it. So which nodes are still on their way is kept here,
and ``schedule.py`` makes a batch that reads one of them wait for the copy.

Loads are FIFO on one stream. So a batch has to wait for one load only, the last one it depends on;
and a load of its own, which is queued later, covers those before.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from kvflow.eviction import EvictionKey, Owner, eviction_key
from kvflow.prefetch import PrefetchUsage
from kvflow.sglang_plugin.compat import (
    computing_stream,
    request_handle,
    storage_prefetch_supported,
    tokens_fetched,
)
from kvflow.sglang_plugin.control import WorkflowKey

if TYPE_CHECKING:
    from kvflow.sglang_plugin.cache import KVFlowRadixCache

__all__ = [
    "Cause",
    "FetchUnderWay",
    "LoadUnderWay",
    "TokenPath",
    "TransferObserver",
    "TransfersAhead",
]

logger = logging.getLogger(__name__)

Cause = tuple[WorkflowKey, int]
"""The workflow a copy was made for, and the number of the owner whose path it is."""

SLOTS_LEFT_TO_REQUESTS: Final = 2
"""SGLang has three producer slots (``LayerDoneCounter.num_counters``). With overlap scheduling the
batch in flight and the next one may each hold one."""

_CALIBRATION_TOKENS: Final = (64, 256, 64, 256)
_DRAIN_ATTEMPTS: Final = 8
_ANY_DEPTH: Final = 2**62


class TokenPath(NamedTuple):
    """Token ids with the cache namespace they are in."""

    tokens: array[int]
    extra_key: Any
    salt: Any


@dataclass(frozen=True, slots=True, eq=False)
class LoadUnderWay:
    """A load to the device that has been submitted and has not arrived.

    Attributes:
        anchor: id of the last node of the path; SGLang's key for the load.
        producer: index of the layer-wise events that a batch can wait for.
        nodes: the nodes on their way; grows when one is split.
    """

    anchor: int
    producer: int
    tokens: int
    nodes: set[Any]
    cause: Cause
    start_s: float


@dataclass(frozen=True, slots=True, eq=False)
class FetchUnderWay:
    """A fetch of a path from the storage tier; its first ``start`` tokens were there."""

    handle: Any
    path: TokenPath
    start: int
    cause: Cause
    start_s: float

    @property
    def tokens(self) -> int:
        """What is fetched."""
        return len(self.path.tokens) - self.start


class TransferObserver(Protocol):
    """Told how long copies took; only the first rank listens."""

    def loaded(self, tokens: int, seconds: float) -> None: ...
    def fetched(self, owner: int, arrived_tokens: int, wanted_tokens: int) -> None: ...


class TransfersAhead:
    """Prefetches under way in one rank, and what became of those that arrived."""

    def __init__(self, cache: KVFlowRadixCache) -> None:
        self._cache = cache
        self.loads: list[LoadUnderWay] = []
        self.fetches: dict[int, FetchUnderWay] = {}
        self.usage: PrefetchUsage[Any, Cause] = PrefetchUsage()
        self.observer: TransferObserver | None = None
        self._late: set[LoadUnderWay] = set()
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self.loads or self.fetches)

    @property
    def loading_tokens(self) -> int:
        return sum(load.tokens for load in self.loads)

    @property
    def fetching_tokens(self) -> int:
        return sum(fetch.tokens for fetch in self.fetches.values())

    def slot_free(self) -> bool:
        """Whether a load can start that leaves requests the slots they may need."""
        controller = self._cache.cache_controller
        if controller is None or controller.load_queue:
            return False
        free = controller.layer_done_counter.num_counters - len(controller.ack_load_queue)
        return bool(free > SLOTS_LEFT_TO_REQUESTS)

    def load(self, owner: Owner[Any], end_tokens: int, cause: WorkflowKey) -> bool:
        """Start loading what is missing on the device of the first ``end_tokens`` of the path.

        Refused, with nothing changed but nodes worth less evicted, where there is no free slot, a
        gap in the path, or no room that costs less than what is brought.
        """
        cache = self._cache
        if not self.slot_free():
            return False
        target = self._host_node_at(cache.chain(owner), end_tokens)
        if target is None:
            return False
        missing = []
        node = target
        while node is not cache.tree_core.root_node and node.evicted:
            missing.append(node)
            node = node.parent
        with cache.evicting_below(needed_sooner(owner)):
            loaded = cache.load_back(target.id, req=None)
        if not loaded:
            return False
        producer = cache.start_submitted_loads()
        tokens = sum(len(node.key) for node in missing)
        self.loads.append(
            LoadUnderWay(
                target.id,
                producer,
                tokens,
                set(missing),
                (cause, owner.number),
                time.monotonic(),
            )
        )
        for node in missing:
            self.usage.loaded(node, len(node.key), (cause, owner.number))
        cache.kvflow_metrics.prefetched("load", tokens, tokens * self.kv_bytes_per_token)
        return True

    def fetch(self, owner: Owner[Any], end_tokens: int, cause: WorkflowKey) -> bool:
        """Start bringing the first ``end_tokens`` of the path from the storage tier to host."""
        cache = self._cache
        path = cache.kvflow_paths.get(owner.number)
        if path is None or owner.number in self.fetches or not self.can_fetch:
            return False
        path = path._replace(tokens=path.tokens[:end_tokens])
        anchor, start = cache.fetch_anchor(path)
        self._count += 1
        handle = request_handle(f"kvflow-{owner.number}-{self._count}")
        cache.prefetch_own(handle, anchor, path, start)
        if handle not in cache.ongoing_prefetch:
            self._report_fetched(owner.number, 0, end_tokens - start)
            return False
        self.fetches[owner.number] = FetchUnderWay(
            handle, path, start, (cause, owner.number), time.monotonic()
        )
        return True

    def cancel_fetch(self, number: int) -> None:
        """Stop a fetch; what has arrived of it is let go with it."""
        fetch = self.fetches.pop(number, None)
        if fetch is not None:
            self._cache.release_aborted_request(fetch.handle)
            self._cache.kvflow_metrics.prefetch_outcome("cancelled", fetch.tokens)

    def take_landed(self) -> bool:
        """Drop what has arrived from the books; whether there was anything. Called each step."""
        cache = self._cache
        landed = [load for load in self.loads if load.anchor not in cache.ongoing_load_back]
        if landed:
            self._trace("prefetch", landed)
            self._late.difference_update(landed)
            self.loads = [load for load in self.loads if load not in landed]
        done = [
            number
            for number, fetch in self.fetches.items()
            if fetch.handle not in cache.ongoing_prefetch
        ]
        for number in done:
            fetch = self.fetches.pop(number)
            self._trace("fetch", [fetch])
            arrived = tokens_fetched(cache.prefetch_loaded_tokens_by_reqid, fetch.handle)
            cache.release_aborted_request(fetch.handle)
            cache.find_path_again(number)
            self._report_fetched(number, arrived, fetch.tokens)
            cache.kvflow_metrics.prefetched("fetch", arrived, arrived * self.kv_bytes_per_token)
        return bool(landed or done)

    def _trace(
        self, kind: Literal["prefetch", "fetch"], done: Iterable[LoadUnderWay | FetchUnderWay]
    ) -> None:
        timelines = self._cache.kvflow_timelines
        if timelines is not None:
            end_s = time.monotonic()
            for copy in done:
                label = f"{copy.cause[0][1]} #{copy.cause[1]}"
                timelines.recorder.copy(kind, copy.start_s, end_s, copy.tokens, label)

    def _report_fetched(self, number: int, arrived_tokens: int, wanted_tokens: int) -> None:
        if self.observer is not None:
            self.observer.fetched(number, arrived_tokens, wanted_tokens)

    def load_of(self, nodes: Iterable[Any]) -> LoadUnderWay | None:
        """The last load that any of these nodes is part of; once it is there, all are."""
        wanted = set(nodes)
        for load in reversed(self.loads):
            if not wanted.isdisjoint(load.nodes):
                return load
        return None

    def note_late(self, load: LoadUnderWay) -> None:
        """A batch reads what this load brings, and it is not there yet."""
        if load not in self._late:
            self._late.add(load)
            self._cache.kvflow_metrics.prefetch_outcome("late", load.tokens)

    def wait_before_decoding(self, nodes: Iterable[Any]) -> None:
        """A running request has taken over rows that may still be on their way.

        That happens where its prompt was computed while the same prefix was being loaded: SGLang
        keeps the tree's rows and frees the request's own. Decoding has no layer-wise wait, so the
        stream that computes waits for the whole copy. Without overlap scheduling that is the
        current one, whatever stream SGLang names.
        """
        if not self.loads or self.load_of(nodes) is None:
            return
        controller = self._cache.cache_controller
        fence = computing_stream(controller)
        for ack in controller.ack_load_queue:
            if fence is None:
                ack.finish_event.synchronize()
            else:
                ack.finish_event.wait(fence)
                ack.finish_event.wait()

    def is_loading(self, node: Any) -> bool:
        return any(node in load.nodes for load in self.loads)

    def fetch_covering(self, prompt: TokenPath) -> FetchUnderWay | None:
        """A fetch under way that brings what this prompt begins with."""
        for fetch in self.fetches.values():
            length = min(len(prompt.tokens), len(fetch.path.tokens))
            if (
                fetch.path[1:] == prompt[1:]
                and length > fetch.start
                and prompt.tokens[:length] == fetch.path.tokens[:length]
            ):
                return fetch
        return None

    def split(self, upper: Any, lower: Any) -> None:
        """``lower`` was split, ``upper`` is the new node above it."""
        for load in self.loads:
            if lower in load.nodes:
                load.nodes.add(upper)
        self.usage.split(upper, lower, len(upper.key))

    def evicted(self, node: Any) -> None:
        """The node leaves the device, or the tree."""
        if not len(self.usage):
            return
        for cause, tokens in self.usage.evicted(node):
            self._cache.prefetch_wasted(cause, tokens)

    def clear(self) -> None:
        """The tree was emptied."""
        self.loads.clear()
        self._late.clear()
        self.fetches.clear()
        self.usage.clear()

    def drain(self) -> None:
        """Wait until nothing is under way, as for a flush. Fetches are cancelled."""
        for number in list(self.fetches):
            self.cancel_fetch(number)
        # Counted, not timed: what follows is a collective, and ranks have clocks of their own.
        for _ in range(_DRAIN_ATTEMPTS):
            if not self.loads:
                return
            for ack in self._cache.cache_controller.ack_load_queue:
                ack.finish_event.synchronize()
            self._cache.check_hicache_events()

    @property
    def can_fetch(self) -> bool:
        """Whether there is a storage tier that can be fetched from ahead."""
        cache = self._cache
        return (
            cache.enable_storage
            and storage_prefetch_supported()
            and getattr(cache, "buffer_pipeline", None) is None
        )

    @property
    def kv_bytes_per_token(self) -> int:
        return int(self._cache.cache_controller.mem_pool_host.size_per_token)

    def calibrate(self) -> list[tuple[int, float]]:
        """Time some loads from host to device: ``(tokens, seconds)`` each.

        What is copied is copied into slots that belong to nobody, and given back. Called before
        the first request, by each rank.
        """
        controller = self._cache.cache_controller
        samples: list[tuple[int, float]] = []
        page = self._cache.page_size
        for wanted in _CALIBRATION_TOKENS:
            tokens = -(-wanted // page) * page
            host = controller.mem_pool_host.alloc(tokens)
            if host is None:
                break
            device = controller.load(host, node_id=-1)
            if device is not None:
                start_s = time.perf_counter()
                controller.start_loading()
                controller.ack_load_queue.pop().finish_event.synchronize()
                samples.append((tokens, time.perf_counter() - start_s))
                self._cache.token_to_kv_pool_allocator.free(device)
            controller.mem_pool_host.free(host)
            if device is None:
                break
        return samples

    def _host_node_at(self, chain: Sequence[Any], end_tokens: int) -> Any | None:
        """The node that ends at ``end_tokens``, split off if need be; None if nothing is to load.

        Everything up to it is on the device or in host memory.
        """
        cache = self._cache
        depth = 0
        for node in chain:
            if node.evicted and not node.backuped:
                return None
            length = len(node.key)
            if depth + length >= end_tokens:
                if not node.evicted:
                    return None
                keep = (end_tokens - depth) // cache.page_size * cache.page_size
                if 0 < keep < length:
                    upper, action = cache.tree_core.split_at(node, keep)
                    if action is not None:
                        cache._apply_cache_actions([action])
                    return upper
                return node if keep >= length else None
            depth += length
        return chain[-1] if chain and chain[-1].evicted else None


def needed_sooner(owner: Owner[Any]) -> EvictionKey:
    """The lowest key of what is needed as soon as this owner's path, or sooner."""
    return eviction_key(owner.kind, owner.order, _ANY_DEPTH, 0.0)
