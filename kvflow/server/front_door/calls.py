"""A call from its arrival to its end: whose it is, what the engine is told, what follows of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kvflow.protocol import DEFAULT_CLIENT_ID, StepEvent
from kvflow.server.front_door.account import Account
from kvflow.server.front_door.adapters import Owner
from kvflow.server.front_door.call_hints import CallHints
from kvflow.server.front_door.forwarding import CallEnd
from kvflow.server.front_door.reporter import StepReporter
from kvflow.server.identity import Identity
from kvflow.server.store import WorkflowRecord

__all__ = ["CALL_STEP_PREFIX", "Call", "CallBook", "UndeclaredCalls"]

CALL_STEP_PREFIX: Final = "call:"
"""Begins the step_id of every run that the front door reports, so that replicas of the service can
tell these from runs that callers report themselves."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call on its way.

    Attributes:
        owner: the agent whose call it is; ``None`` if it does not say.
        step_id: the run that the front door reports for it; ``None`` if it reports none.
    """

    path: str
    namespace: str
    hints: CallHints
    owner: Owner | None
    declared: bool
    step_id: str | None
    started_unix_s: float


class UndeclaredCalls(Protocol):
    """Told of calls of agents whose workflow is not live. Never waits, never raises."""

    def started(self, call: Call) -> None: ...
    def finished(self, call: Call, end: CallEnd) -> None: ...


class CallBook:
    """Makes step events of calls, and tells of each when it is over.

    Args:
        find: the live workflow of that namespace and id, or ``None``.
        publish: ``(data, namespace)`` of a ``call.finished`` event.
        end_workflow: ends a workflow whose root session has said that it is over.
        retain: ``(namespace, owner, for_s)``: the agent's prefix is to be kept for so long.
    """

    def __init__(
        self,
        *,
        find: Callable[[str, str], Awaitable[WorkflowRecord | None]],
        reporter: StepReporter,
        publish: Callable[[dict[str, Any], str], None],
        end_workflow: Callable[[str, str], Awaitable[object]],
        retain: Callable[[str, Owner, float], None],
        undeclared: UndeclaredCalls | None = None,
    ) -> None:
        self._find = find
        self._reporter = reporter
        self._publish = publish
        self._end_workflow = end_workflow
        self._retain = retain
        self._undeclared = undeclared

    async def open(self, path: str, who: Identity, hints: CallHints, account: Account) -> Call:
        """The call is about to go out: its start is reported, if that is ours to do."""
        namespace, now_s = who.namespace, time.time()
        if hints.workflow_id is None or hints.agent_id is None:
            return Call(path, namespace, hints, None, False, None, now_s)
        record = await self._find(namespace, hints.workflow_id)
        client_id = who.client_id or hints.client_id or DEFAULT_CLIENT_ID
        if record is not None:
            client_id = record.client_id
        owner = Owner(client_id, hints.workflow_id, hints.agent_id)
        step_id = None
        if record is None:
            account.steps = "the workflow is not declared"
        elif not record.learned and hints.agent_id not in record.graph.adjacency.position:
            account.steps = "the workflow has no such agent"
        elif hints.steps_reported or hints.in_band or _caller_reports(record, hints.agent_id):
            account.steps = "reported by the caller"
        else:
            account.steps = "reported"
            named = hints.step_id or uuid.uuid4().hex
            step_id = f"{CALL_STEP_PREFIX}{named}"[:256]
            event = StepEvent(type="step_started", agent_id=hints.agent_id, step_id=step_id)
            self._reporter.put(namespace, hints.workflow_id, event)
        call = Call(path, namespace, hints, owner, record is not None, step_id, now_s)
        if record is None and self._undeclared is not None:
            account.steps = "learned from"
            self._undeclared.started(call)
        return call

    def close(self, call: Call, end: CallEnd) -> None:
        """The call is over, however it ended."""
        self._publish(_told(call, end), call.namespace)
        owner, hints = call.owner, call.hints
        if owner is None:
            return
        if not call.declared and self._undeclared is not None:
            self._undeclared.finished(call, end)
        if call.step_id is not None:
            event = StepEvent(
                type="step_finished",
                agent_id=owner.agent_id,
                step_id=call.step_id,
                prompt_tokens=end.usage.prompt_tokens,
                cached_tokens=end.usage.cached_tokens,
                output_tokens=end.usage.output_tokens,
            )
            self._reporter.put(call.namespace, owner.workflow_id, event)
        if call.declared and hints.retain_s is not None:
            self._retain(call.namespace, owner, hints.retain_s)
        if call.declared and hints.session_final and hints.session_id == owner.workflow_id:
            # The root session of the tree that is this workflow: nothing follows.
            self._reporter.then(
                call.namespace,
                owner.workflow_id,
                lambda: self._end_workflow(call.namespace, owner.workflow_id),
            )


def _caller_reports(record: WorkflowRecord, agent_id: str) -> bool:
    """Whether a run of this agent is under way that no front door has reported."""
    return any(
        step_id is None or not step_id.startswith(CALL_STEP_PREFIX)
        for step_id in record.state.running_steps(agent_id)
    )


def _told(call: Call, end: CallEnd) -> dict[str, Any]:
    owner, hints = call.owner, call.hints
    return {
        "route": call.path,
        "client_id": None if owner is None else owner.client_id,
        "workflow_id": None if owner is None else owner.workflow_id,
        "agent_id": None if owner is None else owner.agent_id,
        "step_id": call.step_id or hints.step_id,
        "declared": call.declared,
        "session_id": hints.session_id,
        "parent_session_id": hints.parent_session_id,
        "session_final": hints.session_final,
        "outcome": end.outcome,
        "status": end.status,
        "started_unix_s": call.started_unix_s,
        "duration_s": end.duration_s,
        "first_byte_s": end.first_byte_s,
        "expected_tool_duration_s": hints.tool_s,
        "prompt_tokens": end.usage.prompt_tokens,
        "cached_tokens": end.usage.cached_tokens,
        "output_tokens": end.usage.output_tokens,
    }
