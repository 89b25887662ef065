"""SGLang's cache with HiCache in this process: real trees, pools, requests and copies; no model.

What a model would write is a function of the token path alone, so whatever is read as KV of a path
can be checked. The two streams of a device, copies from host memory and forwards, are links of
``cpu_link`` without a thread: they do what was submitted, in order, when a test says so or when
something waits for it.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import queue
import threading
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from kvflow.engine import cpu_link, cpu_support
from kvflow.engine.cpu_link import LinkDevice, LinkSettings, LinkStream
from kvflow.engine.cpu_support import CPU_ENGINE_VARIABLE
from kvflow.sglang_plugin import compat
from kvflow.sglang_plugin.control import ServiceUpdate, WorkflowUpdate
from kvflow.sglang_plugin.schedule import StatusAwareScheduling
from tests.sglang_plugin.caches import FULL, Core, KVFlowRadixCache, UnifiedRadixCache, torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sglang.srt import runtime_context
    from sglang.srt.managers import cache_controller
    from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
    from sglang.srt.mem_cache import l2_transfer
    from sglang.srt.mem_cache.allocator import (
        PagedTokenToKVPoolAllocator,
        TokenToKVPoolAllocator,
    )
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InitLoadBackParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.common import (
        checkpoint_kv_cache,
        evict_from_tree_cache,
        release_kv_cache,
    )
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
    from sglang.srt.mem_cache.pool_host import base, mha, mla
    from sglang.srt.sampling.sampling_params import SamplingParams
    from sglang.srt.server_args import ServerArgs

    from kvflow.sglang_plugin.tree import KVFlowFullComponent

__all__ = [
    "CLIENT",
    "LAYERS",
    "WORKFLOW",
    "Batch",
    "Engine",
    "SteppedStream",
    "WritePolicy",
    "build_engine",
    "patched_sglang",
]

WritePolicy = Literal["write_through", "write_through_selective", "write_back"]

CLIENT = "c"
WORKFLOW = "w"
LAYERS = 2
DIM = 4
ROWS = 12
CONTEXT_TOKENS = 512

_rids = itertools.count()
_device = LinkDevice()


class _DrivenEvent(threading.Event):
    """Set when its stream gets there; waiting for it makes the stream go on."""

    def __init__(self, stream: SteppedStream) -> None:
        super().__init__()
        self._stream = stream

    def wait(self, timeout: float | None = None) -> bool:
        while not self.is_set():
            assert self._stream.advance(1), "nothing is submitted that could complete the event"
        return True


class SteppedStream(LinkStream):
    """A link whose worker is whoever calls ``advance``, or waits for one of its events."""

    def __init__(self) -> None:
        super().__init__(LinkSettings())

    def _start_single_threaded(self) -> None:
        """The thread is never started."""

    def complete_in_turn(self, recording: Any) -> None:
        recording.done = _DrivenEvent(self)
        super().complete_in_turn(recording)

    def advance(self, jobs: int) -> int:
        """Do so many things, e.g. copy a layer or complete an event; returns how many there were"""
        for done in range(jobs):
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return done
            assert job is not None
            with torch.inference_mode():
                self._do(job)
        return jobs

    @property
    def idle(self) -> bool:
        return self._jobs.empty()

    def close(self) -> None:
        while self.advance(100):
            pass


@contextmanager
def patched_sglang() -> Iterator[None]:
    """SGLang with KVFlow's CPU link and copies; as it was again afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for holder, name in (
            (base, "HICACHE_HOST_MEMORY_RESERVE_BYTES"),
            (base.HostKVCache, "__init__"),
            (l2_transfer, "device_module"),
            (cache_controller, "device_module"),
            (l2_transfer.L2TransferEngine, "__init__"),
        ):
            patch.setattr(holder, name, getattr(holder, name))
        for module in (mha, mla):
            patch.setattr(module, "transfer_kv_direct", cpu_support.copy_tokens, raising=False)
        patch.setenv(CPU_ENGINE_VARIABLE, "1")
        for variable in (
            cpu_link.LINK_MODE_VARIABLE,
            cpu_link.LINK_VARIABLE,
            cpu_link.LINK_DELAY_VARIABLE,
        ):
            patch.delenv(variable, raising=False)
        l2_transfer._timing_events_supported.cache_clear()
        cpu_support.register()
        yield
        l2_transfer._timing_events_supported.cache_clear()


@functools.cache
def _context(policy: WritePolicy) -> Any:
    args = ServerArgs(
        model_path="none",
        device="cpu",
        enable_hierarchical_cache=True,
        hicache_ratio=2.0,
        hicache_size=0,
        hicache_write_policy=policy,
        hicache_io_backend="direct",
        hicache_mem_layout="layer_first",
    )
    return args, runtime_context.create_context(args, role="scheduler")


def _scribbling(allocator_class: type[Any]) -> type[Any]:
    class Scribbling(allocator_class):  # type: ignore[misc]
        """What is handed out holds nothing of use, as of when forwards before are through."""

        scribble: Callable[[Any], None] | None = None

        def alloc(self, need_size: int) -> Any:
            rows = super().alloc(need_size)
            if rows is not None and len(rows) and self.scribble is not None:
                self.scribble(rows)
            return rows

    return Scribbling


_TokenAllocator = _scribbling(TokenToKVPoolAllocator)
_PagedAllocator = _scribbling(PagedTokenToKVPoolAllocator)


@contextmanager
def build_engine(
    *,
    core: Core = "kvflow",
    capacity_tokens: int = 256,
    host_ratio: float = 2.0,
    page_size: int = 1,
    policy: WritePolicy = "write_through",
    chunk_tokens: int = 64,
    load_back_threshold: int = 1,
) -> Iterator[Engine]:
    """An engine without a model. ``patched_sglang`` must be entered."""
    pool = MHATokenToKVPool(
        size=capacity_tokens,
        page_size=page_size,
        dtype=torch.float32,
        head_num=1,
        head_dim=DIM,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )
    allocator = (
        _TokenAllocator(capacity_tokens, torch.float32, "cpu", pool, False)
        if page_size == 1
        else _PagedAllocator(capacity_tokens, page_size, torch.float32, "cpu", pool, False)
    )
    params = CacheInitParams(
        disable=False,
        req_to_token_pool=ReqToTokenPool(ROWS, CONTEXT_TOKENS, "cpu", False),
        token_to_kv_pool_allocator=allocator,
        page_size=page_size,
        tree_components=(FULL,),
    )
    params.tree_core_backend = core
    args, context = _context(policy)
    with runtime_context.use_context(context):
        if core == "kvflow":
            params.component_registry_override = {FULL: KVFlowFullComponent}
            cache = KVFlowRadixCache(params)
        else:
            cache = UnifiedRadixCache(params)
        with runtime_context.get_memory().override(hicache_ratio=host_ratio):
            cache.init_hicache(args, params)
        atexit.unregister(cache.shutdown)
        cache.load_back_threshold = load_back_threshold
        engine = Engine(cache, pool, chunk_tokens)
        try:
            yield engine
        finally:
            engine.close()


@dataclass(eq=False)
class Batch:
    """What the plugin reads and sets of a batch, and what the harness launched for it."""

    reqs: list[Any]
    hicache_consumer_index: int = -1
    done: Any = None
    prefill: bool = True
    spans: list[tuple[int, int]] = field(default_factory=list)


class Engine:
    """A scheduler's steps, one by one, with overlap scheduling: what is launched runs later.

    Attributes:
        wrong: what was read and was not the KV of its path.
        copies: the stream that loads from the host pool are on.
        forwards: the stream that batches run on.
        waiting: requests to be put into a batch.
        running: requests whose prompt is computed or is being computed.
    """

    def __init__(self, cache: Any, pool: Any, chunk_tokens: int) -> None:
        self.cache = cache
        self.pool = pool
        self.allocator = cache.token_to_kv_pool_allocator
        self.controller = cache.cache_controller
        self.page_size = int(cache.page_size)
        self.controller.l2_transfer_engine.host_to_device_stream.close()
        self.copies = SteppedStream()
        self.forwards = SteppedStream()
        self.controller.l2_transfer_engine.host_to_device_stream = self.copies
        for fence in ("load_fence_stream", "write_fence_stream"):
            if hasattr(self.controller, fence):
                setattr(self.controller, fence, self.forwards)
        compat.complete_fences(self.controller, self.forwards)
        self.capacity_tokens = int(self.allocator.available_size())
        self.host_capacity_tokens = int(self.controller.mem_pool_host.available_size())
        self.allocator.scribble = self._scribble
        self.schedule = StatusAwareScheduling(cache, None)
        self.waiting: list[Any] = []
        self.running: list[Any] = []
        self.launched: list[Batch] = []
        self.chunked: Any = None
        self.wrong: list[str] = []
        self._chunk_tokens = chunk_tokens
        self._paths: dict[str, Sequence[int]] = {}

    # The user's side.

    def submit(
        self,
        prompt: Sequence[int],
        answer: Sequence[int] = (0,),
        agent: str | None = None,
        workflow: str = WORKFLOW,
        **fields: Any,
    ) -> Any:
        """A request arrives; it will answer with these tokens."""
        metadata = {"workflow_id": workflow, "agent_id": agent, "client_id": CLIENT, **fields}
        params = SamplingParams(max_new_tokens=len(answer))
        params.custom_params = None if agent is None else {"kvflow": metadata}
        req = Req(f"r{next(_rids)}", "", array("q", prompt), params)
        self._paths[req.rid] = [*prompt, *answer]
        self.waiting.append(req)
        return req

    def steps(self, version: int, workflow: str = WORKFLOW, **values: float) -> None:
        """The service says how far the workflow's agents are."""
        key = (CLIENT, workflow)
        update = WorkflowUpdate(key, version, values, {})
        self.cache.apply_control(ServiceUpdate(workflows=(update,)))

    def compute(
        self,
        prompt: Sequence[int],
        agent: str | None = None,
        workflow: str = WORKFLOW,
        **fields: Any,
    ) -> None:
        """A request from its arrival to its end, with nothing beside it."""
        req = self.submit(prompt, (0,), agent, workflow, **fields)
        while req in self.waiting or req is self.chunked:
            assert self.form() is not None, "there is no room for the request"
            self.finish_launched()
        self.finish(req)
        self.settle()

    def move_to_host(self) -> None:
        """Evict all that can be from the device; with a copy in host memory it stays there."""
        self.settle()
        self.evict(self.capacity_tokens)

    # The scheduler's steps.

    def form(self) -> Batch | None:
        """Form a batch of waiting requests as SGLang does, and launch it."""
        while len(self.launched) >= 2:
            self.finish_oldest()
        if self.chunked is not None:
            checkpoint_kv_cache(self.chunked, self.cache)
        batch = self._form_batch()
        if batch is not None:
            self._launch(batch)
        return batch

    def _form_batch(self) -> Batch | None:
        running = SimpleNamespace(reqs=self.running, is_empty=lambda: not self.running)
        scheduler = SimpleNamespace(waiting_queue=self.waiting, running_batch=running)
        if isinstance(self.cache, KVFlowRadixCache):
            (batch,) = self.schedule.form_batch(self._admit, scheduler)
        else:
            (batch,) = self._admit(scheduler)
        self.waiting = scheduler.waiting_queue
        assert batch is None or isinstance(batch, Batch)
        return batch

    def _admit(self, scheduler: Any) -> tuple[Batch | None]:
        admitted: list[Any] = []
        if self.chunked is not None:
            req = self.chunked
            req.init_next_round_input()
            self._extend(req)
            admitted.append(req)
        for req in list(scheduler.waiting_queue):
            if self.chunked is not None or not self._add(req):
                break
            admitted.append(req)
            self.running.append(req)
        taken = {id(req) for req in admitted}
        scheduler.waiting_queue = [r for r in scheduler.waiting_queue if id(r) not in taken]
        if not admitted:
            return (None,)
        batch = Batch(admitted)
        batch.hicache_consumer_index = self.cache.ready_to_load_host_cache()
        batch.spans = [(req.prefix_len, req.extend_end) for req in admitted]
        return (batch,)

    def _add(self, req: Any) -> bool:
        """``PrefillAdder.add_one_req`` as far as the cache is concerned."""
        cache = self.cache
        if not cache.req_to_token_pool.available_size():
            return False
        req.init_next_round_input(cache)
        pinned = cache.lock(req.last_node)
        try:
            room = self.allocator.available_size() + cache.evictable_size()
            if room < len(self._paths[req.rid]) - req.prefix_len + self._promised():
                return False
            if req.host_hit_length > 0:
                params = InitLoadBackParams(
                    best_match_node=req.best_match_node,
                    host_hit_length=req.host_hit_length,
                    req=req,
                )
                req.host_loaded_length, req.last_node = cache.init_load_back(params)
                assert req.host_loaded_length in (0, req.host_hit_length)
                req.prefix_len += req.host_loaded_length
                req.kv.cache_protected_len = req.prefix_len
            req.lock = cache.lock(req.last_node)
        finally:
            cache.unlock(pinned)
        cache.req_to_token_pool.alloc([req])
        row = cache.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        row[: req.prefix_len] = cache.prefix_device_indices(req)
        req.kv.kv_allocated_len = req.kv.kv_committed_len = req.prefix_len
        self._extend(req)
        return True

    def _promised(self) -> int:
        """What the requests that run may still take, and one more page for the next one."""
        page = self.page_size
        left = [len(self._paths[req.rid]) - req.kv.kv_allocated_len for req in self.running]
        return sum(tokens + page for tokens in left) + page

    def _extend(self, req: Any) -> None:
        end = len(req.full_untruncated_fill_ids)
        if end - req.prefix_len > self._chunk_tokens:
            end = req.prefix_len + self._chunk_tokens // self.page_size * self.page_size
            end = end // self.page_size * self.page_size
            self.chunked = req
        elif self.chunked is req:
            self.chunked = None
        req.extend_end = end
        self._allocate(req, end)

    def _allocate(self, req: Any, end: int) -> None:
        start, page = req.kv.kv_allocated_len, self.page_size
        row = self.cache.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        paged = -(-start // page) * page
        within = min(paged, end)
        if within > start:
            row[start:within] = row[start - 1] + torch.arange(1, within - start + 1)
        new_tokens = -(-(end - within) // page) * page
        if new_tokens:
            evict_from_tree_cache(self.cache, new_tokens)
            rows = self.allocator.alloc(new_tokens)
            assert rows is not None, "what can be evicted was counted, and could not be"
            row[within:end] = rows[: end - within].int()
        req.kv.kv_allocated_len = req.kv.kv_committed_len = end

    def decode(self) -> bool:
        """Launch a step of all that run and have something to say; whether there was any."""
        launched = [id(req) for batch in self.launched for req in batch.reqs]
        reqs = [
            req
            for req in self.running
            if req is not self.chunked
            and launched.count(id(req)) < 2
            and req.kv.kv_committed_len < len(self._paths[req.rid]) - 1
        ]
        if not reqs:
            return False
        while len(self.launched) >= 2:
            self.finish_oldest()
        batch = Batch(reqs, prefill=False)
        for req in reqs:
            batch.spans.append((req.kv.kv_committed_len, req.kv.kv_committed_len + 1))
            self._allocate(req, req.kv.kv_committed_len + 1)
        self._launch(batch)
        return True

    def finish_oldest(self) -> None:
        """Wait for the forward launched first, and process its result."""
        batch = self.launched.pop(0)
        batch.done.synchronize()
        for req, (_, end) in zip(batch.reqs, batch.spans, strict=True):
            if batch.prefill and end < len(req.origin_input_ids):
                continue
            path = self._paths[req.rid]
            req.output_ids.append(path[len(req.origin_input_ids) + len(req.output_ids)])
            if batch.prefill:
                checkpoint_kv_cache(req, self.cache)

    def finish_launched(self) -> None:
        while self.launched:
            self.finish_oldest()

    @property
    def releasable(self) -> list[Any]:
        """Requests that run and are in no batch under way."""
        busy = {id(req) for batch in self.launched for req in batch.reqs} | {id(self.chunked)}
        return [req for req in self.running if id(req) not in busy]

    def finish(self, req: Any) -> None:
        """The request is done: what it computed goes into the tree."""
        req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
        release_kv_cache(req, self.cache, checkpoint=True)
        self.running.remove(req)

    def abort(self, req: Any) -> None:
        """The request is given up; what was not in the tree before is thrown away."""
        if req in self.waiting:
            self.waiting.remove(req)
            return
        release_kv_cache(req, self.cache, checkpoint=False)
        self.running.remove(req)

    def events(self) -> None:
        """What the scheduler does once a step."""
        self.cache.check_hicache_events()

    def evict(self, tokens: int) -> int:
        return int(self.cache.evict(EvictParams(num_tokens=tokens)).num_tokens_evicted)

    def settle(self) -> None:
        """Let everything happen that is under way."""
        self.finish_launched()
        self.cache.flush_pending_backups()
        self.forwards.close()
        self.copies.close()
        self.events()

    def end_all(self) -> None:
        """No request is left, as before a flush."""
        while self.chunked is not None:
            assert self.form() is not None
        self.finish_launched()
        for req in list(self.running):
            self.abort(req)
        self.waiting.clear()

    def flush(self) -> None:
        """``Scheduler.flush_cache`` with the plugin's hook before it, once requests are gone."""
        self.end_all()
        self.events()
        ahead = {load.anchor for load in self.cache.kvflow_transfers.loads}
        while self.cache.ongoing_load_back.keys() - ahead:
            assert self.copies.advance(1)
            self.events()
        if self.cache.kvflow_transfers.busy:
            self.cache.kvflow_transfers.drain()
        assert not self.controller.has_inflight_device_transfers()
        self.cache.reset()
        self.cache.req_to_token_pool.clear()
        self.allocator.clear()

    def close(self) -> None:
        self.copies.close()
        self.forwards.close()

    # The model.

    def _launch(self, batch: Batch) -> None:
        """Submit the batch's forward: layer by layer, wait, read the prefix, write the rest."""
        counter = self.controller.layer_done_counter
        rows_of = self.cache.req_to_token_pool.req_to_token
        parts = [
            (req, rows_of[req.kv.req_pool_idx, :end].long(), start)
            for req, (start, end) in zip(batch.reqs, batch.spans, strict=True)
        ]
        with _device.stream(self.forwards):
            counter.set_consumer(batch.hicache_consumer_index)
            for layer in range(LAYERS):
                counter.wait_until(layer)
                for req, rows, start in parts:
                    path = self._paths[req.rid][: len(rows)]
                    what = f"{'prefill' if batch.prefill else 'decode'} of {req.rid}"
                    self.forwards.copy(
                        functools.partial(self._attend, what, layer, path, rows, start), 0
                    )
            counter.set_consumer(-1)
            batch.done = _device.Event()
            batch.done.record()
        self.launched.append(batch)

    def _attend(self, what: str, layer: int, path: Sequence[int], rows: Any, start: int) -> None:
        self._compare(f"{what}, layer {layer}", layer, path[:start], rows[:start])
        for buffer, kv in zip(self._buffers(layer), rows_of_path(path, layer), strict=True):
            buffer[rows[start:], 0] = kv[start:]

    def _compare(self, what: str, layer: int, path: Sequence[int], rows: Any) -> None:
        for kind, buffer, kv in zip(
            "KV", self._buffers(layer), rows_of_path(path, layer), strict=True
        ):
            good = (buffer[rows, 0] == kv).all(dim=1)
            if not good.all():
                bad = (~good).nonzero().flatten().tolist()
                self.wrong.append(f"{what}: {kind} of {len(bad)}/{len(path)} tokens from {bad[0]}")

    def _buffers(self, layer: int) -> tuple[Any, Any]:
        return self.pool.k_buffer[layer], self.pool.v_buffer[layer]

    def _scribble(self, rows: Any) -> None:
        def fill() -> None:
            for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
                buffer[rows] = float("nan")

        self.forwards.copy(fill, 0)

    # Checks.

    def check_content(self) -> None:
        """All KV in the tree is that of its path, on both tiers, as far as it has arrived."""
        self.cache.flush_pending_backups()
        self.forwards.close()
        host = self.cache.host_pool_group.entries[0].host_pool
        under_way = (
            {node for load in self.cache.kvflow_transfers.loads for node in load.nodes}
            if isinstance(self.cache, KVFlowRadixCache)
            else set()
        )
        for node, path in self.nodes():
            data = node.component_data[FULL]
            start = len(path) - len(node.key)
            for layer in range(LAYERS):
                for side, kv in enumerate(rows_of_path(path, layer)):
                    if data.value is not None and node not in under_way and self.copies.idle:
                        held = self._buffers(layer)[side][data.value.long(), 0]
                        assert torch.equal(held, kv[start:]), f"device, node {node.id}"
                    if data.host_value is not None:
                        held = host.kv_buffer[side][layer][data.host_value.long(), 0]
                        assert torch.equal(held, kv[start:]), f"host, node {node.id}"

    def nodes(self) -> Iterable[tuple[Any, list[int]]]:
        """Every node of the tree with the tokens from the root to its end."""
        stack: list[tuple[Any, list[int]]] = [(self.cache.tree_core.root_node, [])]
        while stack:
            node, path = stack.pop()
            for child in node.children.values():
                below = [*path, *child.key.token_ids]
                yield child, below
                stack.append((child, below))

    def check(self) -> None:
        """SGLang's own check, the books of both pools, and the plugin's."""
        assert not self.wrong, self.wrong
        self._check_tree()
        page = self.page_size
        held = sum(
            -(-req.kv.kv_allocated_len // page) * page - req.kv.cache_protected_len
            for req in self.running
        )
        in_tree = self.cache.evictable_size() + self.cache.protected_size()
        free = self.allocator.available_size()
        assert free + in_tree + held == self.capacity_tokens, (free, in_tree, held)
        root = self.cache.tree_core.root_node
        nodes = [node for node in self.cache.tree_core._collect_all_nodes() if node is not root]
        on_host = sum(
            len(data.host_value)
            for node in nodes
            if (data := node.component_data[FULL]).host_value is not None
        )
        host_free = self.controller.mem_pool_host.available_size()
        assert host_free + on_host == self.host_capacity_tokens, (host_free, on_host)
        if isinstance(self.cache, KVFlowRadixCache):
            self._check_plugin(set(nodes))

    def _check_tree(self) -> None:
        # SGLang checks an idle engine. With a load under way it misses what it notes only when
        # the load arrives (0.5.23, ``finish_load_back``): the host copies of what was loaded.
        core = self.cache.tree_core
        known = core.full_host_duplicates
        if self.cache.ongoing_load_back:
            core.full_host_duplicates = known | {
                node.id: node
                for node in core._collect_all_nodes()
                if core._is_settled_full_host_duplicate(node)
            }
        try:
            self.cache.sanity_check()
        finally:
            core.full_host_duplicates = known

    def _check_plugin(self, nodes: set[Any]) -> None:
        cache = self.cache
        core, transfers, usage = (
            cache.tree_core,
            cache.kvflow_transfers,
            cache.kvflow_transfers.usage,
        )
        for leaves in (core.evictable_device_leaves, core.evictable_host_leaves):
            assert len(leaves.index) == len(leaves)
            assert all(leaf in leaves.index for leaf in leaves)
        assert set(core.ownership._owners) <= nodes
        for node, owners in core.ownership._owners.items():
            assert all(node in owner.nodes for owner in owners)
        assert (
            usage.prefetched_tokens == usage.used_tokens + usage.wasted_tokens + usage.unused_tokens
        )
        unused = 0
        for node, loads in usage._waiting.items():
            assert node in nodes
            assert not node.evicted, "what has left the device can't be of use any more"
            tokens = sum(tokens for _, tokens in loads)
            assert 0 < tokens <= len(node.key)
            unused += tokens
        assert unused == usage.unused_tokens
        for load in transfers.loads:
            assert sum(len(node.key) for node in load.nodes) == load.tokens
            assert load.nodes <= nodes
            assert not any(node.evicted for node in load.nodes)

    def check_locks_are_gone(self) -> None:
        """With no request and nothing under way, nothing is locked."""
        for node, _ in self.nodes():
            data = node.component_data[FULL]
            assert (data.lock_ref, data.host_lock_ref) == (0, 0), f"node {node.id}"
            assert node.write_through_pending_id is None
            assert node.load_back_pending_id is None


def rows_of_path(path: Sequence[int], layer: int) -> tuple[Any, Any]:
    """K and V that a model with these layers computes for these tokens."""
    rows = torch.empty(2, len(path), DIM)
    rows[:, :, :2] = _digests(tuple(path))
    rows[:, :, 2] = layer
    rows[0, :, 3] = 0
    rows[1, :, 3] = 1
    return rows[0], rows[1]


@functools.lru_cache(maxsize=1024)
def _digests(path: tuple[int, ...]) -> Any:
    """Per token, two numbers that depend on it and on all before it."""
    digest, parts = 0, []
    for token in path:
        digest = (digest * 1_000_003 + token + 1) & 0xFFFFFFFFFF
        parts.append((digest & 0xFFFFF, digest >> 20))
    return torch.tensor(parts, dtype=torch.float32).reshape(-1, 2)
