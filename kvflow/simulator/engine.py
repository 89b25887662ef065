"""The scheduler of a simulated engine: prefill steps, decode steps, and the time they take.

One step after the other, a prefill before a decode, as SGLang's scheduler does without mixed
chunks. Decode steps are taken many at a time, up to the next thing that can matter.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import simpy

from kvflow.sglang_plugin.control import ServiceUpdate
from kvflow.simulator.base import EngineModel
from kvflow.simulator.batches import Batch, BatchFormer
from kvflow.simulator.cache import TieredCache
from kvflow.simulator.costs import CostModel
from kvflow.simulator.prefixes import Path
from kvflow.simulator.requests import Request
from kvflow.simulator.sides import StockSide

__all__ = ["Engine"]


class Engine:
    """A process of the simulation.

    Attributes:
        prefill_steps: so far.
        decode_steps: so far.
    """

    def __init__(
        self,
        env: simpy.Environment,
        cache: TieredCache,
        costs: CostModel,
        engine: EngineModel,
        side: StockSide,
    ) -> None:
        self._env = env
        self._cache = cache
        self._costs = costs
        self._side = side
        self._former = BatchFormer(cache, engine, side.wants_load)
        self._messages: list[ServiceUpdate] = []
        self._arrived: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._chunked: Request | None = None
        self._running: list[tuple[int, int, Request]] = []
        self._started = 0
        self._full = False
        self._context_tokens = 0
        self._coming_tokens = 0
        # How many running requests begin a new page at each remainder of the decode step's number.
        self._page_starts = [0] * cache.page_tokens
        self._receive_s = engine.receive_s
        self._received_s = 0.0
        self._wake = env.event()
        self.prefill_steps = 0
        self.decode_steps = 0
        env.process(self._run())

    def send(self, request: Request) -> None:
        """A request, for the next step after it was received."""
        if not self._receive_s:
            self._arrive(request)
            return
        now_s = self._env.now
        self._received_s = max(now_s, self._received_s) + self._receive_s
        event = self._env.timeout(self._received_s - now_s)
        event.callbacks.append(lambda _: self._arrive(request))

    def _arrive(self, request: Request) -> None:
        self._arrived.append(request)
        if not self._wake.triggered:
            self._wake.succeed()

    def tell(self, message: ServiceUpdate) -> None:
        """A message for the next step."""
        self._messages.append(message)
        if not self._wake.triggered:
            self._wake.succeed()

    def _run(self) -> Generator[Any, Any, None]:
        while True:
            self._cache.at(self._env.now)
            messages, self._messages = self._messages, []
            arrived, self._arrived = self._arrived, []
            self._side.take(messages, arrived, self._waiting)
            self._waiting.extend(arrived)
            landed = self._cache.reap()
            if landed.loads or landed.fetches:
                self._side.landed(landed)
            batch = self._form()
            if batch is not None and batch.requests:
                yield from self._prefill(batch)
            elif self._running:
                yield from self._decode()
            else:
                yield from self._idle()

    def _form(self) -> Batch | None:
        held = self._side.passed_over(self._waiting)
        if not self._running:
            self._full = False
        if (self._full or not self._waiting) and self._chunked is None:
            return None
        waiting: Sequence[Request] = self._waiting
        if held:
            waiting = [request for request in waiting if request.rid not in held]
            if not waiting and self._chunked is None:
                return None
        batch = self._former.form(waiting, self._chunked, len(self._running), self._coming_tokens)
        self._full = batch.full
        admitted = len(batch.requests) - (self._chunked is not None)
        for request in batch.requests[-admitted:] if admitted else ():
            self._side.observer.scheduled(request)
        if held and admitted:
            chosen = {id(request) for request in batch.requests}
            self._waiting = deque(each for each in self._waiting if id(each) not in chosen)
        else:
            for _ in range(admitted):
                self._waiting.popleft()
        self._chunked = batch.chunked
        return batch

    def _prefill(self, batch: Batch) -> Generator[Any, Any, None]:
        env, cache, page = self._env, self._cache, self._cache.page_tokens
        own = [
            -(-(before + new) // page) * page - request.held_tokens - request.own_tokens
            for request, (new, before) in zip(batch.requests, batch.parts, strict=True)
        ]
        yield from self._make_room(sum(own))
        cache.private_tokens += sum(own)
        for request, tokens in zip(batch.requests, own, strict=True):
            request.own_tokens += tokens
        load = cache.start_loads()
        ready_s = self._side.formed(batch)
        if load is not None:
            ready_s = max(ready_s, load.copy.end_s)
        compute_s = self._costs.prefill_s(batch.parts)
        if ready_s <= env.now:
            self._side.prefilled(batch.new_tokens, compute_s)
        # Loads are waited for layer by layer, while the layers before are computed.
        yield env.timeout(max(compute_s, ready_s - env.now) + self._blocked_s())
        cache.at(env.now)
        self.prefill_steps += 1
        for request, (new, before) in zip(batch.requests, batch.parts, strict=True):
            request.computed_tokens = before + new
            done = request.computed_tokens == request.prompt_tokens
            self._insert(request, request.path, request.computed_tokens)
            self._side.observer.computed(request)
            if done:
                request.first_token_s = env.now
                self._begin_decoding(request)

    def _insert(self, request: Request, path: Path, tokens: int) -> None:
        """Hand computed KV over to the tree, and hold it there."""
        cache = self._cache
        page = cache.page_tokens
        end = tokens // page * page
        inserted = cache.insert(path, end, request.priority, request.inserted_tokens)
        request.inserted_tokens = end
        assert request.node is not None  # noqa: S101
        cache.tree.lock(inserted.node)
        cache.tree.unlock(request.node)
        request.node = inserted.node
        request.held_tokens = end
        kept = -(-tokens // page) * page - end
        cache.private_tokens += kept - request.own_tokens
        request.own_tokens = kept

    def _begin_decoding(self, request: Request) -> None:
        steps = request.output_tokens - 1
        if steps == 0:
            self._finish(request)
            return
        request.ends_at_step = self.decode_steps + steps
        self._started += 1
        heapq.heappush(self._running, (request.ends_at_step, self._started, request))
        self._context_tokens += request.prompt_tokens
        self._coming_tokens += steps
        page = self._cache.page_tokens
        self._page_starts[(self.decode_steps - request.prompt_tokens) % page] += 1

    def _decode(self) -> Generator[Any, Any, None]:
        env, costs = self._env, self._costs
        running = len(self._running)
        step_s = costs.decode_s(running, self._context_tokens + running)
        steps = self._running[0][0] - self.decode_steps
        until_s = min(env.peek(), self._attention_s())
        if until_s < env.now + steps * step_s:
            steps = max(1, min(steps, int((until_s - env.now) / step_s) + 1))
        available = self._cache.free_tokens + self._cache.evictable_tokens
        while steps > 1 and self._new_pages(steps) > available:
            steps //= 2
        yield from self._make_room(self._new_pages(steps))
        self._cache.private_tokens += self._new_pages(steps)
        middle = self._context_tokens + running * (steps + 1) // 2
        yield env.timeout(steps * costs.decode_s(running, middle) + self._blocked_s())
        self._cache.at(env.now)
        self.decode_steps += steps
        self._context_tokens += running * steps
        self._coming_tokens -= running * steps
        while self._running and self._running[0][0] <= self.decode_steps:
            request = heapq.heappop(self._running)[2]
            page = self._cache.page_tokens
            kv = request.kv_tokens
            begun = request.ends_at_step - request.output_tokens + 1
            self._page_starts[(begun - request.prompt_tokens) % page] -= 1
            request.own_tokens = -(-kv // page) * page - request.held_tokens
            self._context_tokens -= kv
            self._finish(request)

    def _new_pages(self, steps: int) -> int:
        """Tokens of the pages that so many decode steps begin."""
        page = self._cache.page_tokens
        starts = self._page_starts
        rounds, rest = divmod(steps, page)
        pages = rounds * len(self._running)
        for step in range(self.decode_steps, self.decode_steps + rest):
            pages += starts[step % page]
        return pages * page

    def _attention_s(self) -> float:
        attention_s = self._side.attention_s(self._env.now)
        if self._waiting and not self._full:
            landing_s = self._cache.next_landing_s
            if landing_s is not None:
                attention_s = landing_s if attention_s is None else min(attention_s, landing_s)
        return float("inf") if attention_s is None else attention_s

    def _finish(self, request: Request) -> None:
        cache = self._cache
        self._full = False
        self._insert(request, request.whole, request.kv_tokens)
        page = cache.page_tokens
        prompt_end = request.prompt_tokens // page * page
        if 0 < prompt_end < request.kv_tokens // page * page:
            # SGLang cuts there, so that the answer can go without the prompt.
            cache.tree.insert(request.path, prompt_end, request.priority + 1, prompt_end)
        cache.private_tokens -= request.own_tokens
        request.own_tokens = 0
        assert request.node is not None  # noqa: S101
        self._side.finished(request)
        cache.tree.unlock(request.node)
        self._side.observer.ended(request)

    def _make_room(self, tokens: int) -> Generator[Any, Any, None]:
        """Evict; where what could go is held by copies, wait for these."""
        cache = self._cache
        while not cache.make_room(tokens):
            landing_s = cache.next_landing_s
            if landing_s is None:
                raise RuntimeError(
                    f"{tokens} tokens are promised to requests and "
                    f"{cache.free_tokens + cache.evictable_tokens} could be had"
                )
            yield self._env.timeout(max(0.0, landing_s - self._env.now))
            cache.at(self._env.now)
            landed = cache.reap()
            if landed.loads or landed.fetches:
                self._side.landed(landed)

    def _blocked_s(self) -> float:
        blocked_s, self._cache.blocked_s = self._cache.blocked_s, 0.0
        return blocked_s

    def _idle(self) -> Generator[Any, Any, None]:
        """Nothing to compute: wait for a request, a message or a copy."""
        env = self._env
        if self._messages or self._arrived:
            return
        if self._wake.triggered:
            self._wake = env.event()
        wants_s = [
            at_s
            for at_s in (self._cache.next_landing_s, self._side.attention_s(env.now))
            if at_s is not None
        ]
        if not wants_s:
            yield self._wake
            return
        # A copy may have to wait for a request; never the other way round.
        yield self._wake | env.timeout(max(0.0, min(wants_s) - env.now))
