"""Which waiting requests enter a batch, and what the batch has to wait for.

Wraps ``Scheduler._get_new_batch_prefill_raw`` (0.5.17-0.5.23), the one place where SGLang forms
batches of new requests. Runs on every rank's scheduler thread, and decides by what all ranks know:
the tree, the copies under way, the messages. Errors of ours never reach SGLang's own decision.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from kvflow.prefetch import Holding, WaitingRequest, WorkflowAdmission, WorkflowDemand
from kvflow.sglang_plugin.control import WorkflowKey
from kvflow.sglang_plugin.metadata import parse_metadata

if TYPE_CHECKING:
    from kvflow.sglang_plugin.cache import KVFlowRadixCache
    from kvflow.sglang_plugin.timelines import Timelines

__all__ = ["StatusAwareScheduling"]

logger = logging.getLogger(__name__)

NAP_S: Final = 0.0005
"""Sleep of a scheduler step that found nothing to run but copies to wait for."""


class StatusAwareScheduling:
    """Passes over requests whose prefix is on its way, or whose workflow has no place.

    Args:
        overcommit: see ``WorkflowAdmission``; None: workflows are never held back.
    """

    def __init__(self, cache: KVFlowRadixCache, overcommit: float | None) -> None:
        self._cache = cache
        self.timelines: Timelines | None = None
        self._holding = Holding()
        self._admission = None if overcommit is None else WorkflowAdmission(overcommit)
        self._workflow_of: dict[str, WorkflowKey | None] = {}
        self._since_s: dict[str, float] = {}
        self._limited = False
        self._clock_s = 0.0
        self._held: frozenset[str] = frozenset()
        self._held_since_s: dict[str, float] = {}

    @property
    def needs_clock(self) -> bool:
        """Whether a decision depends on the time, so that all ranks have to be told it."""
        return bool(self._held or self._holding.waiting or self._limited)

    def form_batch(self, original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        """Form a batch without the requests that are passed over."""
        try:
            held = self._passed_over(scheduler)
        except Exception:
            logger.exception("KVFlow: no request is passed over in this step")
            held = frozenset()
        self._note_waits(held)
        if not held:
            result = original(scheduler, *args, **kwargs)
        else:
            queue = scheduler.waiting_queue
            scheduler.waiting_queue = [req for req in queue if req.rid not in held]
            try:
                result = original(scheduler, *args, **kwargs)
            finally:
                scheduler.waiting_queue = _put_back(queue, scheduler.waiting_queue, held)
        batch = result[0]
        if batch is not None:
            self._make_wait_guarded(batch)
        elif held and scheduler.running_batch.is_empty():
            time.sleep(NAP_S)
        return result

    def _note_waits(self, held: frozenset[str]) -> None:
        """Report how long requests were passed over that are so no longer."""
        if held == self._held:
            return
        now_s = time.monotonic()
        if self.timelines is not None:
            self.timelines.held(held - self._held, self._held - held)
        for rid in self._held - held:
            self._cache.kvflow_metrics.stalled("wait", now_s - self._held_since_s.pop(rid))
        for rid in held - self._held:
            self._held_since_s[rid] = now_s
        self._held = held

    def _passed_over(self, scheduler: Any) -> frozenset[str]:
        transfers = self._cache.kvflow_transfers
        queue = scheduler.waiting_queue
        if not queue or not (transfers.busy or self._admission):
            self._since_s.clear()
            self._workflow_of.clear()
            self._holding.passed_over((), None)
            self._limited = False
            return frozenset()
        barred = self._barred(scheduler, queue)
        requests = [self._waiting_request(req, req.rid in barred) for req in queue]
        now_s = self._cache.kvflow_now_s
        held = self._holding.passed_over(requests, now_s)
        return held

    def _waiting_request(self, req: Any, barred: bool) -> WaitingRequest:
        cache = self._cache
        transfers = cache.kvflow_transfers
        if transfers.fetches:
            fetch = transfers.fetch_covering(cache.prompt(req))
            if fetch is not None:
                link = cache.kvflow_rates.fetch
                arrives_in_s = link.seconds(fetch.tokens) if link is not None else 1.0
                return WaitingRequest(req.rid, arrives_in_s, into_host=True, barred=barred)
        if transfers.loads:
            loading = transfers.load_of(node for node, _ in cache.peek_request(req))
            if loading is not None:
                link = cache.kvflow_rates.load
                arrives_in_s = link.seconds(loading.tokens) if link is not None else 0.0
                return WaitingRequest(req.rid, arrives_in_s, barred=barred)
        return WaitingRequest(req.rid, barred=barred)

    def _make_wait_guarded(self, batch: Any) -> None:
        try:
            self._make_wait(batch)
        except Exception:
            logger.exception("KVFlow: waiting for all copies under way, to be safe")
            for ack in self._cache.cache_controller.ack_load_queue:
                ack.finish_event.synchronize()

    def _make_wait(self, batch: Any) -> None:
        """Let the batch wait, layer by layer, for copies that it reads and did not queue."""
        cache = self._cache
        transfers = cache.kvflow_transfers
        if not transfers.loads and not len(transfers.usage):
            return
        nodes = {node for req in batch.reqs for node in cache.path_to(req.last_node)}
        load = transfers.load_of(nodes)
        if load is not None:
            transfers.note_late(load)
            if batch.hicache_consumer_index < 0:
                batch.hicache_consumer_index = load.producer
            # Else the batch has a load of its own: queued later on the same stream.
        cache.read_by_batch(nodes)

    def _barred(self, scheduler: Any, queue: Sequence[Any]) -> frozenset[str]:
        """Requests whose workflow has to wait for its turn."""
        cache = self._cache
        if self._admission is None:
            return frozenset()
        self._limited = True
        # Without a clock in this step nobody's wait has grown.
        self._clock_s = now_s = cache.kvflow_now_s or self._clock_s
        waiting = {req.rid for req in queue}
        self._since_s = {rid: s for rid, s in self._since_s.items() if rid in waiting}
        running = list(scheduler.running_batch.reqs)
        alive = waiting | {req.rid for req in running}
        self._workflow_of = {rid: w for rid, w in self._workflow_of.items() if rid in alive}
        demands, shared_tokens = self._demands(queue, running, now_s)
        capacity_tokens = int(cache.token_to_kv_pool_allocator.size)
        placed = self._admission.admitted(demands, capacity_tokens, shared_tokens, now_s)
        if placed is None:
            return frozenset()
        return frozenset(
            req.rid
            for req in queue
            if (key := self._workflow(req)) is not None and key not in placed
        )

    def _demands(
        self, queue: Sequence[Any], running: Iterable[Any], now_s: float
    ) -> tuple[list[WorkflowDemand], int]:
        weights = self._cache.kvflow_weights
        context = dict.fromkeys(weights.live(), 0)
        since: dict[WorkflowKey, float] = {}
        run: set[WorkflowKey] = set()
        running = list(running)
        running_rids = {req.rid for req in running}
        prefixes = weights.prefix_nodes()
        for req in (*running, *queue):
            key = self._workflow(req)
            if key is None:
                continue
            if req.rid in running_rids:
                run.add(key)
            else:
                since_s = self._since_s.get(req.rid, now_s)
                if self._cache.kvflow_now_s is not None:
                    self._since_s[req.rid] = since_s
                since[key] = min(since_s, since.get(key, since_s))
            prompt_tokens = len(req.origin_input_ids) + len(req.output_ids)
            of_prefixes = sum(
                tokens for node, tokens in self._cache.peek_request(req) if node in prefixes
            )
            context[key] = max(context.get(key, 0), prompt_tokens - of_prefixes)
        for key in context:
            own = {node for owner in weights.histories(key) for node in owner.nodes} - prefixes
            context[key] = max(context[key], sum(len(node.key) for node in own))
        demands = [
            WorkflowDemand(key, tokens, since.get(key), key in run)
            for key, tokens in context.items()
        ]
        return demands, sum(len(node.key) for node in prefixes)

    def _workflow(self, req: Any) -> WorkflowKey | None:
        if req.rid not in self._workflow_of:
            metadata = parse_metadata(req.sampling_params.custom_params)
            self._workflow_of[req.rid] = (
                None if metadata is None else (metadata.client_id, metadata.workflow_id)
            )
        return self._workflow_of[req.rid]


def _put_back(before: Sequence[Any], after: Sequence[Any], held: frozenset[str]) -> list[Any]:
    """The queue after a batch was formed, with the held requests where they were."""
    left = {id(req) for req in after}
    kept = [req for req in before if req.rid in held or id(req) in left]
    known = {id(req) for req in kept}
    return [*kept, *(req for req in after if id(req) not in known)]
