"""One run of a workflow: a ``workflow_id`` at the service, and the steps taken in it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import replace
from typing import Final, Self

from kvflow.agent_sdk.definition import WorkflowDefinition
from kvflow.agent_sdk.engine_urls import EngineUrls
from kvflow.agent_sdk.ledger import Event
from kvflow.agent_sdk.openai_hook import hook_openai
from kvflow.agent_sdk.settings import ClientSettings
from kvflow.agent_sdk.sink import StepSink
from kvflow.agent_sdk.step import ActiveStep, Step, running
from kvflow.agent_sdk.tracing import open_span
from kvflow.errors import AgentNotFoundError, ConflictError, ServiceUnreachableError

__all__ = ["StepScope", "WorkflowRun", "current_run", "warn_of_stray_step"]

_log: Final = logging.getLogger("kvflow")
# Innermost last; several workflows may be active at once, one inside another.
_runs: Final[ContextVar[tuple[WorkflowRun, ...]]] = ContextVar("kvflow_runs", default=())
_warned: Final[set[str]] = set()


def current_run(definition: WorkflowDefinition) -> WorkflowRun | None:
    """The innermost active run of this workflow in this context."""
    for run in reversed(_runs.get()):
        if run.definition is definition:
            return run
    return None


def warn_of_stray_step(workflow_name: str | None) -> None:
    """Say once that a step is outside the runs that are open, which is likely not meant."""
    if "stray" not in _warned:
        _warned.add("stray")
        _log.warning(
            "KVFlow: an agent of workflow %r was called outside the run that is open, so it is "
            "reported to a default run. Threads do not inherit a run: submit "
            "contextvars.copy_context().run, or use run.activate() in the thread.",
            workflow_name,
        )


class WorkflowRun:
    """Made by ``Workflow.run()``. Use as a context manager, sync or async::

        with workflow.run() as run:  # or: async with
            planner(task)

    Inside the block the workflow's agents report to this run. The block ends by closing the run,
    which waits for the last events for at most the service's timeout, and not at all while the
    service is away or, in the sync form, if called on an event loop. Closing makes the service
    delete the workflow (not with ``delete_on_close=False``). Nothing raises if the service is away.

    Tasks and ``asyncio.to_thread`` started inside the block belong to it; a thread pool's threads
    do not, unless they use ``activate()`` or ``contextvars.copy_context().run``. Thread-safe.
    """

    def __init__(
        self,
        definition: WorkflowDefinition,
        *,
        workflow_id: str,
        settings: ClientSettings,
        sink: StepSink,
        engine_urls: EngineUrls,
        open_runs: set[WorkflowRun],
    ) -> None:
        self.definition = definition
        self.workflow_id = workflow_id
        self.client_id = settings.client_id
        self._settings = settings
        self._sink = sink
        self._engine_urls = engine_urls
        self._open_runs = open_runs
        self._token: Token[tuple[WorkflowRun, ...]] | None = None
        self._announced = False
        self._closed = False
        self._warned = False

    def __repr__(self) -> str:
        return f"WorkflowRun(workflow_id={self.workflow_id!r}, client_id={self.client_id!r})"

    @contextmanager
    def step(self, agent_id: str) -> Iterator[Step]:
        """A step of an agent that is not a decorated function; lasts as long as the block.

        Raises:
            AgentNotFoundError: the workflow has no such agent.
        """
        scope = self.open_step(agent_id)
        try:
            with scope.running():
                yield scope.step
        finally:
            scope.finish()

    @contextmanager
    def activate(self) -> Iterator[Self]:
        """Make this the run of the workflow's agents inside the block, e.g. in another thread."""
        token = _runs.set((*_runs.get(), self))
        try:
            yield self
        finally:
            with suppress(ValueError):  # ended from another context, where nothing was set
                _runs.reset(token)

    def register(self, timeout_s: float | None = None) -> None:
        """Create the workflow at the service now, and wait for it; for those who want to know.

        Raises:
            ServiceUnreachableError: no answer, or not within ``timeout_s`` (default: three times
                the service's timeout).
            ServiceError: the service refuses the workflow.
        """
        self._announced = True
        settings = self._settings
        answer = self._sink.ask("register")
        try:
            taken = answer.result(3 * settings.timeout_s if timeout_s is None else timeout_s)
        except TimeoutError:
            taken = False
        if not taken:
            raise ServiceUnreachableError(
                f"the KVFlow service at {settings.url} has not taken workflow {self.workflow_id!r}"
            )

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until the service has taken all that was reported; whether it has."""
        if not self._announced:
            return True
        return self._wait(self._sink.ask("settle"), timeout_s)

    def close(self, timeout_s: float | None = None) -> bool:
        """End the run; whether the service knows of it by now. Further steps are not reported."""
        answer = self._end()
        if answer is None:
            return True
        if _on_event_loop():
            timeout_s = 0.0
        return self._wait(answer, timeout_s)

    async def aclose(self, timeout_s: float | None = None) -> bool:
        """Like ``close``, without blocking the event loop."""
        answer = self._end()
        if answer is None:
            return True
        if timeout_s is None:
            timeout_s = self._settings.timeout_s
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), timeout_s)
        except TimeoutError:
            return False

    def __enter__(self) -> Self:
        if self._token is not None or self._closed:
            raise ConflictError(
                f"run {self.workflow_id!r} was entered before; use run.activate() to use it in "
                "another thread, and workflow.run() for another run"
            )
        self._announce()
        self._open_runs.add(self)
        self._token = _runs.set((*_runs.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self._leave()
        await self.aclose()

    def open_step(self, agent_id: str) -> StepScope:
        """Begin a step and report it. The caller sees to ``running()`` and ``finish()``.

        Raises:
            AgentNotFoundError: the workflow has no such agent.
        """
        agent = self.definition.agents.get(agent_id)
        if agent is None:
            raise AgentNotFoundError(agent_id, list(self.definition.agents))
        step = Step(
            self.workflow_id,
            agent_id,
            self.client_id,
            secrets.token_hex(8),
            agent.fixed_prefix_tokens,
        )
        if self._closed:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "KVFlow: agent %r was called in run %s, which is closed; its steps are not "
                    "reported any more",
                    agent_id,
                    self.workflow_id,
                )
            return StepScope(step, None, None)
        hook_openai()
        self._announce()
        span = open_span(step.workflow_id, agent_id, step.client_id, step.step_id)
        if span is not None:
            step = replace(step, traceparent=span.traceparent)
        self._sink.report(Event("step_started", agent_id, step.step_id, step.traceparent))
        return StepScope(step, ActiveStep(step, self._engine_urls, self._sink, span), self)

    def step_finished(self, step: Step) -> None:
        """Report the end of a step, unless the run is closed."""
        if not self._closed:
            self._sink.report(Event("step_finished", step.agent_id, step.step_id, step.traceparent))

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._sink.announce()

    def _leave(self) -> None:
        if self._token is not None:
            with suppress(ValueError):  # ended from another context, where nothing was set
                _runs.reset(self._token)

    def _end(self) -> Future[bool] | None:
        self._open_runs.discard(self)
        if self._closed or not self._announced:
            self._closed = True
            return None
        self._closed = True
        return self._sink.ask("close")

    def _wait(self, answer: Future[bool], timeout_s: float | None) -> bool:
        if timeout_s is None:
            timeout_s = self._settings.timeout_s
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            return False


class StepScope:
    """An open step: makes itself current while its agent's code runs, and is finished once."""

    __slots__ = ("__weakref__", "_active", "_run", "step")

    def __init__(self, step: Step, active: ActiveStep | None, run: WorkflowRun | None) -> None:
        self.step = step
        self._active = active
        self._run = run

    def running(self) -> AbstractContextManager[None]:
        """A block in which the step is the current one of this context."""
        return running(self._active)

    def finish(self) -> None:
        """End the step and report it. Later calls do nothing."""
        run, self._run = self._run, None
        if run is not None:
            run.step_finished(self.step)
            if self._active is not None and self._active.span is not None:
                self._active.span.end()


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
