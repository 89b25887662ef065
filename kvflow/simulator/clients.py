"""The clients' side: when workflows begin, which calls they make, and what they report of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Protocol

import simpy

from kvflow.errors import AgentNotFoundError, InvalidInputError
from kvflow.graph import WorkflowState
from kvflow.sglang_plugin.control import ServiceUpdate, WorkflowKey, WorkflowUpdate
from kvflow.simulator.base import EngineModel
from kvflow.simulator.engine import Engine
from kvflow.simulator.prefixes import PrefixPool
from kvflow.simulator.requests import Request
from kvflow.workload import Workload, WorkloadWorkflow

__all__ = ["ClientObserver", "Clients", "LiveWorkflow"]


class ClientObserver(Protocol):
    """Told of workflows as they begin and end."""

    def began(self, live: LiveWorkflow) -> None: ...
    def over(self, live: LiveWorkflow, now_s: float) -> None: ...


class LiveWorkflow:
    """A workflow under way.

    Attributes:
        key: what it is known by.
        state: its declared graph with what was reported so far; None if nothing is declared.
        left: calls that are not over.
    """

    __slots__ = ("began_s", "fixed", "key", "left", "missing", "state", "successors", "workflow")

    def __init__(self, workflow: WorkloadWorkflow, began_s: float, declares: bool) -> None:
        self.workflow = workflow
        self.began_s = began_s
        self.key: WorkflowKey = (workflow.client_id, workflow.workflow_id)
        self.state: WorkflowState | None = None
        self.fixed: dict[str, int] = {}
        if declares and workflow.graph is not None:
            self.state = WorkflowState(workflow.graph)
            self.fixed = {
                agent.agent_id: agent.fixed_prefix_tokens
                for agent in workflow.graph.agents
                if agent.fixed_prefix_tokens is not None
            }
        self.left = len(workflow.calls)
        self.missing = [len(call.after) for call in workflow.calls]
        self.successors: list[list[int]] = [[] for _ in workflow.calls]
        for position, call in enumerate(workflow.calls):
            for before in call.after:
                self.successors[before].append(position)

    def update(self) -> ServiceUpdate:
        """What the service tells engines of this workflow now."""
        assert self.state is not None  # noqa: S101
        steps = self.state.steps_to_execution()
        return ServiceUpdate((WorkflowUpdate(self.key, self.state.version, steps, self.fixed),))


class Clients:
    """Makes the calls of a workload.

    Args:
        declares: whether the graphs are declared and the steps reported to KVFlow.
        largest_tokens: the longest prompt and answer that the engine can run.
    """

    def __init__(
        self,
        env: simpy.Environment,
        workload: Workload,
        pool: PrefixPool,
        model: EngineModel,
        observer: ClientObserver,
        *,
        declares: bool,
        largest_tokens: int,
    ) -> None:
        self._env = env
        self._pool = pool
        self._model = model
        self._observer = observer
        self._declares = declares
        self._largest_tokens = largest_tokens
        self._workflows: Iterator[WorkloadWorkflow] = iter(workload.workflows())
        self._concurrency = workload.concurrency
        self._places: dict[tuple[str, str], int] = {}
        self.engine: Engine | None = None
        self.live = 0

    def begin(self, engine: Engine) -> None:
        """Start the first workflows."""
        self.engine = engine
        if self._concurrency is None:
            self._env.process(self._arrivals())
            return
        for _ in range(self._concurrency):
            if not self._next():
                break

    def _arrivals(self) -> Generator[Any, Any, None]:
        for workflow in self._workflows:
            at_s = workflow.arrival_s or 0.0
            if at_s > self._env.now:
                yield self._env.timeout(at_s - self._env.now)
            self._start(workflow)

    def _next(self) -> bool:
        workflow = next(self._workflows, None)
        while workflow is not None:
            if workflow.calls:
                self._start(workflow)
                return True
            workflow = next(self._workflows, None)
        return False

    def _start(self, workflow: WorkloadWorkflow) -> None:
        if not workflow.calls:
            return
        live = LiveWorkflow(workflow, self._env.now, self._declares)
        self.live += 1
        self._observer.began(live)
        if live.state is not None:
            self._tell(live.update())
        for position, call in enumerate(workflow.calls):
            if not call.after:
                self._later(live, position)

    def _later(self, live: LiveWorkflow, position: int) -> None:
        delay_s = live.workflow.calls[position].pause_s + self._model.client_s
        if delay_s <= 0:
            self._call(live, position)
            return
        event = self._env.timeout(delay_s)
        event.callbacks.append(lambda _: self._call(live, position))

    def _call(self, live: LiveWorkflow, position: int) -> None:
        call = live.workflow.calls[position]
        path = self._pool.path(call.prompt)
        whole = self._pool.path((call.answer,), path)
        request = Request(
            call,
            rid=f"{live.key[0]}/{live.key[1]}/{position}",
            position=position,
            client=live,
            client_id=live.key[0],
            key=None if live.state is None else live.key,
            path=path,
            whole=whole,
            priority=self._priority(live.key[0], call.agent_id),
            arrived_s=self._env.now,
        )
        if request.kv_tokens >= self._largest_tokens:
            raise InvalidInputError(
                ["cache", "device_tokens"],
                f"call {position} of {live.key[1]!r} needs {request.kv_tokens} tokens, and the "
                f"device holds {self._largest_tokens} with two pages to spare; give it more",
            )
        if live.state is not None:
            self._report(live, call.agent_id, started=True)
        assert self.engine is not None  # noqa: S101
        self.engine.send(request)

    def _priority(self, client_id: str, agent_id: str) -> int:
        """An agent's place in the order of first calls; the first has the highest.

        A node keeps the highest priority that it ever had, so priorities that follow a workflow's
        course soon are all the same. What a client can do is rank its agents once and for all; so
        does the benchmark's ``priority`` arm.
        """
        return -self._places.setdefault((client_id, agent_id), len(self._places))

    def _report(self, live: LiveWorkflow, agent_id: str, *, started: bool) -> None:
        state = live.state
        assert state is not None  # noqa: S101
        try:
            if started:
                state.start(agent_id)
            else:
                state.finish(agent_id)
        except AgentNotFoundError:
            return  # An agent that the declared graph does not have: the service says 404.
        self._tell(live.update())

    def ended(self, request: Request) -> None:
        """A call is over."""
        live = request.client
        assert isinstance(live, LiveWorkflow)  # noqa: S101
        if live.state is not None:
            self._report(live, request.call.agent_id, started=False)
        live.left -= 1
        for successor in live.successors[request.position]:
            live.missing[successor] -= 1
            if live.missing[successor] == 0:
                self._later(live, successor)
        if live.left == 0:
            self.live -= 1
            self._observer.over(live, self._env.now)
            if live.state is not None:
                self._tell(ServiceUpdate(closed=(live.key,)))
            if self._concurrency is not None:
                self._next()

    def _tell(self, message: ServiceUpdate) -> None:
        engine = self.engine
        assert engine is not None  # noqa: S101
        if self._model.hint_s <= 0:
            engine.tell(message)
            return
        event = self._env.timeout(self._model.hint_s)
        event.callbacks.append(lambda _: engine.tell(message))
