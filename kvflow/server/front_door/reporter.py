"""Step events that calls give rise to, applied beside them and never in their way."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from kvflow.errors import KVFlowError
from kvflow.protocol import StepEvent
from kvflow.server.call_metrics import CallMetrics

__all__ = ["StepReporter"]

_MAX_WAITING: Final = 10_000
_LAST_EVENTS_S: Final = 2.0

Apply = Callable[[str, str, StepEvent], Awaitable[object]]
"""``(namespace, workflow_id, event)``"""

logger = logging.getLogger("kvflow.server")


class StepReporter:
    """Applies events in the order they were put, workflow by workflow.

    ``put`` never waits and never raises. An event that is refused, as the workflow has ended
    meanwhile, is counted and forgotten. Belongs to one event loop.
    """

    def __init__(
        self, apply: Apply, metrics: CallMetrics, *, max_waiting: int = _MAX_WAITING
    ) -> None:
        self._apply = apply
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._waiting: dict[
            tuple[str, str], deque[StepEvent | Callable[[], Awaitable[object]]]
        ] = {}
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, namespace: str, workflow_id: str, event: StepEvent) -> None:
        """Apply the event once those of this workflow that were put before are."""
        self._enqueue((namespace, workflow_id), event)

    def then(
        self, namespace: str, workflow_id: str, action: Callable[[], Awaitable[object]]
    ) -> None:
        """Do something else with the workflow, in its turn."""
        self._enqueue((namespace, workflow_id), action)

    async def close(self) -> None:
        """Give what waits a moment more, then drop it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_EVENTS_S)
        for task in self._tasks:
            task.cancel()

    def _enqueue(
        self, key: tuple[str, str], item: StepEvent | Callable[[], Awaitable[object]]
    ) -> None:
        if self._count >= self._max_waiting:
            self._metrics.events.labels("dropped").inc()
            return
        self._count += 1
        if key in self._waiting:
            self._waiting[key].append(item)
            return
        self._waiting[key] = deque([item])
        task = asyncio.create_task(self._work_off(key), name="kvflow-call-events")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_off(self, key: tuple[str, str]) -> None:
        waiting = self._waiting[key]
        try:
            while waiting:
                item = waiting.popleft()
                self._count -= 1
                outcome = "applied"
                try:
                    await (self._apply(*key, item) if isinstance(item, StepEvent) else item())
                except KVFlowError as error:
                    outcome = "refused"
                    logger.debug("an event of a call was refused: %s", error)
                except Exception:
                    outcome = "failed"
                    logger.exception("an event of a call could not be applied")
                if isinstance(item, StepEvent):
                    self._metrics.events.labels(outcome).inc()
        finally:
            self._count -= len(waiting)
            del self._waiting[key]
