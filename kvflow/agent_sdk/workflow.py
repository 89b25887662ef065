"""A workflow as users write it: declared as data, or built from decorated functions."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kvflow.agent_sdk.declaration import (
    After,
    AgentLike,
    DecoratedAgents,
    EdgeLike,
    declared_graph,
    unknown_agent,
)
from kvflow.agent_sdk.definition import WorkflowDefinition, check_name_and_ttl
from kvflow.agent_sdk.engine_urls import EngineUrls
from kvflow.agent_sdk.ledger import Ledger
from kvflow.agent_sdk.openai_hook import hook_openai
from kvflow.agent_sdk.reporter import Reporter, reporter_for
from kvflow.agent_sdk.run import StepScope, WorkflowRun, current_run, warn_of_stray_step
from kvflow.agent_sdk.settings import ClientSettings, checked_identifier
from kvflow.agent_sdk.sink import InBandSink, ServiceSink, StepSink
from kvflow.agent_sdk.step import Step
from kvflow.agent_sdk.wrapping import wrap_agent
from kvflow.errors import ConflictError, InvalidInputError
from kvflow.graph import AgentStepGraph, Join
from kvflow.protocol import DEFAULT_TTL_S

__all__ = ["Workflow"]

F = TypeVar("F", bound=Callable[..., Any])


class Workflow:
    """A workflow: its agents, what comes after what, and the way to the service.

    Either from decorated functions (see :meth:`agent`), or as data::

        Workflow("review", agents=["planner", "coder"], edges=[("planner", "coder")])

    A workflow is a definition; :meth:`run` makes runs of it, any number at once. An agent that is
    called outside any run belongs to a default run, one per process, which ends with the process,
    with :meth:`close`, or when the workflow is garbage-collected.

    Args:
        name: for people; part of the runs' ids.
        agents: ids, ``Agent`` objects, or mappings as in the REST interface.
        edges: ``(source, target)``, ``(source, target, "choice")``, ``Edge`` or mappings.
        entry: agents that can run first; by default those without in-edges.
        ttl_s: the service drops a run that reports nothing for this long.
        service_url: default ``KVFLOW_SERVICE_URL``, else ``http://127.0.0.1:8100``. With ``off``
            there is no service: the steps are computed here and travel with each request.
        api_key: default ``KVFLOW_API_KEY``.
        client_id: default ``KVFLOW_CLIENT_ID``, else ``default``. Equal agent ids of one client
            are the same agent, in whichever workflow.
        timeout_s: longest wait for the service. Agents never wait for it.
        engine_urls: the engines whose requests carry metadata, e.g. ``["http://gpu-1:30000"]``;
            default ``KVFLOW_ENGINE_URLS`` (comma-separated), else all but well-known hosted APIs.
        reporter: instead of the process's own for this service.

    Raises:
        InvalidInputError, GraphError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        agents: Iterable[AgentLike] | None = None,
        edges: Iterable[EdgeLike] | None = None,
        entry: Iterable[str] | None = None,
        ttl_s: float = DEFAULT_TTL_S,
        service_url: str | None = None,
        api_key: str | None = None,
        client_id: str | None = None,
        timeout_s: float | None = None,
        engine_urls: Iterable[str] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        check_name_and_ttl(name, ttl_s)
        if agents is None and not (edges is None and entry is None):
            raise InvalidInputError(
                ("agents",),
                "must be given with edges and entry; without all three, use @workflow.agent(...)",
            )
        self.name = name
        self._ttl_s = ttl_s
        if reporter is None:
            self._settings = ClientSettings.resolve(service_url, api_key, client_id, timeout_s)
            self._reporter = None if self._settings.off else reporter_for(self._settings)
        else:
            self._settings = reporter.settings
            self._reporter = reporter
        self._engine_urls = EngineUrls.resolve(engine_urls)
        self._lock = threading.RLock()
        self._decorated = DecoratedAgents()
        self._definition: WorkflowDefinition | None = None
        self._declared = agents is not None
        if agents is not None:
            self._definition = WorkflowDefinition(
                name, declared_graph(agents, edges or (), entry), ttl_s
            )
        self._open_runs: set[WorkflowRun] = set()
        # By process id: a forked child has a default run of its own.
        self._default_runs: dict[int, WorkflowRun] = {}
        weakref.finalize(self, _close_default_run, self._default_runs).atexit = False
        hook_openai()

    def agent(
        self,
        agent_id: str,
        *,
        after: After | None = None,
        join: Join | None = None,
        entry: bool | None = None,
        fixed_prefix_tokens: int | None = None,
        expected_duration_s: float | None = None,
    ) -> Callable[[F], F]:
        """Make a function an agent: each call of it is a step.

        The function may be sync or async, a generator or async generator, or a method; it keeps
        its signature, results and exceptions.

        Args:
            agent_id: what the service and the engine know the agent by.
            after: the agents it comes after; they may be defined later, so loops are possible.
                ``choice("router")`` instead of ``"router"``: router chooses one of several.
            join: ``all`` (default): it needs all of ``after``; ``any``: the first is enough.
            entry: whether it can run first; by default, if it comes after nothing.
            fixed_prefix_tokens: length of the prompt part common to its calls, in tokens; the
                engine finds it out if it is not given.
            expected_duration_s: how long a call takes; the service learns it if it is not given.

        In a workflow declared as data, only ``agent_id`` is given, and several functions may share
        an agent.

        Raises:
            InvalidInputError: an argument is wrong, and named; or the declared workflow has no such
                agent.
            ConflictError: the workflow has been run already.
        """
        with self._lock:
            if self._declared:
                self._check_declared(
                    agent_id,
                    after=after,
                    join=join,
                    entry=entry,
                    fixed_prefix_tokens=fixed_prefix_tokens,
                    expected_duration_s=expected_duration_s,
                )
            elif self._definition is not None:
                raise ConflictError(
                    f"@agent({agent_id!r}): the workflow has been run or drawn already; "
                    "define all agents before that"
                )
            else:
                self._decorated.add(
                    agent_id,
                    after=() if after is None else after,
                    join=join or "all",
                    entry=entry,
                    fixed_prefix_tokens=fixed_prefix_tokens,
                    expected_duration_s=expected_duration_s,
                )

        def decorate(function: F) -> F:
            wrapped: F = wrap_agent(agent_id, function, lambda: self._open_step(agent_id))
            return wrapped

        return decorate

    @property
    def graph(self) -> AgentStepGraph:
        """The checked graph. Fixes the definition, as the first run does.

        Raises:
            InvalidInputError, GraphError: the agents do not fit together; says where and why.
        """
        return self._define().graph

    def run(self, workflow_id: str | None = None, *, delete_on_close: bool = True) -> WorkflowRun:
        """A run of its own, to be used with ``with`` or ``async with``; see ``WorkflowRun``.

        Args:
            workflow_id: made up if absent. Processes that share a run name the same one, and all
                but the one that ends it pass ``delete_on_close=False``.

        Raises:
            InvalidInputError, GraphError: as for ``graph``.
        """
        if workflow_id is not None:
            checked_identifier(("workflow_id",), workflow_id)
        definition = self._define()
        workflow_id = workflow_id or definition.new_workflow_id()
        sink: StepSink
        if self._reporter is None:
            sink = InBandSink(definition)
        else:
            spec = definition.spec(workflow_id, self._settings.client_id)
            sink = ServiceSink(self._reporter, Ledger(spec, delete_on_close))
        return WorkflowRun(
            definition,
            workflow_id=workflow_id,
            settings=self._settings,
            sink=sink,
            engine_urls=self._engine_urls,
            open_runs=self._open_runs,
        )

    def register(self, timeout_s: float | None = None) -> WorkflowRun:
        """Register the current run, by default the default one, now rather than at its first step.

        Raises:
            ServiceUnreachableError, ServiceError: the service did not take it.
        """
        run = self._current_run()
        run.register(timeout_s)
        return run

    @contextmanager
    def step(self, agent_id: str) -> Iterator[Step]:
        """A step of the current run as a block, for agents that are not decorated functions.

        Raises:
            AgentNotFoundError: the workflow has no such agent.
        """
        # Being a generator, this also keeps the workflow, and so its default run, for the block.
        with self._current_run().step(agent_id) as step:
            yield step

    def close(self) -> None:
        """End the default run of this process, if there is one. The next step begins another."""
        run = self._default_runs.pop(os.getpid(), None)
        if run is not None:
            run.close()

    def _open_step(self, agent_id: str) -> StepScope:
        return self._current_run().open_step(agent_id)

    def _current_run(self) -> WorkflowRun:
        run = current_run(self._define())
        if run is not None:
            return run
        if self._open_runs:
            warn_of_stray_step(self.name)
        pid = os.getpid()
        return self._default_runs.get(pid) or self._default_runs.setdefault(pid, self.run())

    def _define(self) -> WorkflowDefinition:
        if self._definition is None:
            with self._lock:
                if self._definition is None:
                    self._definition = WorkflowDefinition(
                        self.name, self._decorated.graph(), self._ttl_s
                    )
        return self._definition

    def _check_declared(self, agent_id: str, **arguments: object) -> None:
        definition = self._define()
        if agent_id not in definition.agents:
            raise InvalidInputError(
                (f"@agent({agent_id!r})",), unknown_agent(agent_id, definition.agents)
            )
        for argument, value in arguments.items():
            if value is not None:
                raise InvalidInputError(
                    (f"@agent({agent_id!r})", argument),
                    "belongs into Workflow(agents=..., edges=...), where this agent is declared",
                )


def _close_default_run(default_runs: dict[int, WorkflowRun]) -> None:
    # Runs at garbage collection, anywhere: it must not wait.
    run = default_runs.get(os.getpid())
    if run is not None:
        run.close(timeout_s=0.0)
