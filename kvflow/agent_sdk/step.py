"""The step that is running: what it is, and how code deep inside an agent finds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from kvflow.agent_sdk.engine_urls import EngineUrls
from kvflow.agent_sdk.sink import StepSink
from kvflow.agent_sdk.tracing import StepSpan, current_traceparent
from kvflow.protocol import CUSTOM_PARAMS_KEY, STEPS_PARAMS_KEY

__all__ = ["ActiveStep", "Step", "active_step", "current_step", "request_metadata", "running"]


@dataclass(frozen=True, slots=True)
class Step:
    """One run of one agent.

    Attributes:
        fixed_prefix_tokens: length of the prompt part common to the agent's calls; ``None`` if the
            engine is to find it out.
        traceparent: W3C trace context of the step's OpenTelemetry span; ``None`` if it has none.
    """

    workflow_id: str
    agent_id: str
    client_id: str
    step_id: str
    fixed_prefix_tokens: int | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class ActiveStep:
    """A step, and what its requests tell which engines."""

    step: Step
    engine_urls: EngineUrls
    sink: StepSink
    span: StepSpan | None = None

    def custom_params(self) -> dict[str, Any]:
        """What a request of this step carries, a new dict each time.

        One level inside each key: SGLang's message format allows no more.
        """
        fields: dict[str, Any] = {
            "workflow_id": self.step.workflow_id,
            "agent_id": self.step.agent_id,
            "client_id": self.step.client_id,
            # A service that the request passes through is not to report the step a second time.
            "steps_reported": True,
        }
        if self.step.fixed_prefix_tokens is not None:
            fields["fixed_prefix_tokens"] = self.step.fixed_prefix_tokens
        traceparent = current_traceparent()
        if traceparent is not None:
            fields["traceparent"] = traceparent
        params: dict[str, Any] = {CUSTOM_PARAMS_KEY: fields}
        in_band = self.sink.in_band()
        if in_band is not None:
            fields["version"] = in_band.version
            fields["ttl_s"] = in_band.ttl_s
            params[STEPS_PARAMS_KEY] = in_band.steps_to_execution
        return params


_current: Final[ContextVar[ActiveStep | None]] = ContextVar("kvflow_step", default=None)


def current_step() -> Step | None:
    """The innermost step that this code runs in.

    Follows contextvars: tasks and ``asyncio.to_thread`` inherit it, a bare thread or
    ``run_in_executor`` does not.
    """
    active = _current.get()
    return None if active is None else active.step


def request_metadata() -> dict[str, Any]:
    """The current step's ``custom_params``, or ``{}`` outside any step.

    For requests not made with the ``openai`` package::

        httpx2.post(url, json={**body, "custom_params": request_metadata()})
    """
    active = _current.get()
    return {} if active is None else active.custom_params()


def active_step() -> ActiveStep | None:
    return _current.get()


@contextmanager
def running(active: ActiveStep | None) -> Iterator[None]:
    """Make ``active`` the current step inside the block; ``None`` leaves things as they are."""
    if active is None:
        yield
        return
    token = _current.set(active)
    try:
        with nullcontext() if active.span is None else active.span.current():
            yield
    finally:
        # A coroutine that is closed from elsewhere (garbage collection) ends in another context,
        # in which nothing was set.
        with suppress(ValueError):
            _current.reset(token)
