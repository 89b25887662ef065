"""Calls of workflows that nobody declared: the front door's are workflows all the same."""

from __future__ import annotations

import uuid

from kvflow.protocol import LearnedWorkflowSpec, StepEvent
from kvflow.server.front_door.calls import CALL_STEP_PREFIX, Call
from kvflow.server.front_door.forwarding import CallEnd
from kvflow.server.front_door.reporter import StepReporter
from kvflow.server.identity import Identity
from kvflow.server.limits import Limits
from kvflow.server.workflows import Workflows

__all__ = ["LearnedCalls"]


class LearnedCalls:
    """Makes a learned workflow of the first call that names one, and steps of its calls.

    Takes calls whose workflow is not live (``UndeclaredCalls``); once it is, the front door reports
    its calls as for any other. Nothing waits for this, and what is refused (a client has as many
    workflows as it may) is counted by the reporter.
    """

    def __init__(self, workflows: Workflows, reporter: StepReporter, limits: Limits) -> None:
        self._workflows = workflows
        self._reporter = reporter
        self._limits = limits
        self._step_ids: dict[int, str] = {}

    def started(self, call: Call) -> None:
        """The call goes out."""
        owner, namespace = call.owner, call.namespace
        if owner is None:
            return
        spec = LearnedWorkflowSpec.model_construct(
            learn=True, workflow_id=owner.workflow_id, client_id=owner.client_id
        )
        who = Identity(namespace, "client") if namespace else Identity(None, "open")
        self._reporter.then(
            namespace,
            owner.workflow_id,
            lambda: self._workflows.create(
                spec, namespace=namespace, most=self._limits.max_workflows(who)
            ),
        )
        named = call.hints.step_id or uuid.uuid4().hex
        step_id = self._step_ids[id(call)] = f"{CALL_STEP_PREFIX}{named}"[:256]
        event = StepEvent(type="step_started", agent_id=owner.agent_id, step_id=step_id)
        self._reporter.put(namespace, owner.workflow_id, event)

    def finished(self, call: Call, end: CallEnd) -> None:
        """The call that went out is over, however it ended."""
        owner, step_id = call.owner, self._step_ids.pop(id(call), None)
        if owner is None or step_id is None:
            return
        event = StepEvent(
            type="step_finished",
            agent_id=owner.agent_id,
            step_id=step_id,
            prompt_tokens=end.usage.prompt_tokens,
            cached_tokens=end.usage.cached_tokens,
            output_tokens=end.usage.output_tokens,
        )
        self._reporter.put(call.namespace, owner.workflow_id, event)
