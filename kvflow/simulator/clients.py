"""The clients' side: when workflows begin, which calls they make, and what they report of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Protocol

import simpy

from kvflow.errors import InvalidInputError
from kvflow.sglang_plugin.control import ServiceUpdate, WorkflowKey
from kvflow.simulator.base import EngineModel
from kvflow.simulator.engine import Engine
from kvflow.simulator.informing import InformedService, InformedWorkflow
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
        informed: what the service knows of it; None if it is told nothing.
        left: calls that are not over.
    """

    __slots__ = ("began_s", "informed", "key", "left", "missing", "successors", "workflow")

    def __init__(
        self, workflow: WorkloadWorkflow, began_s: float, informed: InformedWorkflow | None
    ) -> None:
        self.workflow = workflow
        self.began_s = began_s
        self.key: WorkflowKey = (workflow.client_id, workflow.workflow_id)
        self.informed = informed
        self.left = len(workflow.calls)
        self.missing = [len(call.after) for call in workflow.calls]
        self.successors: list[list[int]] = [[] for _ in workflow.calls]
        for position, call in enumerate(workflow.calls):
            for before in call.after:
                self.successors[before].append(position)


class Clients:
    """Makes the calls of a workload.

    Args:
        declares: whether KVFlow's service is told of the workflows (``EngineModel.graphs`` says
            what).
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
        self._service = (
            InformedService(model.graphs, times=model.order == "time") if declares else None
        )
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
        informed = None if self._service is None else self._service.workflow(workflow)
        live = LiveWorkflow(workflow, self._env.now, informed)
        self.live += 1
        self._observer.began(live)
        if informed is not None:
            self._tell(informed.update(self._env.now))
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
            key=None if live.informed is None else live.key,
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
        informed = live.informed
        if informed is not None and informed.started(call.agent_id, self._env.now):
            self._tell(informed.update(self._env.now))
        assert self.engine is not None  # noqa: S101
        self.engine.send(request)

    def _priority(self, client_id: str, agent_id: str) -> int:
        """An agent's place in the order of first calls; the first has the highest.

        A node keeps the highest priority that it ever had, so priorities that follow a workflow's
        course soon are all the same. What a client can do is rank its agents once and for all; so
        does the benchmark's ``priority`` arm.
        """
        return -self._places.setdefault((client_id, agent_id), len(self._places))

    def ended(self, request: Request) -> None:
        """A call is over."""
        live = request.client
        assert isinstance(live, LiveWorkflow)  # noqa: S101
        informed, now_s = live.informed, self._env.now
        if informed is not None and informed.finished(request.call.agent_id, now_s):
            self._tell(informed.update(now_s))
        live.left -= 1
        for successor in live.successors[request.position]:
            live.missing[successor] -= 1
            if live.missing[successor] == 0:
                self._later(live, successor)
        if live.left == 0:
            self.live -= 1
            self._observer.over(live, self._env.now)
            if informed is not None:
                self._tell(informed.over())
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
