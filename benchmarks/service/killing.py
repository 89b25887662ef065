"""kill -9 of a service under load, and whether it still knows what it had acknowledged.

Each of several clients keeps, beside the service, a model of its workflow as its acknowledged
requests made it. After a kill and a new start the service must be in exactly that state, or in the
one that the single request makes that the client was waiting for. Engines must be told the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from kvflow.demo.service import ServiceProcess
from kvflow.graph import INFINITE_STEPS, Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.protocol import Delta, Snapshot

__all__ = ["Client", "Killed", "LostError", "kill_once"]

_AGENTS: Final = ("planner", "coder", "tester", "writer")
_GRAPH: Final = AgentStepGraph(
    [Agent(name, "any") for name in _AGENTS],
    [Edge(a, b) for a, b in zip(_AGENTS, (*_AGENTS[1:], _AGENTS[0]), strict=True)],
    [_AGENTS[0]],
)
_BODY: Final[dict[str, Any]] = {
    "agents": [{"agent_id": name, "join": "any"} for name in _AGENTS],
    "edges": [{"source": edge.source, "target": edge.target} for edge in _GRAPH.edges],
    "entry": [_AGENTS[0]],
}
_TIMEOUT_S: Final = 30.0


class LostError(Exception):
    """The service does not know what it had acknowledged."""


@dataclass
class Client:
    """One client and its workflow.

    Attributes:
        state: as the acknowledged requests made it; ``None``: it is not there.
        waiting: the state after the request that was not answered. Only if ``unsure``.
    """

    name: str
    rng: random.Random
    state: WorkflowState | None = None
    waiting: WorkflowState | None = None
    unsure: bool = False
    acknowledged: int = 0
    _steps: int = 0
    _running: list[tuple[str, str]] = field(default_factory=list)
    _waiting_running: list[tuple[str, str]] = field(default_factory=list)

    async def work(self, http: httpx2.AsyncClient) -> None:
        """Send one request after the other until the service is gone."""
        while True:
            try:
                await self._request(http)
            except httpx2.TransportError:
                return

    async def _request(self, http: httpx2.AsyncClient) -> None:
        if self.state is None:
            body = {**_BODY, "workflow_id": self.name, "ttl_s": 3600}
            await self._send(http, "POST", "", body, WorkflowState(_GRAPH), [])
        elif self.rng.random() < 0.02:
            await self._send(http, "DELETE", f"/{self.name}", None, None, [])
        else:
            state, running = self.state.copy(), list(self._running)
            count = self.rng.choice((1, 1, 1, 2, 20))
            events = [self._event(state, running) for _ in range(count)]
            sent = events[0] if count == 1 else events
            await self._send(http, "POST", f"/{self.name}/events", sent, state, running)

    def _event(self, state: WorkflowState, running: list[tuple[str, str]]) -> dict[str, Any]:
        if running and self.rng.random() < 0.6:
            agent_id, step_id = running.pop(self.rng.randrange(len(running)))
            state.finish(agent_id, step_id)
            return {"type": "step_finished", "agent_id": agent_id, "step_id": step_id}
        self._steps += 1
        agent_id, step_id = self.rng.choice(_AGENTS), f"{self.name}-{self._steps}"
        running.append((agent_id, step_id))
        state.start(agent_id, step_id)
        return {"type": "step_started", "agent_id": agent_id, "step_id": step_id}

    async def _send(  # noqa: PLR0917 - a request, and what it makes of the workflow
        self,
        http: httpx2.AsyncClient,
        method: str,
        path: str,
        body: object,
        after: WorkflowState | None,
        running: list[tuple[str, str]],
    ) -> None:
        self.waiting, self._waiting_running, self.unsure = after, running, True
        answer = await http.request(method, f"/v1/workflows{path}", json=body)
        if answer.status_code not in (200, 201, 204):
            raise LostError(f"{method} {path}: {answer.status_code} {answer.text}")
        self._settle()
        self.acknowledged += 1

    def _settle(self) -> None:
        self.state, self._running, self.unsure = self.waiting, self._waiting_running, False

    def check(self, http: httpx2.Client, told: dict[str, dict[str, Any]]) -> None:
        """Compare the service with the model, which then follows the service.

        Raises:
            LostError: it is neither as acknowledged nor as the open request would have made it.
        """
        found = _view(http.get(f"/v1/workflows/{self.name}"))
        possible = [self.state, self.waiting] if self.unsure else [self.state]
        expected = [_expected(state) for state in possible]
        if found not in expected:
            raise LostError(f"{self.name}: acknowledged {expected[0]}, there is {found}")
        steps = told.get(self.name)
        if (None if found is None else found["steps"]) != (steps and steps["steps_to_execution"]):
            raise LostError(f"{self.name}: engines are told {steps}, there is {found}")
        if self.unsure and found != expected[0]:
            self._settle()
        self.unsure = False


@dataclass(frozen=True, slots=True)
class Killed:
    """One kill: until the next start was ready, and how many requests it left unanswered."""

    ready_s: float
    unanswered: int


def kill_once(service: ServiceProcess, clients: Sequence[Client], after_s: float) -> Killed:
    """Load the service, kill it after ``after_s``, start it again and check everything.

    Raises:
        LostError: something acknowledged is gone.
    """
    asyncio.run(_load_and_kill(service, clients, after_s))
    unanswered = sum(client.unsure for client in clients)
    ready_s = service.start()
    with httpx2.Client(base_url=service.url, timeout=_TIMEOUT_S) as http:
        told = _told(http)
        for client in clients:
            client.check(http, told)
    return Killed(ready_s, unanswered)


async def _load_and_kill(
    service: ServiceProcess, clients: Sequence[Client], after_s: float
) -> None:
    limits = httpx2.Limits(max_connections=len(clients))
    async with (
        httpx2.AsyncClient(base_url=service.url, timeout=_TIMEOUT_S, limits=limits) as http,
        asyncio.TaskGroup() as tasks,
    ):
        for client in clients:
            tasks.create_task(client.work(http))
        await asyncio.sleep(after_s)
        service.kill()


def _view(answer: httpx2.Response) -> dict[str, Any] | None:
    if answer.status_code == 404:
        return None
    view = answer.raise_for_status().json()
    return {
        "version": view["version"],
        "started": view["steps_started"],
        "mispredictions": view["mispredictions"],
        "running": {agent["agent_id"]: agent["running"] for agent in view["agents"]},
        "steps": {agent["agent_id"]: agent["steps_to_execution"] for agent in view["agents"]},
    }


def _expected(state: WorkflowState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "version": state.version,
        "started": state.steps_started,
        "mispredictions": state.mispredictions,
        "running": {name: state.running(name) for name in _AGENTS},
        "steps": {
            name: None if steps == INFINITE_STEPS else steps
            for name, steps in state.steps_to_execution().items()
        },
    }


def _told(http: httpx2.Client) -> dict[str, dict[str, Any]]:
    """What a new engine is told, by workflow."""
    told: dict[str, dict[str, Any]] = {}
    with http.stream("GET", "/v1/engines/stream") as response:
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            model = Delta if told else Snapshot
            message = model.model_validate_json(line.removeprefix("data: "))
            told |= {one.workflow_id: one.model_dump() for one in message.workflows}
            if not message.more:
                break
    return told
