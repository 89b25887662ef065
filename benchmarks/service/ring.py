"""The workflows that the load is about: agents in a cycle, each step started and then finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from benchmarks.service.wire import Connection, request

__all__ = ["Ring", "create_all", "delete_all"]

_CREATED: Final = 201


class Ring:
    """One workflow, and the events of its agents in their order. Endless."""

    def __init__(self, workflow_id: str, agents: int) -> None:
        self.workflow_id = workflow_id
        self.key = workflow_id.encode()
        self.version = 0
        self.ttl_s = 3600
        self._agents = [f"agent-{number:02}" for number in range(agents)]
        self._path = f"/v1/workflows/{workflow_id}/events"
        self._singles = [
            request("POST", self._path, json.dumps(event).encode()) for event in self._cycle()
        ]
        self._lists: dict[tuple[int, int], bytes] = {}

    def _cycle(self) -> list[dict[str, str]]:
        types = ("step_started", "step_finished")
        return [{"type": kind, "agent_id": agent} for agent in self._agents for kind in types]

    def creation(self) -> bytes:
        body = {
            "workflow_id": self.workflow_id,
            "agents": [{"agent_id": agent} for agent in self._agents],
            "edges": [
                {"source": source, "target": target}
                for source, target in zip(
                    self._agents, self._agents[1:] + self._agents[:1], strict=True
                )
            ],
            "entry": self._agents[:1],
            "ttl_s": self.ttl_s,
        }
        return request("POST", "/v1/workflows", json.dumps(body).encode())

    def deletion(self) -> bytes:
        return request("DELETE", f"/v1/workflows/{self.workflow_id}")

    def next_event(self) -> bytes:
        """The request that reports the next event; ``version`` is what it leads to."""
        payload = self._singles[self.version % len(self._singles)]
        self.version += 1
        return payload

    def next_list(self, length: int) -> bytes:
        """The request that reports the next ``length`` events at once.

        Kept, as making a long one takes milliseconds in which the generator sends nothing else.
        """
        first = self.version % len(self._singles)
        self.version += length
        payload = self._lists.get((first, length))
        if payload is None:
            cycle = self._cycle()
            events = [cycle[(first + number) % len(cycle)] for number in range(length)]
            payload = request("POST", self._path, json.dumps(events).encode())
            self._lists[first, length] = payload
        return payload


async def create_all(connection: Connection, rings: Sequence[Ring]) -> None:
    """Raises RuntimeError if one cannot be created."""
    for ring in rings:
        answer = await connection.ask(ring.creation())
        if answer.status != _CREATED:
            raise RuntimeError(f"{answer.status}: {answer.body.decode()}")


async def delete_all(connection: Connection, rings: Sequence[Ring]) -> None:
    for ring in rings:
        await connection.ask(ring.deletion())
