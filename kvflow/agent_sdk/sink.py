"""Where a run's events go: to the service, or into the requests themselves."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from typing import Literal, NamedTuple, Protocol

from kvflow.agent_sdk.definition import WorkflowDefinition
from kvflow.agent_sdk.ledger import Event, Ledger
from kvflow.agent_sdk.reporter import Reporter
from kvflow.graph import WorkflowState

__all__ = ["InBandSink", "InBandSteps", "ServiceSink", "StepSink"]


class InBandSteps(NamedTuple):
    """What a request brings to an engine that has no service to ask."""

    steps_to_execution: dict[str, int | None]
    version: int
    ttl_s: float


class StepSink(Protocol):
    """Takes the events of one run, from any thread, without waiting."""

    def announce(self) -> None:
        """The run has begun."""

    def report(self, event: Event) -> None:
        """A step started or finished."""

    def ask(self, kind: Literal["register", "settle", "close"]) -> Future[bool]:
        """See ``Reporter.ask``."""

    def in_band(self) -> InBandSteps | None:
        """What requests are to bring, if anything."""


class ServiceSink:
    """One run's end of a reporter."""

    def __init__(self, reporter: Reporter, ledger: Ledger) -> None:
        self._reporter = reporter
        self._ledger = ledger

    def announce(self) -> None:
        self._reporter.announce(self._ledger)

    def report(self, event: Event) -> None:
        self._reporter.report(self._ledger, event)

    def ask(self, kind: Literal["register", "settle", "close"]) -> Future[bool]:
        return self._reporter.ask(self._ledger, kind)

    def in_band(self) -> InBandSteps | None:
        return None


class InBandSink:
    """Keeps the workflow's state in this process, and sends it along with each request.

    An event costs O(V + E) of the graph; the engine hears of it with the next request.
    """

    def __init__(self, definition: WorkflowDefinition) -> None:
        self._state = WorkflowState(definition.graph)
        self._ttl_s = definition.ttl_s
        self._lock = threading.Lock()

    def announce(self) -> None:
        """There is nobody to tell."""

    def report(self, event: Event) -> None:
        with self._lock:
            if event.type == "step_started":
                self._state.start(event.agent_id, event.step_id)
            else:
                self._state.finish(event.agent_id, event.step_id)

    def ask(self, kind: Literal["register", "settle", "close"]) -> Future[bool]:
        answer: Future[bool] = Future()
        answer.set_result(True)
        return answer

    def in_band(self) -> InBandSteps | None:
        with self._lock:
            steps = self._state.steps_to_execution()
            version = self._state.version
        finite = {agent: None if n == math.inf else int(n) for agent, n in steps.items()}
        return InBandSteps(finite, version, self._ttl_s)
