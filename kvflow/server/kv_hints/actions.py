"""What KV hints do: they lie over the steps-to-execution that engines are told, for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from kvflow.server.hints import HintEffect
from kvflow.server.kv_hints.envelope import (
    ActionAnswer,
    ActionStatus,
    KVHintAction,
    KVHintsAnswer,
    KVHintsEnvelope,
)
from kvflow.server.kv_hints.payload import Payload, RefusedError, read_payload
from kvflow.server.store import StreamKey, WorkflowRecord
from kvflow.server.stream import EngineStreams

__all__ = ["KVHints", "Target"]

ActionType = Literal["pin", "retain", "prefetch", "demote", "share"]

# Deref, evict and release are what others call giving a prefix up; fetch is a kind of share.
_TYPES: Final[dict[str, ActionType]] = {
    "pin": "pin",
    "retain": "retain",
    "prefetch": "prefetch",
    "demote": "demote",
    "deref": "demote",
    "evict": "demote",
    "release": "demote",
    "share": "share",
    "fetch": "share",
}
_EFFECTS: Final[dict[ActionType, HintEffect]] = {
    "pin": "keep",
    "retain": "keep",
    "prefetch": "keep",
    "demote": "release",
}
_DEFAULT_TTL_S: Final[dict[ActionType, float]] = {
    "pin": 60.0,
    "retain": 60.0,
    "prefetch": 15.0,
    "demote": 60.0,
}
_MAX_PREFETCH_S: Final = 60.0
_MAJOR_VERSIONS: Final = ("0", "1")


@dataclass(frozen=True, slots=True)
class Target:
    """The agent that a call's own hints are about where they name none."""

    workflow_id: str
    agent_id: str


class KVHints:
    """Does the actions of envelopes. Belongs to the event loop of ``streams``.

    Args:
        find: the live workflow of that namespace and id.
        session_root: the root of a session's tree, if the session was seen.
        no_plugin: why the engine behind the front door can do nothing with hints, or ``None``.
        max_ttl_s: longest time that a hint may last.
    """

    def __init__(
        self,
        streams: EngineStreams,
        *,
        find: Callable[[str, str], Awaitable[WorkflowRecord | None]],
        session_root: Callable[[str, str], str | None],
        no_plugin: Callable[[], str | None],
        clock: Callable[[], float],
        max_ttl_s: float,
    ) -> None:
        self._streams = streams
        self._find = find
        self._session_root = session_root
        self._no_plugin = no_plugin
        self._clock = clock
        self._max_ttl_s = max_ttl_s

    async def apply(
        self, envelope: KVHintsEnvelope, namespace: str, target: Target | None = None
    ) -> KVHintsAnswer:
        """Do each action by itself; one that fails changes nothing about the others."""
        answers = []
        for action in envelope.actions:
            try:
                answers.append(await self._do(action, namespace, target))
            except RefusedError as refused:
                answers.append(_answer(action, refused.status, refused.reason))
        return KVHintsAnswer(message_id=envelope.message_id, actions=answers)

    def keep(self, key: StreamKey, agent_id: str, for_s: float) -> None:
        """Keep an agent's prefix for so long, or as long as is allowed, if the workflow lives."""
        until_s = self._clock() + min(for_s, self._max_ttl_s)
        self._streams.hint(key, [agent_id], "keep", until_s)

    async def _do(
        self, action: KVHintAction, namespace: str, target: Target | None
    ) -> ActionAnswer:
        kind = _kind(action)
        payload = read_payload(action.payload)
        record, agent_ids = await self._addressed(payload, namespace, target)
        if kind == "share":
            raise RefusedError(
                "rejected",
                "KV is not copied between engines; within one, agents share what their prompts "
                "have in common without being told",
            )
        connected = bool(self._streams.subscriptions)
        no_plugin = self._no_plugin()
        if not connected and no_plugin is not None:
            raise RefusedError("rejected", no_plugin)
        reasons: list[str] = []
        status: ActionStatus = "accepted"
        ttl_s = _DEFAULT_TTL_S[kind] if payload.ttl_s is None else payload.ttl_s
        longest_s = min(_MAX_PREFETCH_S, self._max_ttl_s) if kind == "prefetch" else self._max_ttl_s
        if ttl_s > longest_s:
            status, ttl_s = "clipped", longest_s
            reasons.append(f"it ends after {longest_s:g} s, the longest allowed")
        if payload.names_parts:
            status = "clipped"
            reasons.append("it goes for an agent's whole prefix, parts cannot be addressed")
        effect: HintEffect | None = _EFFECTS[kind]
        if ttl_s == 0 or (kind == "retain" and payload.priority == 0):
            effect = None
        elif effect == "release":
            running = [agent for agent in agent_ids if record.state.running(agent)]
            if running:
                status = "deferred"
                reasons.append(f"{', '.join(running[:10])} runs; it loses its weight when it ends")
        if not connected:
            status = "deferred"
            reasons.append("no engine with the plugin is connected; it holds for one that connects")
        until_s = self._clock() + ttl_s
        if effect is None:
            self._streams.forget_hints(record.stream_key, agent_ids)
        elif not self._streams.hint(record.stream_key, agent_ids, effect, until_s):
            raise RefusedError("rejected", "there are too many hints; wait for some to end")
        answer = _answer(action, status, "; ".join(reasons) or None)
        answer.workflow_id, answer.agent_ids = record.workflow_id, agent_ids
        answer.expires_in_s = None if effect is None else ttl_s
        return answer

    async def _addressed(
        self, payload: Payload, namespace: str, target: Target | None
    ) -> tuple[WorkflowRecord, list[str]]:
        workflow_id, agent_ids = payload.workflow_id, payload.agent_ids
        if workflow_id is None and payload.session_id is not None:
            workflow_id = self._session_root(namespace, payload.session_id)
            if workflow_id is None:
                raise RefusedError("missing", f"no session {payload.session_id[:100]!r} was seen")
            agent_ids = agent_ids or (payload.session_id,)
        if workflow_id is None and target is not None:
            workflow_id, agent_ids = target.workflow_id, agent_ids or (target.agent_id,)
        if workflow_id is None:
            raise RefusedError(
                "rejected",
                "the payload must name agents, by workflow_id and agent_id or by session_id",
            )
        record = await self._find(namespace, workflow_id)
        if record is None:
            raise RefusedError("missing", f"no live workflow is called {workflow_id[:100]!r}")
        known = record.graph.adjacency.position
        if agent_ids is None:
            return record, list(record.graph.agent_ids)
        if unknown := [agent_id for agent_id in agent_ids if agent_id not in known]:
            raise RefusedError("missing", f"the workflow has no agent {unknown[0][:100]!r}")
        return record, list(agent_ids)


def _kind(action: KVHintAction) -> ActionType:
    kind = _TYPES.get(action.action_type.lower().removeprefix("kv."))
    if kind is None:
        raise RefusedError(
            "rejected",
            "is not known here: action_type is Share, Prefetch, Demote, Pin or Retain",
        )
    if action.action_version.partition(".")[0] not in _MAJOR_VERSIONS:
        raise RefusedError("rejected", "action_version must be 0.x or 1.x")
    return kind


def _answer(action: KVHintAction, status: ActionStatus, reason: str | None) -> ActionAnswer:
    return ActionAnswer(
        action_id=action.action_id,
        action_type=action.action_type,
        status=status,
        reason=reason,
    )
