"""Writes what happens to workflows into a file, to be replayed.

``kvflow.workload.recording_format`` says what the lines are. Whoever reports an event puts a line
into a bounded queue and goes on; one thread writes. If the disk cannot keep up, lines are dropped,
counted and spoken of in the log; if it fails, recording ends and the service goes on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Protocol

from kvflow.errors import EnvironmentProblemError
from kvflow.graph_specs import graph_specs
from kvflow.protocol import StepEvent
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.store import WorkflowRecord
from kvflow.workload.recording_format import (
    RecordedClose,
    RecordedEvents,
    RecordedWorkflow,
    RecordingHeader,
    RecordingLine,
)

__all__ = ["FileRecorder", "NoRecorder", "Recorder"]

MAX_WAITING_LINES: Final = 10_000
_STOP_TIMEOUT_S: Final = 5.0
_TELL_AGAIN_S: Final = 60.0

logger = logging.getLogger("kvflow.server")


class Recorder(Protocol):
    """Is told what happened, in order for each workflow. Never waits and never raises."""

    def created(self, record: WorkflowRecord) -> None: ...

    def applied(self, workflow_id: str, events: Sequence[StepEvent]) -> None: ...

    def closed(self, workflow_id: str, reason: str) -> None: ...

    def stop(self) -> None:
        """Write what is waiting, if that takes no more than some seconds."""


class NoRecorder:
    """Records nothing."""

    def created(self, record: WorkflowRecord) -> None: ...

    def applied(self, workflow_id: str, events: Sequence[StepEvent]) -> None: ...

    def closed(self, workflow_id: str, reason: str) -> None: ...

    def stop(self) -> None: ...


class FileRecorder:
    """Records into a file, at its end.

    Args:
        clock: the times of the lines are differences of its values.

    Raises:
        EnvironmentProblemError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float],
        metrics: ServiceMetrics,
        max_waiting_lines: int = MAX_WAITING_LINES,
    ) -> None:
        self._path = path
        self._clock = clock
        self._metrics = metrics
        self._started_s = clock()
        self._waiting: queue.Queue[Callable[[], RecordingLine] | None] = queue.Queue(
            max_waiting_lines
        )
        self._dropped = 0
        self._failed = False
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise EnvironmentProblemError(
                f"cannot record to {path}: {error.strerror}",
                "name a file in a folder that is there and may be written to",
            ) from error
        self._thread = threading.Thread(target=self._write, name="kvflow-recorder", daemon=True)
        self._thread.start()

    def created(self, record: WorkflowRecord) -> None:
        at_s = self._at_s()
        self._put(lambda: _workflow_line(record, at_s))

    def applied(self, workflow_id: str, events: Sequence[StepEvent]) -> None:
        at_s = self._at_s()
        self._put(
            lambda: RecordedEvents.model_construct(
                at_s=at_s, workflow_id=workflow_id, events=list(events)
            )
        )

    def closed(self, workflow_id: str, reason: str) -> None:
        at_s = self._at_s()
        self._put(
            lambda: RecordedClose.model_construct(at_s=at_s, workflow_id=workflow_id, reason=reason)
        )

    def stop(self) -> None:
        try:
            self._waiting.put(None, timeout=_STOP_TIMEOUT_S)
        except queue.Full:
            return
        self._thread.join(_STOP_TIMEOUT_S)

    def _at_s(self) -> float:
        return self._clock() - self._started_s

    def _put(self, line: Callable[[], RecordingLine]) -> None:
        if not self._failed:
            try:
                self._waiting.put_nowait(line)
                return
            except queue.Full:
                pass
        self._dropped += 1
        self._metrics.recording_lines.labels("dropped").inc()

    def _write(self) -> None:
        """The thread: write lines until told to stop."""
        try:
            self._write_lines(self._file)
        except Exception:
            # Whatever it was: the service goes on, and what is still to come is counted.
            self._failed = True
            logger.exception("recording to %s has ended; the service goes on without", self._path)
            self._drain()
        finally:
            # What a full disk did not take before, it does not take now.
            with suppress(OSError):
                self._file.close()

    def _write_lines(self, file: IO[str]) -> None:
        header = RecordingHeader(started_unix_s=time.time())
        file.write(header.model_dump_json() + "\n")
        told, tell_at_s = 0, 0.0
        while (line := self._waiting.get()) is not None:
            file.write(line().model_dump_json(exclude_none=True) + "\n")
            self._metrics.recording_lines.labels("written").inc()
            if self._waiting.empty():
                file.flush()
            if self._dropped > told and time.monotonic() >= tell_at_s:
                told, tell_at_s = self._dropped, time.monotonic() + _TELL_AGAIN_S
                logger.warning(
                    "recording to %s: %d lines were dropped so far, as more came than the disk "
                    "takes; their workflows are recorded in part",
                    self._path,
                    told,
                )

    def _drain(self) -> None:
        while self._waiting.get() is not None:
            self._metrics.recording_lines.labels("dropped").inc()


def _workflow_line(record: WorkflowRecord, at_s: float) -> RecordedWorkflow:
    graph = record.graph
    agents, edges = graph_specs(graph)
    return RecordedWorkflow.model_construct(
        at_s=at_s,
        workflow_id=record.recorded_id,
        client_id=record.client_id,
        name=record.name,
        agents=agents,
        edges=edges,
        entry=list(graph.entry),
    )
