"""SGLang's radix cache with KVFlow's eviction order: all that touches its private parts.

Three subclasses of SGLang's own classes, selected through its public registries:

* ``KVFlowTreeCore``: the Python tree core, whose two sets of evictable leaves (device, host) keep
  an eviction index beside them, and whose nodes keep their owners over splits;
* ``KVFlowFullComponent``: takes victims from those indexes instead of building a heap per call;
* ``KVFlowRadixCache``: learns from finished requests which nodes belong to whom.

What each needs of SGLang, per version, is in ``compat.py``. Everything here runs on the scheduler
thread.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from kvflow.eviction import (
    AgentCall,
    CallLearner,
    EvictionIndex,
    EvictionKey,
    Owner,
    OwnershipMap,
    eviction_key,
)
from kvflow.graph import INFINITE_STEPS
from kvflow.protocol import RequestMetadata
from kvflow.sglang_plugin.control import ControlMessage, WorkflowKey
from kvflow.sglang_plugin.metadata import parse_metadata
from kvflow.sglang_plugin.metrics import AgentClass, EngineMetrics, NoMetrics, Tier
from kvflow.sglang_plugin.weights import WorkflowWeights

try:
    from sglang.srt.mem_cache.unified_cache.components.full import FullComponent
except ModuleNotFoundError:  # 0.5.17
    from sglang.srt.mem_cache.unified_cache.components.full_component import FullComponent

__all__ = ["KVFlowFullComponent", "KVFlowRadixCache", "KVFlowTreeCore"]

logger = logging.getLogger(__name__)

MIN_SPLIT_TOKENS = 64
"""A weighted victim longer than what is needed gives up its tail only, in pieces of at least this
many tokens: smaller ones would cost more in nodes than they save in tokens."""


class LeafSet(set[Any]):
    """A set of evictable leaves that keeps an eviction index of its members.

    SGLang adds to and discards from it one node at a time (0.5.17-0.5.23,
    ``UnifiedTreeCore._update_evictable_leaf_sets``); whatever else it does only reads.
    """

    def __init__(self, index: EvictionIndex[Any]) -> None:
        super().__init__()
        self.index = index

    def add(self, node: Any) -> None:
        if node not in self:
            super().add(node)
            self.index.add(node)

    def discard(self, node: Any) -> None:
        if node in self:
            super().discard(node)
            self.index.discard(node)


class KVFlowTreeCore(UnifiedTreeCore):
    """The Python tree core with ordered leaves and owned nodes."""

    def reset(self) -> None:
        super().reset()
        self.ownership: OwnershipMap[Any] = OwnershipMap()
        self.evictable_device_leaves = LeafSet(EvictionIndex(self.rank, _node_id))
        self.evictable_host_leaves = LeafSet(EvictionIndex(self.rank, _node_id))

    def rank(self, node: Any) -> EvictionKey:
        """The node's eviction key, the same on both tiers."""
        kind, steps = self.ownership.rank(node)
        depth_tokens = self._depth_tokens(node) if steps < INFINITE_STEPS else 0
        return eviction_key(kind, steps, depth_tokens, node.last_access_time)

    def rerank(self, nodes: Iterable[Any]) -> None:
        """The weight of these nodes changed."""
        for node in nodes:
            self.evictable_device_leaves.index.refresh(node)
            self.evictable_host_leaves.index.refresh(node)

    def _depth_tokens(self, node: Any) -> int:
        depth = 0
        while node is not self.root_node:
            depth += len(node.key)
            node = node.parent
        return depth

    def _split_node(self, key: RadixKey, child: Any, split_len: int) -> Any:
        result = super()._split_node(key, child, split_len)
        upper = result[0]
        self.ownership.split(upper, child)
        self.rerank((upper, child))
        return result

    def _unregister_node(self, node: Any) -> None:
        super()._unregister_node(node)
        self.ownership.forget(node)

    def split_at(self, node: Any, length: int) -> tuple[Any, Any]:
        """Split without touching recency: ``(upper node, action to apply)``."""
        recency = node.last_access_time
        upper, action = self._split_node(node.key, node, length)
        upper.last_access_time = node.last_access_time = recency
        self.rerank((upper, node))
        return upper, action


class KVFlowFullComponent(FullComponent):
    """Chooses victims from the index, on the device and in the host pool."""

    metrics: EngineMetrics = NoMetrics()
    needed_tokens: int | None = None
    host_candidate_key: EvictionKey | None = None

    def _evict_device_start(self, request_cnt: int) -> None:
        self._requested_tokens = request_cnt
        self._set_aside: list[Any] = []
        self._last_victim: Any = None

    def _evict_device_next_node(
        self, tracker: Any, device_frees: Any, host_frees: Any, cache_actions: Any = None
    ) -> int | None:
        leaves = self.tree_core.evictable_device_leaves
        last = self._last_victim
        if last is not None and last in leaves:
            # Its eviction was declined (a write-back that found no room): do not offer it again.
            leaves.index.discard(last)
            self._set_aside.append(last)
        evicted_tokens = tracker[self.component_type]
        if evicted_tokens >= self._requested_tokens:
            self._last_victim = None
            return None
        wanted = self._requested_tokens if self.needed_tokens is None else self.needed_tokens
        victim, actions = self._choose(leaves, "device", wanted - evicted_tokens)
        self._last_victim = victim
        if victim is None:
            return None
        if cache_actions is None:
            self.cache._apply_cache_actions(actions)
        else:
            cache_actions.extend(actions)
        return int(victim.id)

    def _evict_device_end(self) -> None:
        leaves = self.tree_core.evictable_device_leaves
        for node in self._set_aside:
            if node in leaves:
                leaves.index.add(node)
        self._set_aside = []
        self._last_victim = None

    def drive_host_eviction(
        self, num_tokens: int, tracker: Any, device_frees: Any, host_frees: Any, **kwargs: Any
    ) -> None:
        leaves = self.tree_core.evictable_host_leaves
        while (missing := num_tokens - tracker[self.component_type]) > 0:
            lowest = leaves.index.lowest()
            if lowest is None:
                return
            if self.host_candidate_key is not None and not (
                self.tree_core.rank(lowest) < self.host_candidate_key
            ):
                # What would be written is worth less than anything it could displace.
                return
            victim, actions = self._choose(leaves, "host", missing)
            self.cache._apply_cache_actions(actions)
            self.tree_core._evict_host_leaf(victim, tracker, device_frees, host_frees, **kwargs)

    def _choose(self, leaves: LeafSet, tier: Tier, missing: int) -> tuple[Any, list[Any]]:
        start_s = time.perf_counter()
        victim = leaves.index.lowest()
        actions: list[Any] = []
        if victim is None:
            return None, actions
        core = self.tree_core
        kind, steps = core.ownership.rank(victim)
        if steps < INFINITE_STEPS:
            pieces = max(missing, MIN_SPLIT_TOKENS)
            keep = (len(victim.key) - pieces) // core.page_size * core.page_size
            if keep > 0:
                _, action = core.split_at(victim, keep)
                if action is not None:
                    actions.append(action)
        self.metrics.evicted(tier, kind, len(victim.key))
        self.metrics.decided(tier, time.perf_counter() - start_s)
        return victim, actions


class KVFlowRadixCache(UnifiedRadixCache):
    """SGLang's unified radix cache, with eviction ordered by steps-to-execution."""

    def __init__(self, params: Any) -> None:
        self.kvflow_learner = CallLearner()
        self.kvflow_weights = WorkflowWeights(self._owner_changed, self._owner_dropped)
        self.kvflow_metrics: EngineMetrics = NoMetrics()
        super().__init__(params)

    def report_to(self, metrics: EngineMetrics) -> None:
        """Send metrics there from now on."""
        self.kvflow_metrics = metrics
        self._full_component().metrics = metrics

    def apply_control(self, message: ControlMessage) -> None:
        """Apply a message from the service; same step, same order on all ranks."""
        for key in self.kvflow_weights.apply(message):
            self.kvflow_weights.drop_histories(self.kvflow_learner.forget_workflow(key))
        self._report_state()

    def apply_request_hints(self, custom_params: object) -> None:
        """Take in-band steps of a request that has just arrived."""
        metadata = parse_metadata(custom_params)
        if metadata is not None and metadata.steps_to_execution is not None:
            self.kvflow_weights.apply_in_band(metadata)
            self._report_state()

    def reset(self) -> None:
        super().reset()
        self.kvflow_weights.release_nodes()

    def evict(self, params: Any) -> Any:
        with self._needing(params):
            return super().evict(params)

    def evict_for_alloc(self, params: Any, **kwargs: Any) -> Any:
        # The walk's own quota is all that is evictable (0.5.23, _evict_components); the
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

    def cache_finished_req(self, req: Any, is_insert: bool = True, **kwargs: Any) -> None:
        """0.5.17's counterpart of ``checkpoint_into_tree`` for a finished request."""
        super().cache_finished_req(req, is_insert=is_insert, **kwargs)
        if is_insert:
            self._learn_guarded(req)

    def _execute_kv_backup(self, node_id: int, *args: Any, **kwargs: Any) -> Any:
        component = self._full_component()
        component.host_candidate_key = self.tree_core.rank(self.tree_core.node_by_id(node_id))
        try:
            return super()._execute_kv_backup(node_id, *args, **kwargs)
        finally:
            component.host_candidate_key = None

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
        if metadata is None:
            self.kvflow_metrics.served("none", prompt_tokens, hit_tokens)
            return
        workflow: WorkflowKey = (metadata.client_id, metadata.workflow_id)
        namespace = (req.extra_key, getattr(req, "cache_salt", None))
        prefix_owner = self.kvflow_weights.prefix_owner(
            metadata.client_id, metadata.agent_id, namespace
        )
        known: AgentClass = (
            "predicted"
            if self.kvflow_weights.is_live(workflow) and prefix_owner.steps < INFINITE_STEPS
            else "unpredicted"
        )
        self.kvflow_metrics.served(known, prompt_tokens, hit_tokens)
        self._mark(req, metadata, workflow, namespace, prefix_owner)

    def _mark(
        self,
        req: Any,
        metadata: RequestMetadata,
        workflow: WorkflowKey,
        namespace: Hashable,
        prefix_owner: Owner[Any],
    ) -> None:
        call = AgentCall(
            agent=(metadata.client_id, metadata.agent_id, namespace),
            workflow=workflow,
            prompt=_tokens(req.origin_input_ids),
            answer=_tokens(req.output_ids),
            fixed_prefix_tokens=(
                metadata.fixed_prefix_tokens
                if metadata.fixed_prefix_tokens is not None
                else self.kvflow_weights.fixed_prefix_tokens(workflow, metadata.agent_id)
            ),
            first_message_tokens=_first_message_tokens(req),
        )
        lesson = self.kvflow_learner.observe(call)
        self.kvflow_weights.drop_histories(lesson.ended)
        tokens = call.prompt + call.answer
        path = self._path(req, tokens, len(tokens))
        self.tree_core.ownership.mark_seen(path)
        self._assign(prefix_owner, self._path(req, tokens, lesson.fixed_tokens))
        history_owner = self.kvflow_weights.history_owner(
            workflow, metadata.agent_id, lesson.conversation
        )
        self._assign(history_owner, path if lesson.keep_history else ())

    def _path(self, req: Any, tokens: array[int], length: int) -> list[Any]:
        """The nodes that hold the first ``length`` tokens, as far as they are in the tree.

        Splits the last node where the path ends within it. Whole pages only.
        """
        key = RadixKey(tokens[:length], req.extra_key, **_salt(req))
        key, _ = key.maybe_to_bigram_view(self.tree_core.is_eagle)
        key = key.page_aligned(self.page_size)
        nodes: list[Any] = []
        node = self.tree_core.root_node
        while len(key):
            child = node.children.get(key.child_key(self.page_size))
            if child is None:
                break
            shared = child.key.match(key, page_size=self.page_size)
            if shared == 0:
                break
            if shared < len(child.key):
                child, action = self.tree_core.split_at(child, shared)
                if action is not None:
                    self._apply_cache_actions([action])
            nodes.append(child)
            node, key = child, key[shared:]
        return nodes

    def _assign(self, owner: Owner[Any], path: Iterable[Any]) -> None:
        self.tree_core.rerank(self.tree_core.ownership.assign(owner, path))

    def _owner_changed(self, owner: Owner[Any]) -> None:
        self.tree_core.rerank(owner.nodes)

    def _owner_dropped(self, owner: Owner[Any]) -> None:
        self._assign(owner, ())

    def _report_state(self) -> None:
        weights = self.kvflow_weights
        self.kvflow_metrics.state(
            weights.updates_applied, weights.lease_held, weights.live_workflows
        )


def _node_id(node: Any) -> int:
    return int(node.id)


def _tokens(ids: Any) -> array[int]:
    return ids if isinstance(ids, array) and ids.typecode == "q" else array("q", ids)


def _first_message_tokens(req: Any) -> int | None:
    """Where a chat template ended the first message: at its first end-of-turn token.

    Those are among the model's end-of-sequence tokens, as an answer ends with one too.
    """
    prompt = req.origin_input_ids
    ends = [prompt.index(token) + 1 for token in req.eos_token_ids or () if token in prompt]
    return min(ends, default=None)


def _salt(req: Any) -> dict[str, Any]:
    salt = getattr(req, "cache_salt", None)
    return {} if salt is None else {"cache_salt": salt}
