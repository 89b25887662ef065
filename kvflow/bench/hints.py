"""What KVFlow is told of a workload while it runs, just as its SDK would tell it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol
from uuid import uuid4

from kvflow.agent_sdk.definition import WorkflowDefinition
from kvflow.agent_sdk.ledger import Event, Ledger
from kvflow.agent_sdk.reporter import Reporter
from kvflow.agent_sdk.settings import ClientSettings
from kvflow.protocol import CUSTOM_PARAMS_KEY
from kvflow.workload import WorkloadWorkflow

__all__ = ["Hints", "NoHints", "ServiceHints"]

_END_LIMIT_S: Final = 20.0
_TTL_S: Final = 24 * 3600.0


class Hints(Protocol):
    """Told of every step. Never waits for anyone."""

    def workflow_began(self, workflow: WorkloadWorkflow) -> None: ...
    def step_started(self, workflow: WorkloadWorkflow, position: int) -> None: ...
    def step_finished(self, workflow: WorkloadWorkflow, position: int) -> None: ...
    def workflow_ended(self, workflow: WorkloadWorkflow) -> None: ...

    def metadata(self, workflow: WorkloadWorkflow, position: int) -> Mapping[str, Any] | None:
        """``custom_params`` of the call at this position; None for a request without any."""


class NoHints:
    """For stock SGLang."""

    def workflow_began(self, workflow: WorkloadWorkflow) -> None:
        """Tell nobody."""

    def step_started(self, workflow: WorkloadWorkflow, position: int) -> None:
        """Tell nobody."""

    def step_finished(self, workflow: WorkloadWorkflow, position: int) -> None:
        """Tell nobody."""

    def workflow_ended(self, workflow: WorkloadWorkflow) -> None:
        """Tell nobody."""

    def metadata(self, workflow: WorkloadWorkflow, position: int) -> Mapping[str, Any] | None:
        return None


class ServiceHints:
    """Reports to a KVFlow service through the SDK's reporter, from a thread of its own.

    Clients and workflows get ids that no earlier run had, so that an engine which learnt from one
    knows nothing of these. A workflow without a graph is not registered; its calls say whose they
    are all the same. So do calls of agents that the graph does not have, and nothing else can be
    said of those.
    """

    def __init__(self, service_url: str, run: str | None = None) -> None:
        self._run = run or uuid4().hex[:8]
        self._reporter = Reporter(ClientSettings(service_url))
        self._ledgers: dict[str, Ledger] = {}
        self._fixed: dict[str, Mapping[str, int | None]] = {}
        self._refusals: list[str] = []

    def workflow_began(self, workflow: WorkloadWorkflow) -> None:
        if workflow.graph is None:
            return
        definition = WorkflowDefinition(None, workflow.graph, _TTL_S)
        spec = definition.spec(self._id(workflow.workflow_id), self._id(workflow.client_id))
        ledger = self._ledgers[workflow.workflow_id] = Ledger(spec)
        self._fixed[workflow.workflow_id] = MappingProxyType(
            {agent.agent_id: agent.fixed_prefix_tokens for agent in workflow.graph.agents}
        )
        self._reporter.announce(ledger)

    def step_started(self, workflow: WorkloadWorkflow, position: int) -> None:
        self._report("step_started", workflow, position)

    def step_finished(self, workflow: WorkloadWorkflow, position: int) -> None:
        self._report("step_finished", workflow, position)

    def workflow_ended(self, workflow: WorkloadWorkflow) -> None:
        self._fixed.pop(workflow.workflow_id, None)
        ledger = self._ledgers.pop(workflow.workflow_id, None)
        if ledger is not None:
            ending = self._reporter.ask(ledger, "close")
            ending.add_done_callback(lambda done: self._note_refusal(ledger, done.result()))

    def metadata(self, workflow: WorkloadWorkflow, position: int) -> Mapping[str, Any] | None:
        agent_id = workflow.calls[position].agent_id
        fields: dict[str, Any] = {
            "workflow_id": self._id(workflow.workflow_id),
            "agent_id": agent_id,
            "client_id": self._id(workflow.client_id),
        }
        fixed_tokens = self._fixed.get(workflow.workflow_id, {}).get(agent_id)
        if fixed_tokens is not None:
            fields["fixed_prefix_tokens"] = fixed_tokens
        return {CUSTOM_PARAMS_KEY: fields}

    def close(self) -> list[str]:
        """End all that is still open and wait for it, for at most 20 s.

        Returns:
            What the service refused, in words.
        """
        self._reporter.stop(_END_LIMIT_S)
        return self._refusals

    def _note_refusal(self, ledger: Ledger, taken: bool) -> None:
        if not taken:
            reason = ledger.refused or "the service did not answer"
            self._refusals.append(f"{ledger.workflow_id}: {reason}")

    def _report(self, kind: Any, workflow: WorkloadWorkflow, position: int) -> None:
        ledger = self._ledgers.get(workflow.workflow_id)
        agent_id = workflow.calls[position].agent_id
        if ledger is not None and agent_id in self._fixed[workflow.workflow_id]:
            self._reporter.report(ledger, Event(kind, agent_id, f"s{position}"))

    def _id(self, given: str) -> str:
        return f"{self._run}-{given}"
