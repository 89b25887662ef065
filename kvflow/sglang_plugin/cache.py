"""SGLang's unified radix cache, with KVFlow's order, learning and copies ahead of need.

``KVFlowRadixCache`` learns from finished requests which nodes belong to whom, and makes copies
that no request has asked for yet (``transfers.py``). The tree below it is in ``tree.py``; what is
needed of SGLang, per version, in ``compat.py``. Everything here runs on the scheduler thread.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType

from kvflow.eviction import AgentCall, CallLearner, EvictionKey, Owner
from kvflow.graph import INFINITE_STEPS
from kvflow.prefetch import choose_load
from kvflow.protocol import RequestMetadata
from kvflow.sglang_plugin.checkpoints import ShortCheckpoints
from kvflow.sglang_plugin.compat import nothing_loaded
from kvflow.sglang_plugin.control import (
    CancelFetch,
    ControlMessage,
    FetchAhead,
    LoadAhead,
    Rates,
    Tick,
    WorkflowKey,
)
from kvflow.sglang_plugin.metadata import parse_metadata
from kvflow.sglang_plugin.metrics import AgentClass, EngineMetrics, NoMetrics
from kvflow.sglang_plugin.salts import Namespace
from kvflow.sglang_plugin.timelines import Timelines
from kvflow.sglang_plugin.transfers import Cause, TokenPath, TransfersAhead, needed_sooner
from kvflow.sglang_plugin.weights import WorkflowWeights

__all__ = ["KVFlowRadixCache"]

logger = logging.getLogger(__name__)

PATHS_TOKEN_BUDGET: Final = 8_000_000
"""Token ids kept so that a path which left the tree can be fetched from the storage tier."""


class KVFlowRadixCache(ShortCheckpoints):
    """SGLang's unified radix cache, with eviction ordered by steps-to-execution."""

    def __init__(self, params: Any) -> None:
        self.kvflow_learner = CallLearner()
        self.kvflow_weights = WorkflowWeights(self._owner_changed, self._owner_dropped)
        self.kvflow_metrics: EngineMetrics = NoMetrics()
        self.kvflow_load: Literal["auto", "load", "recompute"] = "auto"
        self.kvflow_rates = Rates()
        self.kvflow_now_s: float | None = None
        self.kvflow_calibration: list[tuple[int, float]] = []
        self.kvflow_changed = True
        self.kvflow_timelines: Timelines | None = None
        self.kvflow_paths: OrderedDict[int, TokenPath] = OrderedDict()
        self.kvflow_fixed_tokens: dict[int, int] = {}
        self._paths_tokens = 0
        self._backing_up = False
        self.kvflow_transfers = TransfersAhead(self)
        super().__init__(params)
        self.tree_core.watcher = self.kvflow_transfers

    def report_to(self, metrics: EngineMetrics) -> None:
        """Send metrics there from now on."""
        self.kvflow_metrics = metrics
        self._full_component().metrics = metrics

    def apply_control(self, message: ControlMessage) -> None:
        """Apply a message from the service; same step, same order on all ranks."""
        if isinstance(message, LoadAhead | FetchAhead | CancelFetch):
            self._apply_copy(message)
            return
        if isinstance(message, Tick):
            self.kvflow_now_s = message.now_s
            self.kvflow_rates = message.rates
        else:
            self.kvflow_changed = True
        for key in self.kvflow_weights.apply(message):
            self.kvflow_changed = True
            self.kvflow_weights.drop_histories(self.kvflow_learner.forget_workflow(key))
        self._report_state()

    def apply_request_hints(self, custom_params: object) -> None:
        """Take in-band steps of a request that has just arrived."""
        metadata = parse_metadata(custom_params)
        if metadata is not None and metadata.steps_to_execution is not None:
            self.kvflow_weights.apply_in_band(metadata)
            self.kvflow_changed = True
            self._report_state()

    def called(self, custom_params: object, salt: str | None = None) -> None:
        """A request has arrived: whether its agent was expected tells how far to trust hints."""
        metadata = parse_metadata(custom_params)
        if metadata is not None:
            key = (metadata.client_id, metadata.workflow_id)
            self.kvflow_weights.under_salt(key, salt)
            self.kvflow_weights.called(
                key,
                metadata.agent_id,
                brings_steps=metadata.steps_to_execution is not None,
            )

    def reset(self) -> None:
        super().reset()
        self.tree_core.watcher = self.kvflow_transfers
        self.kvflow_weights.release_nodes()
        self.kvflow_transfers.clear()

    def init_hicache(self, server_args: Any, params: Any) -> None:
        super().init_hicache(server_args, params)
        if self.cache_controller is None:
            return
        try:
            self.kvflow_calibration = self.kvflow_transfers.calibrate()
        except Exception:
            logger.exception("KVFlow: loads could not be timed; they will be as they happen")

    def evict_host(self, num_tokens: int, *args: Any, **kwargs: Any) -> int:
        """Make room for ``num_tokens``: for a fetch SGLang asks for all, whatever is free.

        A backup states the shortfall (``_execute_kv_backup``).
        """
        shortfall = num_tokens - int(self.cache_controller.mem_pool_host.available_size())
        if args or kwargs or self._backing_up or not 0 < shortfall < num_tokens:
            return int(super().evict_host(num_tokens, *args, **kwargs))
        return int(super().evict_host(shortfall))

    def check_hicache_events(self) -> None:
        fetches = self.kvflow_transfers.fetches
        if not fetches or len(fetches) < len(self.ongoing_prefetch):
            super().check_hicache_events()
        else:
            # Fetches get their host memory here. Only ours are under way, and what they bring
            # may not displace what is needed as soon.
            component = self._full_component()
            owners = [self.kvflow_weights.owner(number) for number in fetches]
            component.host_candidate_key = max(
                (needed_sooner(owner) for owner in owners if owner is not None), default=None
            )
            try:
                super().check_hicache_events()
            finally:
                component.host_candidate_key = None
        if self.kvflow_transfers.busy and self.kvflow_transfers.take_landed():
            self.kvflow_changed = True

    def loading_check(self, finish_count: int | None = None) -> None:
        observer = self.kvflow_transfers.observer
        if observer is not None and self.cache_controller is not None:
            for ack in self.cache_controller.ack_load_queue[: finish_count or 0]:
                if getattr(ack, "timing_enabled", False) and ack.num_tokens:
                    seconds = ack.start_event.elapsed_time(ack.finish_event) / 1000
                    observer.loaded(ack.num_tokens, seconds)
                    self._report_load(ack, seconds)
        super().loading_check(finish_count=finish_count)

    def _report_load(self, ack: Any, seconds: float) -> None:
        """A load has landed; one that a request was behind cost that request time."""
        if any(load.anchor in ack.node_ids for load in self.kvflow_transfers.loads):
            return
        self.kvflow_metrics.stalled("load", seconds)
        if self.kvflow_timelines is not None:
            now_s = time.monotonic()
            self.kvflow_timelines.recorder.copy("load", now_s - seconds, now_s, ack.num_tokens, "")

    def init_load_back(self, params: Any) -> Any:
        """Load what a request found in host memory, unless computing it is faster."""
        req = params.req
        only_full = not (req.swa_host_hit_length or req.mamba_host_hit_length)
        tokens = params.host_hit_length
        if only_full and tokens > 0:
            rates = self.kvflow_rates
            choice = choose_load(tokens, rates.load, rates.prefill, self.kvflow_load)
            self.kvflow_metrics.load_chosen(choice, tokens)
            if choice == "recompute":
                return nothing_loaded(req)
        return super().init_load_back(params)

    def prefetch_from_storage(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request's own fetch; not made where one under way brings the same."""
        if self.kvflow_transfers.fetches and len(args) > 1:
            prompt = array("q", [*(kwargs.get("matched_prefix_tokens") or ()), *args[1]])
            path = TokenPath(prompt, kwargs.get("extra_key"), kwargs.get("cache_salt"))
            if self.kvflow_transfers.fetch_covering(path) is not None:
                return None
        return super().prefetch_from_storage(request, *args, **kwargs)

    def prefetch_own(self, handle: Any, anchor: int, path: TokenPath, start: int) -> None:
        """Fetch the path from ``start`` on from the storage tier; no request is behind it."""
        super().prefetch_from_storage(
            handle,
            anchor,
            path.tokens[start:],
            self.get_last_hash_value(anchor),
            self.get_prefix_hash_values(anchor) if self.hicache_storage_pass_prefix_keys else None,
            matched_prefix_tokens=path.tokens[:start],
            extra_key=path.extra_key,
            cache_salt=path.salt,
        )

    def start_submitted_loads(self) -> int:
        """Start the copies queued by ``load_back``; the index of their layer-wise events."""
        return int(self.ready_to_load_host_cache())

    def prefetch_wasted(self, cause: Cause, tokens: int) -> None:
        """Something that was loaded ahead is evicted before it was read."""
        self.kvflow_metrics.prefetch_outcome("wasted", tokens)
        self.kvflow_weights.prefetched(cause[0], used=False)

    def read_by_batch(self, nodes: Iterable[Any]) -> None:
        """A request that reads these nodes enters a batch."""
        for cause, tokens in self.kvflow_transfers.usage.used(nodes):
            self.kvflow_metrics.prefetch_outcome("used", tokens)
            self.kvflow_weights.prefetched(cause[0], used=True)

    def evict(self, params: Any) -> Any:
        with self._needing(params):
            return super().evict(params)

    def evict_for_alloc(self, params: Any, **kwargs: Any) -> Any:
        # The walk's own quota is all that is evictable (0.5.19-0.5.23, _evict_components); the
        # shortfall is what a split may stop at.
        with self._needing(params):
            return super().evict_for_alloc(params, **kwargs)

    @contextmanager
    def _needing(self, params: Any) -> Iterator[None]:
        component = self._full_component()
        component.needed_tokens = params.num_tokens
        try:
            yield
        finally:
            component.needed_tokens = None

    def checkpoint_into_tree(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        super().checkpoint_into_tree(req, up_to=up_to, **kwargs)
        if req.finished():
            self._learn_guarded(req)
        else:
            self.kvflow_transfers.wait_before_decoding(self.path_to(req.last_node))

    def cache_unfinished_req(self, req: Any, *args: Any, **kwargs: Any) -> None:
        """``checkpoint_into_tree`` up to 0.5.21, for a request that goes on."""
        super().cache_unfinished_req(req, *args, **kwargs)
        self.kvflow_transfers.wait_before_decoding(self.path_to(req.last_node))

    def cache_finished_req(self, req: Any, is_insert: bool = True, **kwargs: Any) -> None:
        """``checkpoint_into_tree`` up to 0.5.20, for a finished request."""
        super().cache_finished_req(req, is_insert=is_insert, **kwargs)
        if is_insert:
            self._learn_guarded(req)

    def insert_req(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """0.5.21's counterpart of ``checkpoint_into_tree``, for a finished request."""
        super().insert_req(req, up_to=up_to, **kwargs)
        if req.finished():
            self._learn_guarded(req)

    def _execute_kv_backup(self, node_id: int, *args: Any, **kwargs: Any) -> Any:
        component = self._full_component()
        node = self.tree_core.node_by_id(node_id)
        if self.enable_storage:
            # The way to the storage tier leads through the host pool: what is refused here is
            # not kept there either. So nothing is, but what it hangs from has to stay.
            component.kept_duplicates = frozenset(self.path_to(node_id))
        else:
            component.host_candidate_key = self.tree_core.rank(node)
        self._backing_up = True
        try:
            return super()._execute_kv_backup(node_id, *args, **kwargs)
        finally:
            self._backing_up = False
            component.host_candidate_key = None
            component.kept_duplicates = frozenset()

    @contextmanager
    def evicting_below(self, key: EvictionKey) -> Iterator[None]:
        """Within the block, evict from the device only what ranks below ``key``."""
        component = self._full_component()
        component.device_candidate_key = key
        try:
            yield
        finally:
            component.device_candidate_key = None

    def _apply_copy(self, message: LoadAhead | FetchAhead | CancelFetch) -> None:
        if isinstance(message, CancelFetch):
            self.kvflow_transfers.cancel_fetch(message.owner)
            return
        owner = self.kvflow_weights.owner(message.owner)
        if owner is None:
            return
        copy = (
            self.kvflow_transfers.load
            if isinstance(message, LoadAhead)
            else self.kvflow_transfers.fetch
        )
        copy(owner, message.end_tokens, message.cause)

    def _full_component(self) -> Any:
        return self.components[ComponentType.FULL]

    def _learn_guarded(self, req: Any) -> None:
        """Learning is advisory: an error of ours is logged and never reaches the request."""
        if self.disable:
            return
        try:
            self._learn(req)
        except Exception:
            logger.exception("KVFlow: a finished request taught nothing; the engine goes on")

    def _learn(self, req: Any) -> None:
        metadata = parse_metadata(req.sampling_params.custom_params)
        prompt_tokens = len(req.origin_input_ids)
        hit_tokens = min(req.cached_tokens, prompt_tokens)
        self.kvflow_metrics.found(
            *(getattr(req, f"cached_tokens_{tier}", 0) for tier in ("device", "host", "storage"))
        )
        if metadata is None:
            self.kvflow_metrics.served("none", prompt_tokens, hit_tokens)
            return
        workflow: WorkflowKey = (metadata.client_id, metadata.workflow_id)
        namespace = Namespace(req.extra_key, getattr(req, "cache_salt", None))
        prefix_owner = self.kvflow_weights.prefix_owner(
            metadata.client_id, metadata.agent_id, namespace
        )
        known: AgentClass = (
            "predicted"
            if self.kvflow_weights.is_live(workflow) and prefix_owner.steps < INFINITE_STEPS
            else "unpredicted"
        )
        self.kvflow_metrics.served(known, prompt_tokens, hit_tokens)
        prefill = self.kvflow_rates.prefill
        if known == "predicted" and prefill is not None:
            missed = sum(len(node.key) for node in prefix_owner.nodes) - hit_tokens
            if missed > 0:
                self.kvflow_metrics.stalled("recompute", missed / prefill.tokens_per_s)
        self._mark(req, metadata, workflow, namespace, prefix_owner)

    def _mark(
        self,
        req: Any,
        metadata: RequestMetadata,
        workflow: WorkflowKey,
        namespace: Hashable,
        prefix_owner: Owner[Any],
    ) -> None:
        agent = (metadata.client_id, metadata.agent_id, namespace)
        known = self.kvflow_learner.knows(agent)
        call = AgentCall(
            agent=agent,
            workflow=workflow,
            prompt=_tokens(req.origin_input_ids),
            answer=_tokens(req.output_ids),
            fixed_prefix_tokens=(
                metadata.fixed_prefix_tokens
                if metadata.fixed_prefix_tokens is not None
                else self.kvflow_weights.fixed_prefix_tokens(workflow, metadata.agent_id)
            ),
            first_message_tokens=None if known else _first_message_tokens(req),
        )
        lesson = self.kvflow_learner.observe(call)
        self.kvflow_weights.drop_histories(lesson.ended)
        tokens = lesson.conversation.tokens
        salt = getattr(req, "cache_salt", None)
        path = self._path_of(req, tokens, salt)
        fixed_path = self._cut(path, lesson.fixed_tokens)
        self.tree_core.ownership.mark_seen(path)
        self._assign(prefix_owner, fixed_path)
        self.kvflow_fixed_tokens[prefix_owner.number] = lesson.fixed_tokens
        fixed = tokens[: lesson.fixed_tokens]
        self._remember_path(prefix_owner, fixed, req.extra_key, salt)
        history_owner = self.kvflow_weights.history_owner(
            workflow, metadata.agent_id, lesson.conversation
        )
        self._assign(history_owner, path if lesson.keep_history else ())
        if lesson.keep_history:
            self._remember_path(history_owner, tokens, req.extra_key, salt)
        self.kvflow_changed = True

    def _remember_path(
        self, owner: Owner[Any], tokens: array[int], extra_key: Any, salt: Any
    ) -> None:
        if not self.kvflow_transfers.can_fetch:
            return
        self._forget_path(owner.number)
        tokens = tokens[: len(tokens) // self.page_size * self.page_size]
        self.kvflow_paths[owner.number] = TokenPath(tokens, extra_key, salt)
        self._paths_tokens += len(tokens)
        while self._paths_tokens > PATHS_TOKEN_BUDGET and len(self.kvflow_paths) > 1:
            self._forget_path(next(iter(self.kvflow_paths)))

    def find_path_again(self, number: int) -> None:
        """Nodes of an owner's path came back into the tree without a request."""
        owner, path = self.kvflow_weights.owner(number), self.kvflow_paths.get(number)
        if owner is not None and path is not None:
            self._assign(owner, self._path(*path))

    def _forget_path(self, number: int) -> None:
        path = self.kvflow_paths.pop(number, None)
        if path is not None:
            self._paths_tokens -= len(path.tokens)

    def chain(self, owner: Owner[Any]) -> list[Any]:
        """The nodes of an owner's path from the root down, as far as they hang together."""
        below = {node.parent: node for node in owner.nodes}
        nodes = []
        node = below.get(self.tree_core.root_node)
        while node is not None:
            nodes.append(node)
            node = below.get(node)
        return nodes

    def _key(self, tokens: array[int], extra_key: Any, salt: Any) -> Any:
        key = RadixKey(tokens, extra_key, **({} if salt is None else {"cache_salt": salt}))
        key, _ = key.maybe_to_bigram_view(self.tree_core.is_eagle)
        return key.page_aligned(self.page_size)

    def peek(self, tokens: Sequence[int], extra_key: Any, salt: Any) -> list[tuple[Any, int]]:
        """The nodes on the way of a prompt and how many tokens of each it shares.

        Changes nothing: no recency, no splits.
        """
        return self._walk(self.tree_core.root_node, self._key(_tokens(tokens), extra_key, salt))

    def _walk(self, node: Any, key: Any) -> list[tuple[Any, int]]:
        """The nodes below ``node`` that hold the key, and how many tokens of each it shares."""
        found: list[tuple[Any, int]] = []
        while len(key):
            node = node.children.get(key.child_key(self.page_size))
            if node is None:
                break
            shared = node.key.match(key, page_size=self.page_size)
            if shared == 0:
                break
            found.append((node, shared))
            if shared < len(node.key):
                break
            key = key[shared:]
        return found

    def prompt(self, req: Any) -> TokenPath:
        """Tokens of a waiting request with its cache namespace."""
        tokens = _tokens(req.origin_input_ids)
        if len(req.output_ids):
            tokens = tokens + _tokens(req.output_ids)
        return TokenPath(tokens, req.extra_key, getattr(req, "cache_salt", None))

    def arriving_prompt(self, request: Any) -> TokenPath | None:
        """The same of a request on its way from the tokenizer; None for anything else."""
        input_ids = getattr(request, "input_ids", None)
        if not input_ids:
            return None
        salt = getattr(request, "cache_salt", None)
        return TokenPath(_tokens(input_ids), getattr(request, "extra_key", None), salt)

    def peek_request(self, req: Any) -> list[tuple[Any, int]]:
        """``peek`` for a waiting request."""
        return self.peek(*self.prompt(req))

    def path_to(self, node_id: int) -> Iterator[Any]:
        """The nodes from this one up to the root, without the root."""
        node = self.tree_core.node_by_id(node_id)
        while node is not self.tree_core.root_node:
            yield node
            node = node.parent

    def fetch_anchor(self, path: TokenPath) -> tuple[int, int]:
        """Where a fetch of the path is to begin: id of the node, and how many tokens lead there.

        Below the last node that is in host memory; further up where too little would be left to
        fetch for SGLang to do it. What is fetched a second time is freed again.
        """
        anchors = [(int(self.tree_core.root_node.id), 0)]
        for child, shared in self.peek(*path):
            if shared < len(child.key) or not child.backuped:
                break
            anchors.append((int(child.id), anchors[-1][1] + shared))
        wanted = len(path.tokens) - self.prefetch_threshold
        return next((anchor for anchor in reversed(anchors) if anchor[1] <= wanted), anchors[0])

    def _path(self, tokens: array[int], extra_key: Any, salt: Any) -> list[Any]:
        """The nodes that hold ``tokens``, as far as they are in the tree.

        Splits the last node where the path ends within it. Whole pages only.
        """
        return self._whole_nodes(self.peek(tokens, extra_key, salt))

    def _path_of(self, req: Any, tokens: array[int], salt: Any) -> list[Any]:
        """``_path`` of a finished request: the nodes it has a lock on need no looking up."""
        last_node = getattr(req, "last_node", None)
        if last_node is None or not self.tree_core.short_walks:
            return self._path(tokens, req.extra_key, salt)
        nodes = [*self.path_to(last_node)][::-1]
        held = sum(len(node.key) for node in nodes)
        if len(tokens) - held >= self.page_size:
            below = nodes[-1] if nodes else self.tree_core.root_node
            found = self._walk(below, self._key(tokens[held:], req.extra_key, salt))
            nodes += self._whole_nodes(found)
        return nodes

    def _whole_nodes(self, found: list[tuple[Any, int]]) -> list[Any]:
        """The nodes found, the last of them split where less than all of it was."""
        nodes = [node for node, _ in found]
        if found and found[-1][1] < len(nodes[-1].key):
            nodes[-1] = self._split(*found[-1])
        return nodes

    def _cut(self, path: list[Any], tokens: int) -> list[Any]:
        """The nodes of the path's first ``tokens``, whole pages only.

        Splits the node that this ends within; its upper part is in the path then, too.
        """
        left = tokens // self.page_size * self.page_size
        for number, node in enumerate(path):
            if left <= 0:
                return path[:number]
            if left < len(node.key):
                path.insert(number, self._split(node, left))
                return path[: number + 1]
            left -= len(node.key)
        return list(path)

    def _split(self, node: Any, length: int) -> Any:
        upper, action = self.tree_core.split_at(node, length)
        if action is not None:
            self._apply_cache_actions([action])
        return upper

    def _assign(self, owner: Owner[Any], path: Iterable[Any]) -> None:
        self.tree_core.rerank(self.tree_core.ownership.assign(owner, path))

    def _owner_changed(self, owner: Owner[Any]) -> None:
        self.tree_core.rerank(owner.nodes)

    def _owner_dropped(self, owner: Owner[Any]) -> None:
        self._assign(owner, ())
        self._forget_path(owner.number)
        self.kvflow_fixed_tokens.pop(owner.number, None)

    def _report_state(self) -> None:
        weights = self.kvflow_weights
        self.kvflow_metrics.state(
            weights.updates_applied, weights.lease_held, weights.live_workflows
        )
        self.kvflow_metrics.predictions(weights.trust.hits, weights.trust.misses)


def _tokens(ids: Any) -> array[int]:
    return ids if isinstance(ids, array) and ids.typecode == "q" else array("q", ids)


def _first_message_tokens(req: Any) -> int | None:
    """Where a chat template ended the first message: at its first end-of-turn token.

    Those are among the model's end-of-sequence tokens, as an answer ends with one too.
    """
    prompt = req.origin_input_ids
    ends = [prompt.index(token) + 1 for token in req.eos_token_ids or () if token in prompt]
    return min(ends, default=None)
