"""The front door put together with the service's other parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from kvflow.errors import WorkflowNotFoundError
from kvflow.protocol import StepEvent
from kvflow.server.event_bus import EventBus
from kvflow.server.front_door.adapters import Owner
from kvflow.server.front_door.calls import CallBook, UndeclaredCalls
from kvflow.server.front_door.engine import Engine
from kvflow.server.front_door.front_door import FrontDoor
from kvflow.server.front_door.reporter import StepReporter
from kvflow.server.front_door.sessions import SessionTree
from kvflow.server.kv_hints import KVHints
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.settings import ServiceSettings
from kvflow.server.store import StoreUnavailableError, WorkflowRecord
from kvflow.server.stream import EngineStreams
from kvflow.server.workflows import Workflows

__all__ = ["build_front_door"]

_FIND_LIMIT_S: Final = 0.25

logger = logging.getLogger("kvflow.server")


def build_front_door(
    settings: ServiceSettings,
    *,
    workflows: Workflows,
    streams: EngineStreams,
    bus: EventBus,
    metrics: ServiceMetrics,
    clock: Callable[[], float],
    undeclared: Callable[[StepReporter], UndeclaredCalls] | None = None,
) -> tuple[FrontDoor, KVHints]:
    """The front door, and the KV hints that it and ``/v1/kv_hints`` take.

    Args:
        undeclared: makes what is told of calls whose workflow is not live, given what applies
            step events in order.
    """
    sessions = SessionTree()
    engine = None
    if settings.engine_url is not None:
        key = settings.engine_api_key
        engine = Engine(
            settings.engine_url,
            api_key=None if key is None else key.get_secret_value(),
            kind=settings.engine_kind,
            priority=settings.engine_priority,
            silence_s=settings.engine_timeout_s,
            clock=clock,
        )

    async def find(namespace: str, workflow_id: str) -> WorkflowRecord | None:
        try:
            return await workflows.get(workflow_id, namespace=namespace)
        except WorkflowNotFoundError:
            return None

    async def find_in_time(namespace: str, workflow_id: str) -> WorkflowRecord | None:
        """For a call, which a store that is away may neither fail nor hold up."""
        try:
            return await asyncio.wait_for(find(namespace, workflow_id), _FIND_LIMIT_S)
        except (StoreUnavailableError, TimeoutError):
            return None
        except Exception:
            logger.exception("the workflow of a call could not be looked up")
            return None

    async def apply(namespace: str, workflow_id: str, event: StepEvent) -> None:
        await workflows.apply(workflow_id, [event], namespace=namespace)

    async def end_workflow(namespace: str, workflow_id: str) -> None:
        await workflows.delete(workflow_id, namespace=namespace)

    def publish(data: dict[str, Any], namespace: str) -> None:
        bus.publish("call.finished", data, namespace=namespace)

    def retain(namespace: str, owner: Owner, for_s: float) -> None:
        kv_hints.keep((owner.client_id, owner.workflow_id), owner.agent_id, for_s)

    def no_plugin() -> str | None:
        if engine is None or engine.known_traits.kind in ("kvflow", "unknown"):
            return None
        return f"the engine is of the kind {engine.known_traits.kind}, without KVFlow's plugin"

    kv_hints = KVHints(
        streams,
        find=find,
        session_root=sessions.root,
        no_plugin=no_plugin,
        clock=clock,
        max_ttl_s=settings.hint_max_ttl_s,
    )
    reporter = StepReporter(apply, metrics.calls)
    book = CallBook(
        find=find_in_time,
        reporter=reporter,
        publish=publish,
        end_workflow=end_workflow,
        retain=retain,
        undeclared=None if undeclared is None else undeclared(reporter),
    )
    door = FrontDoor(
        engine,
        book=book,
        reporter=reporter,
        sessions=sessions,
        kv_hints=kv_hints,
        metrics=metrics.calls,
    )
    return door, kv_hints
