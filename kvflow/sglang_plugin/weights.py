"""What one scheduler process knows about live workflows, and which nodes that weighs."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, Protocol

from kvflow.eviction import Conversation, Owner
from kvflow.graph import INFINITE_STEPS, StepsIndex
from kvflow.prefetch import PredictionTrust
from kvflow.protocol import RequestMetadata
from kvflow.sglang_plugin.anticipation import StartMemory
from kvflow.sglang_plugin.control import (
    ControlMessage,
    LeaseLost,
    ServiceUpdate,
    Tick,
    WorkflowKey,
)
from kvflow.sglang_plugin.due_times import DueTimes, Order
from kvflow.sglang_plugin.salts import WorkflowSalts, scopes_of

__all__ = ["NEAR_STEPS", "AgentKey", "StepsObserver", "WorkflowWeights"]

MAX_AGENTS: Final = 65_536
EVENTS_PER_STEP: Final = 2
"""One agent's finish and the next one's start."""
NEAR_STEPS: Final = 4
"""Agents at most this far away are candidates for prefetching."""

AgentKey = tuple[str, str]
"""``(client_id, agent_id)``"""


class StepsObserver(Protocol):
    """Told of every new vector of steps, and of the end of each workflow."""

    def steps_changed(self, key: WorkflowKey, steps: Mapping[str, float]) -> None: ...
    def ended(self, key: WorkflowKey) -> None: ...


@dataclass(slots=True)
class _InBand:
    """A workflow known from its requests alone. Its time runs from the first tick after one."""

    version: int = 0
    ttl_s: float = 0.0
    seen_s: float | None = None

    def expired(self, now_s: float) -> bool:
        if self.seen_s is None:
            self.seen_s = now_s
        return now_s - self.seen_s >= self.ttl_s


class WorkflowWeights:
    """Steps-to-execution of all live workflows, and the owners they weigh.

    Three sources: the service (valid while the lease is held), values in-band with a request
    (valid for their ``ttl_s`` on the first rank's clock), and nothing. Deterministic: it reads no
    clock and depends only on the messages and requests it is given, so ranks agree.

    Args:
        on_change: called with each owner whose steps changed.
        on_drop: called with each owner that is given up; its nodes are to be released.
    """

    def __init__(
        self,
        on_change: Callable[[Owner[Any]], None],
        on_drop: Callable[[Owner[Any]], None],
    ) -> None:
        self._on_change = on_change
        self._on_drop = on_drop
        self._steps = StepsIndex()
        self._salts = WorkflowSalts()
        self._due: DueTimes | None = None
        self._told: dict[WorkflowKey, Mapping[str, float]] = {}
        self._near: dict[AgentKey, dict[WorkflowKey, float]] = {}
        self._near_of: dict[WorkflowKey, tuple[AgentKey, ...]] = {}
        self._owners: dict[int, Owner[Any]] = {}
        self._owners_made = 0
        self.trust = PredictionTrust()
        self._starts = StartMemory()
        self.observer: StepsObserver | None = None
        self._service: dict[WorkflowKey, int] = {}
        self._not_in_snapshot: set[WorkflowKey] | None = None
        self._in_band: dict[WorkflowKey, _InBand] = {}
        self._fixed_tokens: dict[WorkflowKey, Mapping[str, int]] = {}
        self._choices: dict[WorkflowKey, Mapping[str, Mapping[str, float]]] = {}
        self._prefix_owners: OrderedDict[tuple[AgentKey, Hashable], Owner[Any]] = OrderedDict()
        self._by_agent: defaultdict[AgentKey, set[Hashable]] = defaultdict(set)
        self._history_owners: dict[Conversation, tuple[Owner[Any], WorkflowKey, str]] = {}
        # By workflow and agent. The inner dicts are sets that keep their order.
        self._by_workflow: dict[WorkflowKey, dict[str, dict[Conversation, None]]] = {}
        self.lease_held = False
        self.updates_applied = 0

    def order_by(self, order: Order) -> None:
        """Order owners by steps, as they are at first, or by the time at which they are expected.

        To be called before anything else.
        """
        self._due = DueTimes() if order == "time" else None

    @property
    def live_workflows(self) -> int:
        """Workflows that weigh something now."""
        return len(self._service) + len(self._in_band)

    @property
    def needs_ticks(self) -> bool:
        """Whether anything depends on the shared clock."""
        return bool(self._in_band)

    def is_live(self, key: WorkflowKey) -> bool:
        """Whether the workflow's steps are known now."""
        return key in self._service or key in self._in_band

    def fixed_prefix_tokens(self, key: WorkflowKey, agent_id: str) -> int | None:
        """The fixed length declared with the workflow, if any."""
        return self._fixed_tokens.get(key, {}).get(agent_id)

    @property
    def near_agents(self) -> Mapping[AgentKey, Mapping[WorkflowKey, float]]:
        """Agents 1 to ``NEAR_STEPS`` away in workflows that predict well, and how far in each."""
        return self._near

    def owner(self, number: int) -> Owner[Any] | None:
        """The owner of that number, if there still is one."""
        return self._owners.get(number)

    def owners_of(self, agent: AgentKey, key: WorkflowKey) -> list[Owner[Any]]:
        """What the agent's next call in this workflow will read: its prefixes and histories."""
        owners = [
            self._prefix_owners[agent, namespace]
            for namespace in self._by_agent.get(agent, ())
            if self._salts.reads(key, namespace)
        ]
        for conversation in self._by_workflow.get(key, {}).get(agent[1], ()):
            owners.append(self._history_owners[conversation][0])
        return owners

    def histories(self, key: WorkflowKey) -> list[Owner[Any]]:
        """The conversations of one workflow."""
        return [
            self._history_owners[conversation][0]
            for conversations in self._by_workflow.get(key, {}).values()
            for conversation in conversations
        ]

    def prefix_nodes(self) -> set[Any]:
        """Nodes of the fixed prefixes that live workflows are going to read. O(such nodes)."""
        return {
            node
            for owner in self._prefix_owners.values()
            if owner.steps < INFINITE_STEPS
            for node in owner.nodes
        }

    def called_last(self, limit: int) -> list[tuple[AgentKey, Hashable]]:
        """Agents with their cache namespaces, the one called last first, at most ``limit``."""
        return list(islice(reversed(self._prefix_owners), limit))

    @property
    def prefixes_known(self) -> int:
        """How many fixed prefixes have an owner."""
        return len(self._prefix_owners)

    def known_prefix_owner(self, agent: AgentKey, namespace: Hashable) -> Owner[Any] | None:
        """The owner of the agent's fixed prefix, if there is one. Changes nothing."""
        return self._prefix_owners.get((agent, namespace))

    def choices(self, key: WorkflowKey) -> Mapping[str, Mapping[str, float]]:
        """Declared choices yet to be made: how likely each agent follows, by source and target."""
        return self._choices.get(key, {})

    def running(self, key: WorkflowKey) -> list[str]:
        """The agents that run in the workflow now."""
        return [agent for agent, steps in self._told.get(key, {}).items() if steps == 0]

    def live(self) -> Iterable[WorkflowKey]:
        """All live workflows, oldest first."""
        return self._told.keys()

    def under_salt(self, key: WorkflowKey, salt: str | None) -> None:
        """A request of the workflow has arrived under this ``cache_salt``, or without one.

        From the first one on, only what is cached under that counts for the workflow.
        """
        told = self._told.get(key)
        if told is None:
            return
        if self._salts.scope_with(key, salt) == self._salts.scope(key):
            self._salts.seen(key, salt)
            return
        self._set_order(key, None)
        self._salts.seen(key, salt)
        self._believe(key, told)

    def called(self, key: WorkflowKey, agent_id: str, *, brings_steps: bool = False) -> None:
        """A request of the agent has arrived.

        If it is ahead of the event that tells of the agent's start, the steps that came with its
        last start hold until the service says more. Not if the request itself ``brings_steps`` and
        no service knows the workflow: then nothing is newer than those.
        """
        self._trust_changed(self.trust.called(key, agent_id))
        told = self._told.get(key)
        if brings_steps and key in self._in_band:
            return
        if told is None or told.get(agent_id, INFINITE_STEPS) == 0:
            return
        expected = self._starts.recall(self.trust.family(key), agent_id)
        if expected is not None:
            self._believe(key, expected)

    def prefetched(self, key: WorkflowKey, *, used: bool) -> None:
        """Something prefetched for the workflow was read, or was evicted unread."""
        self._trust_changed(self.trust.prefetched(key, used))

    def apply(self, message: ControlMessage) -> list[WorkflowKey]:
        """Apply a message; returns the workflows that ended by it.

        O(agents of the workflows it names); a lost lease costs O(all agents known).
        """
        if isinstance(message, ServiceUpdate):
            return self._apply_service(message)
        if isinstance(message, LeaseLost):
            self.lease_held = False
            for key in self._service:
                self._withdraw(key)
            self._service.clear()
            self._not_in_snapshot = None
        elif isinstance(message, Tick):
            return self._end(
                [key for key, entry in self._in_band.items() if entry.expired(message.now_s)]
            )
        return []

    def apply_in_band(self, metadata: RequestMetadata) -> None:
        """Take the steps a request brought, unless the service is known to be ahead of them."""
        steps = metadata.steps_to_execution
        if steps is None:
            return
        key = (metadata.client_id, metadata.workflow_id)
        if key in self._service:
            if metadata.version is None or metadata.version <= self._service[key]:
                return
            self._service[key] = metadata.version
        else:
            entry = self._in_band.setdefault(key, _InBand())
            if metadata.version is not None and metadata.version < entry.version:
                return
            entry.version = metadata.version or entry.version
            entry.ttl_s = metadata.ttl_s
            entry.seen_s = None
        self.updates_applied += 1
        self._update(key, {agent: INFINITE_STEPS if n is None else n for agent, n in steps.items()})

    def prefix_owner(self, client_id: str, agent_id: str, namespace: Hashable) -> Owner[Any]:
        """The owner of an agent's fixed prefix within one cache namespace."""
        agent = (client_id, agent_id)
        owner = self._prefix_owners.get((agent, namespace))
        if owner is None:
            owner = self._new_owner("prefix", *self._agent_order(agent, namespace))
            self._prefix_owners[agent, namespace] = owner
            self._by_agent[agent].add(namespace)
            if len(self._prefix_owners) > MAX_AGENTS:
                (old_agent, old_namespace), old = self._prefix_owners.popitem(last=False)
                self._by_agent[old_agent].discard(old_namespace)
                if not self._by_agent[old_agent]:
                    del self._by_agent[old_agent]
                self._drop(old)
        self._prefix_owners.move_to_end((agent, namespace))
        return owner

    def history_owner(
        self, key: WorkflowKey, agent_id: str, conversation: Conversation
    ) -> Owner[Any]:
        """The owner of one conversation of an agent within a workflow."""
        entry = self._history_owners.get(conversation)
        if entry is None:
            entry = (self._new_owner("history", *self._order_in(key, agent_id)), key, agent_id)
            self._history_owners[conversation] = entry
            agents = self._by_workflow.setdefault(key, {})
            agents.setdefault(agent_id, {})[conversation] = None
        return entry[0]

    def drop_histories(self, conversations: Iterable[Conversation]) -> None:
        """Give up conversations that will not be continued."""
        for conversation in conversations:
            entry = self._history_owners.pop(conversation, None)
            if entry is None:
                continue
            owner, key, agent_id = entry
            agents = self._by_workflow[key]
            del agents[agent_id][conversation]
            if not agents[agent_id]:
                del agents[agent_id]
            if not agents:
                del self._by_workflow[key]
            self._drop(owner)

    def release_nodes(self) -> None:
        """The tree was emptied: no owner has nodes any more."""
        for owner in self._prefix_owners.values():
            owner.nodes.clear()
        for owner, _, _ in self._history_owners.values():
            owner.nodes.clear()

    def _apply_service(self, message: ServiceUpdate) -> list[WorkflowKey]:
        self.lease_held = True
        if self._due is not None:
            self._due.now_s = message.received_s
        if message.snapshot_begins:
            self._not_in_snapshot = set(self._service)
        ended = self._end([key for key in message.closed if key in self._service])
        for workflow in message.workflows:
            self.updates_applied += 1
            self._in_band.pop(workflow.key, None)
            known = self._service.get(workflow.key)
            if known is not None and workflow.version - known > EVENTS_PER_STEP:
                # More than a step in one message: what was predicted in between was not seen.
                self.trust.forget(workflow.key)
            self._service[workflow.key] = workflow.version
            self._fixed_tokens[workflow.key] = workflow.fixed_prefix_tokens
            self._choices.pop(workflow.key, None)
            if workflow.choices is not None:
                self._choices[workflow.key] = workflow.choices
            if self._due is not None:
                self._due.told(workflow.key, workflow.due_s)
            if self._not_in_snapshot is not None:
                self._not_in_snapshot.discard(workflow.key)
            self._update(workflow.key, workflow.steps_to_execution)
        if message.snapshot_ends and self._not_in_snapshot is not None:
            ended += self._end(sorted(self._not_in_snapshot))
            self._not_in_snapshot = None
        return ended

    def _end(self, keys: list[WorkflowKey]) -> list[WorkflowKey]:
        for key in keys:
            self._withdraw(key)
            self._service.pop(key, None)
            self._in_band.pop(key, None)
            if self._not_in_snapshot is not None:
                self._not_in_snapshot.discard(key)
            self.drop_histories(
                [
                    conversation
                    for conversations in self._by_workflow.get(key, {}).values()
                    for conversation in conversations
                ]
            )
        return keys

    def _new_owner(
        self, kind: Literal["prefix", "history"], steps: float, due_s: float | None
    ) -> Owner[Any]:
        self._owners_made += 1
        owner: Owner[Any] = Owner(kind, steps, self._owners_made)
        owner.due_s = due_s
        self._owners[owner.number] = owner
        return owner

    def _drop(self, owner: Owner[Any]) -> None:
        self._owners.pop(owner.number, None)
        self._on_drop(owner)

    def _withdraw(self, key: WorkflowKey) -> None:
        self._fixed_tokens.pop(key, None)
        self._choices.pop(key, None)
        self._told.pop(key, None)
        self.trust.forget(key)
        self._set_near(key, {})
        self._set_order(key, None)
        self._salts.forget(key)
        if self._due is not None:
            self._due.told(key, None)
        if self.observer is not None:
            self.observer.ended(key)

    def _update(self, key: WorkflowKey, steps: Mapping[str, float]) -> None:
        before = self._told.get(key)
        self._told[key] = steps
        changed = self.trust.update(key, steps)
        self._starts.learn(self.trust.family(key), before, steps)
        self._believe(key, steps)
        self._trust_changed([other for other in changed if other != key])
        if self.observer is not None:
            self.observer.steps_changed(key, steps)

    def _trust_changed(self, keys: Iterable[WorkflowKey]) -> None:
        for key in keys:
            if key in self._told:
                self._believe(key, self._told[key])

    def _believe(self, key: WorkflowKey, steps: Mapping[str, float]) -> None:
        """Let the workflow's steps govern what they are trusted to govern."""
        trust = self.trust.trust(key)
        self._set_order(key, None if trust == "none" else steps)
        self._set_near(key, steps if trust == "full" else {})

    def _set_near(self, key: WorkflowKey, steps: Mapping[str, float]) -> None:
        for agent in self._near_of.pop(key, ()):
            workflows = self._near[agent]
            del workflows[key]
            if not workflows:
                del self._near[agent]
        near = [(agent_id, n) for agent_id, n in steps.items() if 1 <= n <= NEAR_STEPS]
        for agent_id, n in near:
            self._near.setdefault((key[0], agent_id), {})[key] = n
        if near:
            self._near_of[key] = tuple((key[0], agent_id) for agent_id, _ in near)

    def _set_order(self, key: WorkflowKey, steps: Mapping[str, float] | None) -> None:
        """Let the workflow's agents count with these steps; None: not at all."""
        scope = self._salts.scope(key)
        changed = (
            self._steps.remove(scope, key[1])
            if steps is None
            else self._steps.update(scope, key[1], steps)
        )
        if self._due is not None:
            changed |= self._due.set(key, scope, steps)
        for agent_id in changed:
            agent = (key[0], agent_id)
            for namespace in self._by_agent.get(agent, ()):
                if self._salts.reads(key, namespace):
                    owner = self._prefix_owners[agent, namespace]
                    self._put(owner, *self._agent_order(agent, namespace))
        for agent_id, conversations in self._by_workflow.get(key, {}).items():
            order = self._order_in(key, agent_id)
            for conversation in conversations:
                owner = self._history_owners[conversation][0]
                if (owner.steps, owner.due_s) == order:
                    break  # They all have the same.
                self._put(owner, *order)

    def _agent_order(self, agent: AgentKey, namespace: Hashable) -> tuple[float, float | None]:
        """An agent's steps and due time over all workflows that read this namespace."""
        client_id, agent_id = agent
        scopes = scopes_of(client_id, namespace)
        steps = min(self._steps.agent_steps(scope, agent_id) for scope in scopes)
        if self._due is None:
            return steps, None
        return steps, min(self._due.index.agent_steps(scope, agent_id) for scope in scopes)

    def _order_in(self, key: WorkflowKey, agent_id: str) -> tuple[float, float | None]:
        """An agent's steps and due time in one workflow."""
        where = (self._salts.scope(key), key[1], agent_id)
        due_s = None if self._due is None else self._due.index.workflow_steps(*where)
        return self._steps.workflow_steps(*where), due_s

    def _put(self, owner: Owner[Any], steps: float, due_s: float | None) -> None:
        if owner.steps != steps or owner.due_s != due_s:
            owner.steps, owner.due_s = steps, due_s
            self._on_change(owner)
