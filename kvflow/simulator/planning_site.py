"""The simulated engine as the plugin's planning of prefetches sees it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Final

from kvflow.eviction import EvictionKey, Owner
from kvflow.prefetch import Candidate, PlannerLimits, Stretch
from kvflow.sglang_plugin.control import WorkflowKey
from kvflow.sglang_plugin.planning import REPLAN_S, PlanningSite, PrefetchPlanning
from kvflow.sglang_plugin.weights import WorkflowWeights
from kvflow.simulator.cache import TieredCache
from kvflow.simulator.knowledge import Knowledge
from kvflow.simulator.radix import Node
from kvflow.simulator.requests import Request

__all__ = ["WAITING_PEEKED", "Planning", "Site", "StepsObserver"]

WAITING_PEEKED: Final = 8
"""So many requests at the head of the queue are looked at."""


class Planning(PrefetchPlanning):
    """Planning that also says when its gates open, so that it need not be asked all the time."""

    opens_s = inf

    def _candidates(self, now_s: float) -> tuple[list[Candidate[int]], dict[int, WorkflowKey]]:
        candidates, causes = super()._candidates(now_s)
        self.opens_s = inf
        link = self.rates.load
        safety = PlannerLimits(1).safety
        for candidate in candidates:
            due_in_s = candidate.due_in_s
            if candidate.steps > 1 and due_in_s is not None and link is not None:
                tokens = sum(part.tokens for part in candidate.stretches if part.place == "host")
                opens_s = now_s + due_in_s - safety * link.seconds(tokens)
                self.opens_s = min(self.opens_s, max(opens_s, now_s + REPLAN_S))
        return candidates, causes


class StepsObserver:
    """Hands on what ``WorkflowWeights`` tells, with the time."""

    def __init__(self, planning: PrefetchPlanning, cache: TieredCache) -> None:
        self._planning = planning
        self._cache = cache

    def steps_changed(self, key: WorkflowKey, steps: Mapping[str, float]) -> None:
        self._planning.note_steps(key, steps, self._cache.now_s)

    def ended(self, key: WorkflowKey) -> None:
        self._planning.ended(key)


class Site(PlanningSite):
    """The simulated engine as planning sees it."""

    def __init__(self, cache: TieredCache, knowledge: Knowledge) -> None:
        self._cache = cache
        self._knowledge = knowledge

    @property
    def weights(self) -> WorkflowWeights:
        return self._knowledge.weights

    @property
    def page_tokens(self) -> int:
        return self._cache.page_tokens

    def take_changed(self) -> bool:
        changed, self._knowledge.changed = self._knowledge.changed, False
        return changed

    def stretches(self, owner: Owner[Node]) -> Iterator[Stretch]:
        now_s = self._cache.now_s
        for node in self._knowledge.chain(owner, self._cache.tree.root):
            if node.loading_until_s > now_s:
                yield Stretch(len(node), "loading")
            elif node.device:
                yield Stretch(len(node), "device")
            else:
                yield Stretch(len(node), "host" if node.host else "nowhere")

    def on_device(self, owner: Owner[Node]) -> bool:
        for node in owner.nodes:  # noqa: SIM110  (asked for so often that a generator is felt)
            if not node.device:
                return False
        return True

    @property
    def remembers_paths(self) -> bool:
        return bool(self._knowledge.paths)

    def path_tokens(self, number: int) -> int:
        path = self._knowledge.paths.get(number)
        return 0 if path is None else path[1]

    def fetch_head(self, number: int, end_tokens: int) -> Hashable:
        path, end = self._knowledge.paths[number]
        return (path[-1].holding(min(end_tokens, end)), min(end_tokens, end))

    @property
    def fetches(self) -> Iterable[int]:
        storage = self._cache.storage
        if storage is None:
            return ()
        return [fetch.owner for fetch in storage.fetches if fetch.owner is not None]

    @property
    def loading_tokens(self) -> int:
        return sum(load.copy.tokens for load in self._cache.loads)

    @property
    def fetching_tokens(self) -> int:
        return 0 if self._cache.storage is None else self._cache.storage.fetching_tokens

    def slot_free(self) -> bool:
        # One of three slots is for loads ahead, and what is loaded is done in order.
        return not (self._cache.load_queued or self._cache.loads)

    def free_tokens(self) -> int:
        return self._cache.free_tokens

    def reclaimable_tokens(self, key: EvictionKey, wanted: int) -> int:
        return self._cache.reclaimable_tokens(key, wanted)

    def host_room(self, key: EvictionKey) -> int:
        return self._cache.host_room(key)

    def arriving_tokens(self, arriving: Sequence[Request]) -> int:
        return sum(request.prompt_tokens for request in arriving)

    def load_needed(self, waiting: Sequence[Request], arriving: Sequence[Request]) -> bool:
        walk = self._cache.tree.walk
        return any(
            node.host and not node.device
            for request in (*waiting[:WAITING_PEEKED], *arriving[:WAITING_PEEKED])
            for node, _ in walk(request.path, request.path[-1].aligned)
        )

    def given_up(self, tokens: int) -> None:
        """The simulation does not count these."""
